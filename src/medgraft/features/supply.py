"""Features for images by their files: from the store where it has them, computed where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from medgraft.backbones import Backbone
from medgraft.data.image_reader import ImageReader
from medgraft.data.images import open_image
from medgraft.features.cut import Cut, cut_key, find_cut, stored_dtype
from medgraft.features.store import FeatureStore, image_digest
from medgraft.types import Seam


@dataclass
class FeatureSupply:
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

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.backbone.model.parameters()).device
        return device

    def digest(self, path: Path) -> str:
        """An image's digest, read once."""
        if path not in self._digests:
            self._digests[path] = image_digest(path)
        return self._digests[path]

    def stored(self, path: Path) -> torch.Tensor | None:
        """The stored feature [S, C] of an image, or None."""
        return self.store.get(self.digest(path))

    def build(self, paths: Sequence[Path], *, batch_size: int, progress: bool = False) -> None:
        """Compute and keep the features of images that the store lacks, as far as they fit."""
        unique = list({self.digest(path): path for path in paths}.values())
        lacking = [path for path in unique if self.digest(path) not in self.store]
        self.found += len(unique) - len(lacking)
        bar = tqdm(total=len(lacking), desc="features", unit="image", disable=not progress or not lacking, dynamic_ncols=True)
        with bar:
            reader = ImageReader(self.backbone, self._device)
            for some, read in reader.ahead([lacking[i : i + batch_size] for i in range(0, len(lacking), batch_size)]):
                self._keep(some, self._compute(reader.pixel_values(read)))
                bar.update(len(some))
                if self.store.problem is not None:
                    break
        self.store.flush()

    def lacking(self, paths: Sequence[Path]) -> list[Path]:
        """Those of a batch of images whose features are not stored."""
        return [path for path in dict.fromkeys(paths) if self.digest(path) not in self.store]

    def features(self, paths: Sequence[Path], ready: tuple[Sequence[Path], torch.Tensor] | None = None) -> torch.Tensor:
        """Features at the seam for a batch of images, [B, S, C], on the model's device; new ones are kept.

        `ready` are images that were lacking before, and their pixel values.
        """
        known = {path: self.stored(path) for path in paths}
        lacking = [path for path, feature in known.items() if feature is None]
        if lacking:
            paths_read, pixels = ready or ((), None)
            features = self.compute(lacking) if pixels is None or list(paths_read) != lacking else self._compute(pixels)
            self._keep(lacking, features)
            known |= dict(zip(lacking, features, strict=True))
        self.found += len(known) - len(lacking)
        return torch.stack([feature.to(self._device) for path in paths if (feature := known[path]) is not None])

    def compute(self, paths: Sequence[Path]) -> torch.Tensor:
        """Features of images, without the store; called under the run's autocast."""
        return self._compute(self._pixels(paths))

    def _pixels(self, paths: Sequence[Path]) -> torch.Tensor:
        return self.backbone.pixel_values([open_image(path) for path in paths])

    @torch.no_grad()
    def _compute(self, pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.to(self._device)
        below = self.backbone.seams[: self.backbone.seams.index(self.seam) + 1]
        return self.backbone.through(below, pixels, prompt=self.prompt).to(self.dtype)

    def _keep(self, paths: Sequence[Path], features: torch.Tensor) -> None:
        self.store.put({self.digest(path): feature for path, feature in zip(paths, features, strict=True)})


def open_supply(backbone: Backbone, *, bf16: bool, prompt: str, max_gb: float) -> tuple[FeatureSupply | None, Cut]:
    """The supply for a model as it stands, None if it cannot be cut or nothing may be stored; and the cut."""
    cut = find_cut(backbone)
    if cut.seam is None or max_gb <= 0:
        return None, cut
    key = cut_key(backbone, cut.seam, bf16=bf16, prompt=prompt)
    store = FeatureStore(key, max_bytes=int(max_gb * 1e9))
    store.mark_used()
    return FeatureSupply(backbone, cut.seam, store, prompt, stored_dtype(backbone, cut.seam, bf16=bf16)), cut
