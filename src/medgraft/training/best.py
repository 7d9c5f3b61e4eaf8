"""The best weights of a training, by a score of validation captions or by the validation loss, and when to stop early."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from medgraft.training.chosen_weights import ChosenWeights

LOSS = "loss"
_logger = logging.getLogger(__name__)
_FILE = "best.safetensors"  # in a checkpoint


@dataclass
class Best(TrainerCallback):
    """Keeps a copy of the weights with the best score in memory and in each checkpoint; stops after `patience` validations.

    `by` is the name of a score of `measure`, which captions validation images and scores the captions, or `loss`.
    `less_is_better` says which way is better.
    """

    by: str
    less_is_better: bool
    patience: int | None = None
    measure: Callable[[], Mapping[str, float]] | None = None
    scores: list[tuple[int, float | None]] = field(default_factory=list)
    step: int | None = None
    _tensors: dict[str, torch.Tensor] = field(default_factory=dict)  # trained tensors, in main memory
    _plan: dict[str, Any] = field(default_factory=dict)  # AdaLoRA's ranks at that step

    def measured(self) -> dict[str, float]:
        """The scores of now, the same in all processes; none for the loss, which the Trainer computes."""
        found = [dict(self.measure()) if self.measure else {}]
        return dict(broadcast_object_list(found)[0])

    @property
    def exhausted(self) -> bool:
        """Whether the last `patience` validations were not better than one before."""
        if self.patience is None or not self.scores:
            return False
        steps = [step for step, _ in self.scores]
        return len(steps) - (steps.index(self.step) + 1 if self.step in steps else 0) >= self.patience

    def chosen(self) -> ChosenWeights:
        """How the weights were chosen."""
        value = dict(self.scores)[self.step] if self.step is not None else None
        return ChosenWeights(self.by, self.step, value, tuple(self.scores), self.exhausted)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        value = kwargs["metrics"].get(f"eval_{self.by}")
        value = float(value) if value is not None and math.isfinite(value) else None
        if value is None:
            _logger.warning("the validation at step %d has no score %s", state.global_step, self.by)
        if value is not None and self._is_better(value):
            self.step, model = state.global_step, kwargs["model"]
            self._tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in _trained(model).items()}
            self._plan = _ranks(model)
        self.scores.append((state.global_step, value))
        if self.exhausted:
            control.should_training_stop = True

    def _is_better(self, value: float) -> bool:
        known = [score for _, score in self.scores if score is not None]
        return not known or (value < min(known) if self.less_is_better else value > max(known))

    def save(self, checkpoint: Path) -> dict[str, Any]:
        """Write the best weights into a checkpoint, and return what else `load` needs."""
        if self._tensors:
            save_file(self._tensors, checkpoint / _FILE)
        return {"step": self.step, "scores": self.scores, "ranks": self._plan}

    def load(self, checkpoint: Path, saved: Mapping[str, Any]) -> None:
        """Go on with what `save` wrote and returned."""
        self.step, self._plan = saved["step"], dict(saved["ranks"])
        self.scores = [(step, value) for step, value in saved["scores"]]
        self._tensors = load_file(checkpoint / _FILE) if self.step is not None else {}

    def restore(self, model: nn.Module, last: int) -> None:
        """Put the best weights into the model, if they are not those of the step `last`, which it has."""
        _logger.info("%s", self.chosen())
        if self.step in (None, last):
            return
        with torch.no_grad():
            for name, parameter in _trained(model).items():
                parameter.copy_(self._tensors[name])
        if self._plan:
            vars(model.applied.model.peft_config["default"]).update(self._plan)  # type: ignore[union-attr,index]


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _ranks(model: Any) -> dict[str, Any]:
    """AdaLoRA's ranks as they are now, which `restore` puts back with the weights; nothing for other methods."""
    if model.applied.strategy.method != "ADALORA" or not model.applied.adapter_parameters:
        return {}
    return {"rank_pattern": model.applied.model.peft_config["default"].rank_pattern}
