"""Adapter packages: trained weights with a manifest, saved and loaded safely."""

from medgraft.adapter.loading import LoadedAdapter, load_adapter
from medgraft.adapter.locating import locate_adapter
from medgraft.adapter.manifest import MANIFEST, Manifest, read_manifest
from medgraft.adapter.saving import adapter_bytes, finish_package, in_place_digests, save_weights
from medgraft.adapter.trained_on import SeenInTraining, TrainedOn

__all__ = [
    "MANIFEST",
    "LoadedAdapter",
    "Manifest",
    "SeenInTraining",
    "TrainedOn",
    "adapter_bytes",
    "finish_package",
    "in_place_digests",
    "load_adapter",
    "locate_adapter",
    "read_manifest",
    "save_weights",
]
