"""Features of image files: read from the store, or computed and stored if they are missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from tqdm import tqdm

from medgraft.backbones import Backbone
from medgraft.data.augmentation import recurs, view_digest, without_view
from medgraft.data.image_reader import ImageReader
from medgraft.data.images import image_digests, open_image
from medgraft.features.reusable_prefix import ReusablePrefix, find_reusable_prefix, prefix_key, stored_dtype
from medgraft.features.store import FeatureStore
from medgraft.progress import progress_bar
from medgraft.types import ImageSource, Seam

_REMEMBERED = 10_000  # digests in memory; those of more images come from the file index, a query a batch


@dataclass
class CachedFeatures:
    """The source of a run's features. `found` counts features that were read from the store."""

    backbone: Backbone
    seam: Seam
    store: FeatureStore
    prompt: str | None
    dtype: torch.dtype
    found: int = 0

    def __post_init__(self) -> None:
        self._digests: dict[ImageSource, str] = {}

    @property
    def built(self) -> int:
        """How many features were computed and stored."""
        return self.store.written

    @property
    def _device(self) -> torch.device:
        return self.backbone.device

    def image_digests(self, paths: Sequence[ImageSource]) -> dict[ImageSource, str]:
        """The digests of images, which are those of their files unless they are augmented; the last ones are remembered."""
        files = {path: without_view(path) for path in paths}
        found = {file: self._digests[file] for file in files.values() if file in self._digests}
        new = image_digests([file for file in files.values() if file not in found])
        if len(self._digests) + len(new) > _REMEMBERED:
            self._digests.clear()
        self._digests |= islice(new.items(), _REMEMBERED)
        found |= new
        return {path: view_digest(found[file], path) for path, file in files.items()}

    def stored(self, paths: Sequence[ImageSource]) -> list[torch.Tensor | None]:
        """The stored feature [S, C] of each image, or None."""
        digests = self.image_digests([path for path in paths if recurs(path)])
        return [self.store.get(digests[path]) if path in digests else None for path in paths]

    def build(self, paths: Iterable[ImageSource], *, batch_size: int, total: int | None = None) -> None:
        """Compute and store the features that the store lacks, until it is full; `total` is the number of `paths`."""
        with progress_bar(total=total, desc="features", unit="image") as bar:
            reader = ImageReader(self.backbone, self._device)
            for batch, read in reader.ahead(self._lacking_batches(paths, batch_size, bar)):
                self._write(batch, self._compute(reader.pixel_values(read)))
                bar.update(len(batch))
                if self.store.problem is not None:
                    break
        self.store.flush()

    def _lacking_batches(self, paths: Iterable[ImageSource], batch_size: int, bar: tqdm[Any]) -> Iterator[list[ImageSource]]:
        """Batches of images whose features are not stored, each content once; counts the others."""
        seen: set[str] = set()
        remaining = iter(paths)
        while chunk := list(islice(remaining, _REMEMBERED)):
            new = {digest: path for path, digest in self.image_digests(chunk).items() if digest not in seen}
            lacking = [path for digest, path in new.items() if digest not in self.store]
            seen |= new.keys()
            self.found += len(new) - len(lacking)
            bar.update(len(chunk) - len(lacking))
            yield from (lacking[start : start + batch_size] for start in range(0, len(lacking), batch_size))

    def lacking(self, paths: Sequence[ImageSource]) -> list[ImageSource]:
        """The images of a batch whose features are not stored."""
        digests = self.image_digests(paths)
        return [path for path in digests if digests[path] not in self.store]

    def features(
        self, paths: Sequence[ImageSource], ready: tuple[Sequence[ImageSource], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Features [B, S, C] of a batch of images at the seam, on the model's device; missing ones are computed and stored.

        `ready` is the images that were lacking when the batch was read, and their pixel values.
        """
        known = {path: self.store.get(digest) for path, digest in self.image_digests(paths).items()}
        lacking = [path for path, feature in known.items() if feature is None]
        if lacking:
            paths_read, pixels = ready or ((), None)
            features = self.compute(lacking) if pixels is None or list(paths_read) != lacking else self._compute(pixels)
            self._write(lacking, features)
            known |= dict(zip(lacking, features, strict=True))
        self.found += len(known) - len(lacking)
        return torch.stack([feature.to(self._device) for path in paths if (feature := known[path]) is not None])

    def compute(self, paths: Sequence[ImageSource]) -> torch.Tensor:
        """Compute features of images without the store; call it under the run's autocast."""
        return self._compute(self._pixels(paths))

    def _pixels(self, paths: Sequence[ImageSource]) -> torch.Tensor:
        return self.backbone.pixel_values([open_image(path) for path in paths])

    @torch.no_grad()
    def _compute(self, pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.to(self._device)
        below = self.backbone.seams[: self.backbone.seams.index(self.seam) + 1]
        return self.backbone.forward_through(below, pixels, prompt=self.prompt or "").to(self.dtype)

    def _write(self, paths: Sequence[ImageSource], features: torch.Tensor) -> None:
        digests = self.image_digests(paths)
        on_cpu = features.detach().to("cpu")  # one copy for the whole batch
        self.store.put({digests[path]: feature for path, feature in zip(paths, on_cpu, strict=True)})


def open_cached_features(
    backbone: Backbone, *, dtype: torch.dtype, prompt: str | None, max_gb: float, base: str | None = None
) -> tuple[CachedFeatures | None, ReusablePrefix]:
    """The cached features for the current state of a model, and its reusable prefix.

    The features are None if no prefix is reusable or `max_gb` is 0. The model computes in `dtype`. `prompt` is None if images
    have prompts of their own. `base` is passed to `prefix_key`.
    """
    prefix = find_reusable_prefix(backbone, prompted=prompt is None)
    if prefix.seam is None or max_gb <= 0:
        return None, prefix
    key = prefix_key(backbone, prefix.seam, dtype=dtype, prompt=prompt, base=base)
    store = FeatureStore(key, max_bytes=int(max_gb * 1e9))
    store.mark_used()
    return CachedFeatures(backbone, prefix.seam, store, prompt, stored_dtype(backbone, prefix.seam, dtype)), prefix
