"""The module that the Trainer trains: a backbone with a strategy applied; frozen parts stay in eval mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from medgraft.backbones import Backbone, TextBatch
from medgraft.backbones.side_by_side import side_by_side
from medgraft.data import levels
from medgraft.features import ResidentFeatures
from medgraft.strategies import Applied
from medgraft.training.adalora import orthogonality
from medgraft.types import Prompts, Seam


class CaptioningModule(nn.Module):
    """Computes the loss of captions given images.

    Frozen parts stay in eval mode, and seams with nothing trainable below them run without autograd. Stored features enter at
    the seam `prefix`; `resident` holds those in device memory. `pixel_table` turns uint8 levels into pixel values (see
    data/levels.py).
    """

    accepts_loss_kwargs = True  # makes the Trainer pass the number of labels in all accumulated batches

    neftune_noise_alpha: float | None = None  # see neftune.py
    pixel_table: torch.Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        applied: Applied,
        prompt: str = "",
        prefix: Seam | None = None,
        resident: ResidentFeatures | None = None,
        pixel_table: torch.Tensor | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.applied = applied
        self.prompt = prompt
        self.prefix = prefix
        self.resident = resident
        self.register_buffer("pixel_table", pixel_table, persistent=False)
        self.model = applied.model
        trained = {backbone.anatomy.part_of(n) for n, p in backbone.model.named_parameters() if p.requires_grad}
        prefixes = [p for part in applied.frozen_parts for p in backbone.anatomy.parts[part].prefixes]
        self._at_rest = [module for name, module in backbone.model.named_modules() if name in prefixes]
        self.frozen_seams = tuple(seam for seam in backbone.seams if not trained & set(seam.prefix))

    @property
    def _no_split_modules(self) -> list[str]:
        """The classes of layers that FSDP gathers one at a time: those that transformers names, without tied parameters."""
        every = Counter(parameter for _, parameter in self.named_parameters(remove_duplicate=False))
        tied = {parameter for parameter, count in every.items() if count > 1}
        layers = {type(module).__name__ for module in self.modules()}
        layers -= {type(module).__name__ for module in self.modules() if not tied.isdisjoint(module.parameters())}
        return sorted(layers.intersection(self.backbone.model._no_split_modules or ()))

    def to_device(self, device: torch.device) -> None:
        """Move to `device`, but leave a model that is spread over devices where it is."""
        if not self.backbone.placement.spreads:
            self.to(device)
        elif self.pixel_table is not None:
            self.pixel_table = self.pixel_table.to(device)

    def train(self, mode: bool = True) -> CaptioningModule:
        """Like nn.Module.train, but frozen parts stay in eval mode."""
        super().train(mode)
        for module in self._at_rest:
            module.eval()
        return self

    def forward(
        self,
        input_ids: torch.Tensor,  # [B, T]
        attention_mask: torch.Tensor,  # [B, T]
        labels: torch.Tensor,  # [B, T]
        pixel_values: torch.Tensor | None = None,  # [N - K, ...], of N images
        features: torch.Tensor | None = None,  # [K, S, C] at the seam `prefix`
        feature_rows: torch.Tensor | None = None,  # [K], places of `features` among the images
        num_items_in_batch: torch.Tensor | int | None = None,
        prompts: Sequence[str] | None = None,  # of each image, where a seam depends on them
        image_counts: Sequence[int] | None = None,  # of each row, where rows differ in it
    ) -> dict[str, torch.Tensor]:
        """`loss`: the mean over this batch's labels, or their sum divided by `num_items_in_batch` if that is given.

        Without `pixel_values` and `features`, `feature_rows` [N] are rows of `resident`, one for each image. All rows have
        equally many images, one after the other, or as many as `image_counts` says.
        """
        if pixel_values is not None and self.pixel_table is not None and pixel_values.dtype == torch.uint8:
            pixel_values = levels.pixel_values(pixel_values, self.pixel_table)
        if pixel_values is None and features is None and feature_rows is not None and self.resident is not None:
            features = self.resident.take(feature_rows)
        seen = self._features(pixel_values, features, feature_rows, prompts or self.prompt)
        loss = self._loss(seen, TextBatch(input_ids, attention_mask, labels), image_counts)
        if num_items_in_batch is not None:
            loss = loss * (labels != -100).sum() / num_items_in_batch
        if self.training and self.applied.strategy.method == "ADALORA":
            loss = loss + orthogonality(self.model)
        return {"loss": loss}

    def _loss(self, features: torch.Tensor, text: TextBatch, counts: Sequence[int] | None) -> torch.Tensor:
        """The mean loss of all labels, from features [N, S, C] of the rows' images."""
        rows = len(text.input_ids)
        if counts is None:
            ((_, seen),) = side_by_side(features, [len(features) // rows] * rows)
            return self.backbone.loss(seen, text)
        parts = [(seen, text.rows(of)) for of, seen in side_by_side(features, counts)]
        labels = [(part.labels != -100).sum() for _, part in parts]
        losses = [self.backbone.loss(*part) * count for part, count in zip(parts, labels, strict=True) if count]
        return torch.stack(losses).sum() / torch.stack(labels).sum()

    def _features(
        self, pixels: torch.Tensor | None, stored: torch.Tensor | None, rows: torch.Tensor | None, prompt: Prompts
    ) -> torch.Tensor:
        """Features [N, S, C] at the last seam, from stored features at the seam `prefix` and from pixels.

        Nothing at `prefix` or below depends on prompts that differ.
        """
        seams = self.backbone.seams
        below = seams.index(self.prefix) + 1 if self.prefix is not None and stored is not None else 0
        if stored is None:
            assert pixels is not None, "a batch without images"
            return self._stages(pixels, seams, prompt)
        if pixels is None:
            return self._stages(stored, seams[below:], prompt)
        assert rows is not None, "stored features and pixels, but no feature_rows"
        computed = self._stages(pixels, seams[:below], self.prompt)
        whole = computed.new_empty(len(stored) + len(computed), *computed.shape[1:])
        computed_rows = torch.ones(len(whole), dtype=torch.int8, device=rows.device).index_fill(0, rows, 0)
        others = computed_rows.argsort(descending=True, stable=True)[: len(computed)]  # a mask would synchronise with the GPU
        whole[rows], whole[others] = stored.to(whole.dtype), computed
        return self._stages(whole, seams[below:], prompt)

    def _stages(self, inputs: torch.Tensor, seams: Sequence[Seam], prompt: Prompts) -> torch.Tensor:
        for seam in seams:
            with torch.set_grad_enabled(torch.is_grad_enabled() and seam not in self.frozen_seams):
                inputs = self.backbone.forward_to(seam.name, inputs, prompt=prompt)
        return inputs

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute activations in the backward pass; the Trainer calls this with its arguments, without `use_reentrant`."""
        model: Any = self.backbone.model
        model.activation_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers=every_n_layers, offload=offload)
        # only reentrant checkpoints need gradients of the embeddings' outputs, which GIT changes in place
        model.disable_input_require_grads()
