"""One tiny model of each family of backbones; all but two are left to `make exhaustive`."""

import pytest

from medgraft.plugin import PluginManager
from medgraft.testing.tiny import tiny_models

FAMILIES = [
    name if name in ("blip", "vlm-llava") else pytest.param(name, marks=pytest.mark.exhaustive)
    for name in tiny_models(PluginManager(), of_each=1)
]
