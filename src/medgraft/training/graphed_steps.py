"""Which training runs can replay their steps as CUDA graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from accelerate import DistributedType
from torch import nn

from medgraft.acceleration.cuda_graphs import StepGraphs
from medgraft.errors import ConfigError
from medgraft.training.module import CaptioningModule

if TYPE_CHECKING:
    from medgraft.training.trainer import CaptionTrainer

_ITEMS = "num_items_in_batch"


class GraphedSteps:
    """The steps of a trainer as graphs, as far as its run and a batch allow."""

    def __init__(self, trainer: CaptionTrainer, graphs: StepGraphs):
        self._trainer = trainer
        self._graphs = graphs

    def step(self, batch: Mapping[str, torch.Tensor], items: torch.Tensor | int | None) -> torch.Tensor | None:
        """The loss [] of a whole batch, its gradients in the parameters; None if the step is to be done eagerly."""
        rows = batch["input_ids"].shape[0]
        mixed = "pixel_values" in batch and "features" in batch
        if not isinstance(items, torch.Tensor) or mixed or rows != self._trainer.args.train_batch_size:
            return None
        return self._graphs.step({**batch, _ITEMS: items})

    def close(self) -> None:
        """Free the graphs and their memory."""
        self._graphs.close()


def graphed_steps(trainer: CaptionTrainer, wanted: bool | Literal["auto"]) -> GraphedSteps | None:
    """The steps of `trainer` as graphs; None if they are not wanted, or cannot be.

    Raises ConfigError if they cannot be and `wanted` is true.
    """
    why_not = "they are off" if wanted is False else _obstacle(trainer)
    if why_not is not None:
        if wanted is True:
            raise ConfigError(f"acceleration.cuda_graphs=true, but {why_not}. Leave it at auto.")
        return None
    model = trainer.model

    def loss_of(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        model.train()
        batch = {name: tensor for name, tensor in inputs.items() if name != _ITEMS}
        loss: torch.Tensor = trainer.compute_loss(model, batch, num_items_in_batch=inputs[_ITEMS])
        return loss

    parameters = [p for p in model.parameters() if p.requires_grad]
    return GraphedSteps(trainer, StepGraphs(parameters, loss_of, deterministic=not _drops_out(model)))


def _obstacle(trainer: CaptionTrainer) -> str | None:
    args, module = trainer.args, trainer.model
    if args.device.type != "cuda":
        return "the run is not on an NVIDIA GPU"
    if trainer.accelerator.distributed_type != DistributedType.NO or trainer.model_wrapped is not module:
        return "the run has several processes"
    if args.gradient_accumulation_steps > 1:
        return "gradients are accumulated"
    if args.activation_checkpointing:
        return "activations are checkpointed"
    assert isinstance(module, CaptioningModule)
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
