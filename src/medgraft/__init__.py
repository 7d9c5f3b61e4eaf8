"""medgraft grafts small trained parts onto vision-language backbones for medical image captioning.

Importing it is cheap: torch and transformers are loaded by the first function that needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgraft.errors import MedgraftError
from medgraft.lazy import lazily
from medgraft.plugin import BackboneSpec, DatasetSpec, MetricSpec, ScoreSpec, StrategySpec, hookimpl
from medgraft.quiet import drop_kernel_advice

if TYPE_CHECKING:
    from medgraft.adapter_set import load_adapters
    from medgraft.api import caption, caption_each, evaluate, explain, run_config, run_suite, train
    from medgraft.benchmark.frames import records_frame
    from medgraft.data import load_data, open_image
    from medgraft.loading import load_adapter, load_backbone
    from medgraft.scoring import score
else:
    __getattr__ = lazily(__name__)

__version__ = "0.1.0"

__all__ = [
    "BackboneSpec",
    "DatasetSpec",
    "MedgraftError",
    "MetricSpec",
    "ScoreSpec",
    "StrategySpec",
    "caption",
    "caption_each",
    "evaluate",
    "explain",
    "hookimpl",
    "load_adapter",
    "load_adapters",
    "load_backbone",
    "load_data",
    "open_image",
    "records_frame",
    "run_config",
    "run_suite",
    "score",
    "train",
]

drop_kernel_advice()


def __dir__() -> list[str]:
    return __all__
