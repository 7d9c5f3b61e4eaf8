"""What AdaLoRA (Zhang et al. 2023, arXiv 2303.10512) adds to a training loop: a regulariser and rank allocation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


def orthogonality(model: nn.Module) -> torch.Tensor:
    """The regulariser of the paper's equation 4: the mean distance of each layer's two factors from orthogonality, weighted."""
    terms = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("lora_A" in name or "lora_B" in name):
            gram = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            terms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)))
    weight: float = model.peft_config["default"].orth_reg_weight  # type: ignore[union-attr,index]
    return weight * torch.stack(terms).mean()


def has_ranks(model: Any) -> bool:
    """Whether the ranks of the layers were chosen already, by the training of an adapter that this one goes on from."""
    return bool(model.peft_config["default"].rank_pattern)


class RankAllocation(TrainerCallback):
    """Tells PEFT the number of steps, and lets it move rank between layers after each step."""

    def __init__(self, model: Any):
        self.model = model

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        config = self.model.peft_config["default"]
        config.total_step = state.max_steps
        if config.tinit + config.tfinal >= state.max_steps:
            config.tinit, config.tfinal = state.max_steps // 10, state.max_steps // 4
        self.model.base_model.rankallocator.set_total_step(state.max_steps)

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.model.base_model.update_and_allocate(state.global_step)
