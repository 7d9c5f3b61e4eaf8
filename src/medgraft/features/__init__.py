"""Features: what frozen parts of a model compute from an image, computed once and stored on disk."""

from medgraft.features.cached import CachedFeatures, open_cached_features
from medgraft.features.reusable_prefix import ReusablePrefix, find_reusable_prefix
from medgraft.features.store import CollectionInfo, FeatureStore, collections, prune, store_folder, verify

__all__ = [
    "CachedFeatures", "CollectionInfo", "FeatureStore", "ReusablePrefix", "collections", "find_reusable_prefix",
    "open_cached_features", "prune", "store_folder", "verify",
]  # fmt: skip
