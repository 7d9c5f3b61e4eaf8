"""What AdaLoRA (Zhang et al. 2023, arXiv 2303.10512) adds to a training loop: a regulariser and rank allocation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
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


_FILE = "ranks.safetensors"  # in a checkpoint
_PLAN = ("rank_pattern", "total_step", "tinit", "tfinal")  # fields of PEFT's config that training sets


class RankAllocation(TrainerCallback):
    """Tells PEFT the number of steps, and lets it move rank between layers after each step."""

    def __init__(self, model: Any):
        self.model = model

    def save(self, checkpoint: Path) -> None:
        """Write the importance scores, the ranks chosen so far and the plan into a checkpoint."""
        scores, config = self._scores(), self.model.peft_config["default"]
        tensors = {f"{kind}/{name}": score for kind, of in scores.items() for name, score in of.items()}
        save_file(tensors, checkpoint / _FILE, metadata={name: json.dumps(getattr(config, name)) for name in _PLAN})

    def load(self, checkpoint: Path) -> None:
        """Go on with what `save` wrote."""
        scores, config = self._scores(), self.model.peft_config["default"]
        device = next(self.model.parameters()).device
        with safe_open(checkpoint / _FILE, framework="pt", device=str(device)) as file:
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                kind, _, name = key.partition("/")
                scores[kind][name] = file.get_tensor(key)
            for name, value in file.metadata().items():
                setattr(config, name, json.loads(value))

    def _scores(self) -> dict[str, dict[str, torch.Tensor]]:
        allocator = self.model.base_model.rankallocator
        return {kind: getattr(allocator, kind) for kind in ("ipt", "exp_avg_ipt", "exp_avg_unc")}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        config = self.model.peft_config["default"]
        config.total_step = state.max_steps
        if config.tinit + config.tfinal >= state.max_steps:
            config.tinit, config.tfinal = state.max_steps // 10, state.max_steps // 4
        self.model.base_model.rankallocator.set_total_step(state.max_steps)

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.model.base_model.update_and_allocate(state.global_step)
