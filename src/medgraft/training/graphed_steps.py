"""Decides whether a training run can replay its steps as CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate import DistributedType
from torch import nn

from medgraft.training.module import CaptioningModule

if TYPE_CHECKING:
    from medgraft.training.trainer import CaptionTrainer

_logger = logging.getLogger(__name__)
_ITEMS = "num_items_in_batch"


class GraphedSteps:
    """Replays training steps as CUDA graphs, for batches that allow it."""

    def __init__(self, trainer: CaptionTrainer, graphs: Any):
        self._trainer = trainer
        self._graphs = graphs

    def step(self, batch: Mapping[str, Any], items: torch.Tensor | int | None) -> torch.Tensor | None:
        """The loss [] of a whole batch, with gradients in the parameters; None if the step must run eagerly."""
        rows = batch["input_ids"].shape[0]
        mixed = "pixel_values" in batch and "features" in batch
        no_tensors = "prompts" in batch or "image_counts" in batch  # which a graph cannot hold
        if not isinstance(items, torch.Tensor) or mixed or no_tensors or rows != self._trainer.args.train_batch_size:
            return None
        loss: torch.Tensor | None = self._graphs.step({**batch, _ITEMS: items})
        return loss

    def close(self) -> None:
        """Free the graphs and their memory."""
        self._graphs.close()


def graphed_steps(trainer: CaptionTrainer) -> GraphedSteps | None:
    """Graphed steps for `trainer`; None if its backbone has no step replayer or this run cannot use it."""
    module = trainer.model
    assert isinstance(module, CaptioningModule)
    replayer = module.backbone.step_replayer
    if replayer is None:
        return None
    if (why_not := _obstacle(trainer)) is not None:
        _logger.info("training steps are not replayed as CUDA graphs: %s", why_not)
        return None
    model = trainer.model

    def loss_of(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        model.train()
        batch = {name: tensor for name, tensor in inputs.items() if name != _ITEMS}
        loss: torch.Tensor = trainer.compute_loss(model, batch, num_items_in_batch=inputs[_ITEMS])
        return loss

    parameters = [p for p in model.parameters() if p.requires_grad]
    return GraphedSteps(trainer, replayer(parameters, loss_of, deterministic=not _drops_out(model)))


def _obstacle(trainer: CaptionTrainer) -> str | None:
    args, module = trainer.args, trainer.model
    if args.device.type != "cuda":
        return "the run is not on an NVIDIA GPU"
    if trainer.accelerator.distributed_type != DistributedType.NO or trainer.model_wrapped is not module:
        return "the run has several processes"
    if args.fp16:
        return "the loss is scaled for fp16"
    if args.gradient_accumulation_steps > 1:
        return "gradients are accumulated"
    if args.activation_checkpointing:
        return "activations are checkpointed"
    assert isinstance(module, CaptioningModule)
    if module.neftune_noise_alpha is not None:
        return "embeddings get new noise at every step"
    strategy = module.applied.strategy
    if strategy.quantization == "int8":
        return "8-bit layers look for outliers, which the host waits for"
    if strategy.uses_adapter and (strategy.method == "ADALORA" or strategy.options.get("module_dropout")):
        return f"the layers that {strategy.method} trains change from step to step"
    if any(getattr(layer, "layerdrop", 0) for layer in module.modules()):
        return "the model drops layers at random"
    return None


def _drops_out(model: nn.Module) -> bool:
    return any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in model.modules()) or any(
        getattr(getattr(layer, "config", None), "attention_dropout", 0) for layer in model.modules()
    )
