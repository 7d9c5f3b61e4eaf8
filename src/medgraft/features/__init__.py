"""Image features computed by frozen parts of a model, stored on disk for reuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgraft.lazy import lazily

if TYPE_CHECKING:
    from medgraft.features.cached import CachedFeatures, open_cached_features
    from medgraft.features.resident import ResidentFeatures, device_bytes, load_resident
    from medgraft.features.reusable_prefix import ReusablePrefix, find_reusable_prefix, stored_dtype
    from medgraft.features.store import CollectionInfo, FeatureStore, collections, prune, store_folder, verify
else:
    __getattr__ = lazily(__name__)

__all__ = [
    "CachedFeatures", "CollectionInfo", "FeatureStore", "ResidentFeatures", "ReusablePrefix", "collections", "device_bytes",
    "find_reusable_prefix", "load_resident", "open_cached_features", "prune", "store_folder", "stored_dtype", "verify",
]  # fmt: skip
