"""What the Trainer trains: a backbone with a strategy applied, its frozen parts at rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from medgraft.backbones import Backbone, TextBatch
from medgraft.data import levels
from medgraft.features import ResidentFeatures
from medgraft.strategies import Applied
from medgraft.training.adalora import orthogonality
from medgraft.types import Seam


class CaptioningModule(nn.Module):
    """Loss of captions given images.

    Frozen parts stay in eval mode; below a seam no graph is built if nothing trains there. `cut` is the seam at which
    stored features come in. `resident` are those that lie on the device, and `pixel_table` makes pixel values of images that
    come as uint8 levels (data/levels.py).
    """

    accepts_loss_kwargs = True  # the Trainer then hands over the number of labels of the whole accumulated batch

    pixel_table: torch.Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        applied: Applied,
        prompt: str = "",
        cut: Seam | None = None,
        resident: ResidentFeatures | None = None,
        pixel_table: torch.Tensor | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.applied = applied
        self.prompt = prompt
        self.cut = cut
        self.resident = resident
        self.register_buffer("pixel_table", pixel_table, persistent=False)
        self.model = applied.model
        trained = {backbone.anatomy.part_of(n) for n, p in backbone.model.named_parameters() if p.requires_grad}
        prefixes = [p for part in applied.frozen_parts for p in backbone.anatomy.parts[part].prefixes]
        self._at_rest = [module for name, module in backbone.model.named_modules() if name in prefixes]
        self.frozen_seams = tuple(seam for seam in backbone.seams if not trained & set(seam.prefix))

    def train(self, mode: bool = True) -> CaptioningModule:
        """As nn.Module.train, but frozen parts never leave eval mode."""
        super().train(mode)
        for module in self._at_rest:
            module.eval()
        return self

    def forward(
        self,
        input_ids: torch.Tensor,  # [B, T]
        attention_mask: torch.Tensor,  # [B, T]
        labels: torch.Tensor,  # [B, T]
        pixel_values: torch.Tensor | None = None,  # [B - K, ...]
        features: torch.Tensor | None = None,  # [K, S, C] at the cut
        feature_rows: torch.Tensor | None = None,  # [K]
        resident_rows: torch.Tensor | None = None,  # [B]
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> dict[str, torch.Tensor]:
        """`loss`: mean over this batch's labels, or their sum over `num_items_in_batch` if that is given."""
        if pixel_values is not None and self.pixel_table is not None and pixel_values.dtype == torch.uint8:
            pixel_values = levels.pixel_values(pixel_values, self.pixel_table)
        if resident_rows is not None and self.resident is not None:
            features = self.resident.take(resident_rows)
        seen = self._features(pixel_values, features, feature_rows, input_ids.shape[0])
        loss = self.backbone.loss(seen, TextBatch(input_ids, attention_mask, labels))
        if num_items_in_batch is not None:
            loss = loss * (labels != -100).sum() / num_items_in_batch
        if self.training and self.applied.strategy.method == "ADALORA":
            loss = loss + orthogonality(self.model)
        return {"loss": loss}

    def _features(
        self, pixels: torch.Tensor | None, stored: torch.Tensor | None, rows: torch.Tensor | None, count: int
    ) -> torch.Tensor:
        """Features at the last seam for `count` rows, from stored ones at the cut and from pixels."""
        seams = self.backbone.seams
        cut = seams.index(self.cut) + 1 if self.cut is not None and stored is not None else 0
        if stored is None:
            assert pixels is not None, "a batch without images"
            return self._stages(pixels, seams)
        if pixels is None:
            return self._stages(stored, seams[cut:])
        assert rows is not None, "stored features and pixels, but not whose they are"
        computed = self._stages(pixels, seams[:cut])
        whole = computed.new_empty(count, *computed.shape[1:])
        computed_rows = torch.ones(count, dtype=torch.int8, device=rows.device).index_fill(0, rows, 0)
        others = computed_rows.argsort(descending=True, stable=True)[: len(computed)]  # where a mask would be waited for
        whole[rows], whole[others] = stored.to(whole.dtype), computed
        return self._stages(whole, seams[cut:])

    def _stages(self, inputs: torch.Tensor, seams: Sequence[Seam]) -> torch.Tensor:
        for seam in seams:
            with torch.set_grad_enabled(torch.is_grad_enabled() and seam not in self.frozen_seams):
                inputs = self.backbone.stage(seam.name, inputs, prompt=self.prompt)
        return inputs

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute activations in the backward pass; called by the Trainer, with its arguments."""
        model: Any = self.backbone.model
        model.activation_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers=every_n_layers, offload=offload)
