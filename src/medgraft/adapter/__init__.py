"""Adapter packages: trained weights with a manifest, saved and loaded safely."""

from medgraft.adapter.loading import LoadedAdapter, load_adapter
from medgraft.adapter.locating import IN_RUN, is_adapter, locate_adapter
from medgraft.adapter.manifest import MANIFEST, Manifest, read_manifest
from medgraft.adapter.saving import adapter_bytes, in_place_digests, save_weights, update_manifest, write_package
from medgraft.adapter.trained_on import SeenInTraining, TrainedOn

__all__ = [
    "IN_RUN",
    "MANIFEST",
    "LoadedAdapter",
    "Manifest",
    "SeenInTraining",
    "TrainedOn",
    "adapter_bytes",
    "in_place_digests",
    "is_adapter",
    "load_adapter",
    "locate_adapter",
    "read_manifest",
    "save_weights",
    "update_manifest",
    "write_package",
]
