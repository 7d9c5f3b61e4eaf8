"""What the Trainer trains: a backbone with a strategy applied, its frozen parts at rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from medgraft.backbones import Backbone, TextBatch
from medgraft.strategies import Applied
from medgraft.training.adalora import orthogonality


class CaptioningModule(nn.Module):
    """Loss of captions given images.

    Frozen parts stay in eval mode; below the seam no graph is built if nothing trains there.
    """

    accepts_loss_kwargs = True  # the Trainer then hands over the number of labels of the whole accumulated batch

    def __init__(self, backbone: Backbone, applied: Applied, prompt: str = ""):
        super().__init__()
        self.backbone = backbone
        self.applied = applied
        self.prompt = prompt
        self.model = applied.model
        trained = {backbone.anatomy.part_of(n) for n, p in backbone.model.named_parameters() if p.requires_grad}
        self.frozen_seams = tuple(seam for seam in backbone.seams if not trained & set(seam.prefix))

    def train(self, mode: bool = True) -> CaptioningModule:
        """As nn.Module.train, but frozen parts never leave eval mode."""
        super().train(mode)
        for name, module in self.backbone.model.named_modules():
            if self.backbone.anatomy.part_of(name) in self.applied.frozen_parts:
                module.eval()
        return self

    def forward(
        self,
        pixel_values: torch.Tensor,  # [B, ...]
        input_ids: torch.Tensor,  # [B, T]
        attention_mask: torch.Tensor,  # [B, T]
        labels: torch.Tensor,  # [B, T]
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> dict[str, torch.Tensor]:
        """`loss`: mean over this batch's labels, or their sum over `num_items_in_batch` if that is given."""
        features = pixel_values
        for seam in self.backbone.seams:
            with torch.set_grad_enabled(torch.is_grad_enabled() and seam not in self.frozen_seams):
                features = self.backbone.stage(seam.name, features, prompt=self.prompt)
        loss, _ = self.backbone.decode(features, TextBatch(input_ids, attention_mask, labels))
        if num_items_in_batch is not None:
            loss = loss * (labels != -100).sum() / num_items_in_batch
        if self.training and self.applied.strategy.method == "ADALORA":
            loss = loss + orthogonality(self.model)
        return {"loss": loss}

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute activations in the backward pass; called by the Trainer, with its arguments."""
        model: Any = self.backbone.model
        model.activation_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers=every_n_layers, offload=offload)
