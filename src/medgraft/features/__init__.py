"""Outputs of frozen prefixes, computed once for each image and kept: where the model can be cut, and the store on disk."""

from medgraft.features.cut import Cut, find_cut
from medgraft.features.resident import ResidentFeatures, device_bytes, load_resident
from medgraft.features.store import CollectionInfo, FeatureStore, collections, prune, store_folder, verify
from medgraft.features.supply import FeatureSupply, open_supply

__all__ = [
    "CollectionInfo", "Cut", "FeatureStore", "FeatureSupply", "ResidentFeatures", "collections", "device_bytes", "find_cut",
    "load_resident", "open_supply", "prune", "store_folder", "verify",
]  # fmt: skip
