"""Adapter packages: trained weights with a manifest, saved, read and loaded safely.

Reading needs neither torch nor the base; torch is loaded by the first name that saves or loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgraft.adapter.contents import Contents, read_contents
from medgraft.adapter.locating import IN_RUN, is_adapter, locate_adapter
from medgraft.adapter.manifest import MANIFEST, Manifest, read_manifest
from medgraft.lazy import lazily

if TYPE_CHECKING:
    from medgraft.adapter.loading import BaseOptions, LoadedAdapter, load_adapter
    from medgraft.adapter.saving import adapter_bytes, in_place_digests, save_weights, update_manifest, write_package
    from medgraft.adapter.start import Start, named_by, read_start
    from medgraft.adapter.trained_on import SeenInTraining, TrainedOn
else:
    __getattr__ = lazily(__name__)

__all__ = [
    "BaseOptions", "Contents", "IN_RUN", "LoadedAdapter", "MANIFEST", "Manifest", "SeenInTraining", "Start", "TrainedOn",
    "adapter_bytes", "in_place_digests", "is_adapter", "load_adapter", "locate_adapter", "named_by", "read_contents",
    "read_manifest", "read_start", "save_weights", "update_manifest", "write_package",
]  # fmt: skip
