"""What the Trainer trains: a backbone with a strategy applied, its frozen parts at rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from medgraft.backbones import Backbone, TextBatch
from medgraft.strategies import Applied
from medgraft.train.adalora import orthogonality


class CaptioningModule(nn.Module):
    """Loss of captions given images.

    Frozen parts stay in eval mode; below the seam no graph is built if nothing trains there.
    """

    accepts_loss_kwargs = True  # the Trainer then hands over the number of labels of the whole accumulated batch

    def __init__(self, backbone: Backbone, applied: Applied):
        super().__init__()
        self.backbone = backbone
        self.applied = applied
        self.model = applied.model
        self.prefix_is_frozen = not any(
            parameter.requires_grad and backbone.anatomy.part_of(name) in backbone.seam.prefix
            for name, parameter in backbone.model.named_parameters()
        )

    def train(self, mode: bool = True) -> CaptioningModule:
        """As nn.Module.train, but frozen parts never leave eval mode."""
        super().train(mode)
        for part in self.applied.frozen_parts:
            self.backbone.model.get_submodule(self.backbone.anatomy.parts[part].prefix).eval()
        return self

    def forward(
        self,
        pixel_values: torch.Tensor,  # [B, 3, H, W]
        input_ids: torch.Tensor,  # [B, T]
        attention_mask: torch.Tensor,  # [B, T]
        labels: torch.Tensor,  # [B, T]
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> dict[str, torch.Tensor]:
        """`loss`: mean over this batch's labels, or their sum over `num_items_in_batch` if that is given."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.prefix_is_frozen):
            features = self.backbone.encode(pixel_values)
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
