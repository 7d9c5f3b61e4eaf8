"""Adapter packages: trained weights with a manifest, saved and loaded safely."""

from medgraft.adapter.loading import LoadedAdapter, load_adapter
from medgraft.adapter.locating import IN_RUN, is_adapter, locate_adapter
from medgraft.adapter.manifest import MANIFEST, Manifest, read_manifest
from medgraft.adapter.saving import adapter_bytes, in_place_digests, save_weights, update_manifest, write_package
from medgraft.adapter.start import Start, named_by, read_start
from medgraft.adapter.trained_on import SeenInTraining, TrainedOn

__all__ = [
    "IN_RUN",
    "MANIFEST",
    "LoadedAdapter",
    "Manifest",
    "SeenInTraining",
    "Start",
    "TrainedOn",
    "adapter_bytes",
    "in_place_digests",
    "is_adapter",
    "load_adapter",
    "locate_adapter",
    "named_by",
    "read_manifest",
    "read_start",
    "save_weights",
    "update_manifest",
    "write_package",
]
