"""Features for images by their files: from the store where it has them, computed where it does not."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from medgraft.backbones import Backbone
from medgraft.data.images import open_image
from medgraft.features.reusable_prefix import ReusablePrefix, find_reusable_prefix, prefix_key, stored_dtype
from medgraft.features.store import FeatureStore, image_digest
from medgraft.progress import progress_bar
from medgraft.types import Seam


@dataclass
class CachedFeatures:
    """What a run takes its features from. `found` counts features that were there."""

    backbone: Backbone
    seam: Seam
    store: FeatureStore
    prompt: str
    dtype: torch.dtype
    found: int = 0

    def __post_init__(self) -> None:
        self._digests: dict[Path, str] = {}

    @property
    def built(self) -> int:
        """How many features were computed and kept."""
        return self.store.written

    def digest(self, path: Path) -> str:
        """An image's digest, read once."""
        if path not in self._digests:
            self._digests[path] = image_digest(path)
        return self._digests[path]

    def stored(self, path: Path) -> torch.Tensor | None:
        """The stored feature [S, C] of an image, or None."""
        return self.store.get(self.digest(path))

    def build(self, paths: Sequence[Path], *, batch_size: int) -> None:
        """Compute and keep the features of images that the store lacks, as far as they fit."""
        unique = list({self.digest(path): path for path in paths}.values())
        lacking = [path for path in unique if self.digest(path) not in self.store]
        self.found += len(unique) - len(lacking)
        with progress_bar(total=len(lacking), desc="features", unit="image") as bar:
            for some, pixels in self._read_ahead([lacking[i : i + batch_size] for i in range(0, len(lacking), batch_size)]):
                self._keep(some, self._compute(pixels))
                bar.update(len(some))
                if self.store.problem is not None:
                    break
        self.store.flush()

    def features(self, paths: Sequence[Path]) -> torch.Tensor:
        """Features at the seam for a batch of images, [B, S, C], on the model's device; new ones are kept."""
        known = {path: self.stored(path) for path in paths}
        lacking = [path for path, feature in known.items() if feature is None]
        if lacking:
            features = self.compute(lacking)
            self._keep(lacking, features)
            known |= dict(zip(lacking, features, strict=True))
        self.found += len(known) - len(lacking)
        where = next(self.backbone.model.parameters()).device
        return torch.stack([feature.to(where) for path in paths if (feature := known[path]) is not None])

    def compute(self, paths: Sequence[Path]) -> torch.Tensor:
        """Features of images, without the store; called under the run's autocast."""
        return self._compute(self._pixels(paths))

    def _read_ahead(self, batches: Sequence[Sequence[Path]]) -> Iterator[tuple[Sequence[Path], torch.Tensor]]:
        """Each batch with its pixel values; the next one is decoded and resized in a thread meanwhile."""
        with ThreadPoolExecutor(max_workers=1) as reader:
            coming = deque(reader.submit(self._pixels, batch) for batch in batches[:1])
            for number, batch in enumerate(batches, start=1):
                coming.extend(reader.submit(self._pixels, later) for later in batches[number : number + 1])
                yield batch, coming.popleft().result()

    def _pixels(self, paths: Sequence[Path]) -> torch.Tensor:
        return self.backbone.pixel_values([open_image(path) for path in paths])

    @torch.no_grad()
    def _compute(self, pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.to(next(self.backbone.model.parameters()).device)
        below = self.backbone.seams[: self.backbone.seams.index(self.seam) + 1]
        return self.backbone.forward_through(below, pixels, prompt=self.prompt).to(self.dtype)

    def _keep(self, paths: Sequence[Path], features: torch.Tensor) -> None:
        self.store.put({self.digest(path): feature for path, feature in zip(paths, features, strict=True)})


def open_cached_features(
    backbone: Backbone, *, bf16: bool, prompt: str, max_gb: float
) -> tuple[CachedFeatures | None, ReusablePrefix]:
    """Cached features for a model as it stands, None if no prefix is reusable or nothing may be stored; and the prefix."""
    prefix = find_reusable_prefix(backbone)
    if prefix.seam is None or max_gb <= 0:
        return None, prefix
    key = prefix_key(backbone, prefix.seam, bf16=bf16, prompt=prompt)
    store = FeatureStore(key, max_bytes=int(max_gb * 1e9))
    store.mark_used()
    return CachedFeatures(backbone, prefix.seam, store, prompt, stored_dtype(backbone, prefix.seam, bf16=bf16)), prefix
