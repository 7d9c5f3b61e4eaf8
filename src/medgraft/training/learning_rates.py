"""Several learning rates in one optimiser: each part's own, and LoRA+'s for B (Hayou et al. 2024, arXiv 2402.12354)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft.optimizers import create_loraplus_optimizer
from torch import nn

from medgraft.errors import ConfigError
from medgraft.strategies import Applied, bare_name
from medgraft.types import Anatomy

_PLUS = ("", " embedding", " B", " B")  # PEFT's groups: A, embedding, B, and what of B does not decay


def peak_rates(applied: Applied, anatomy: Anatomy, peak: float) -> dict[str, dict[nn.Parameter, float]]:
    """The peak learning rate of every trained parameter, grouped by what it belongs to, such as `text` or `text B`.

    A part's rate is `peak` times its plan's `lr_scale`. With LoRA+ the adapter's parameters have the rates that PEFT's
    `create_loraplus_optimizer` gives them, times this scale; those trained in place have none of it.
    """
    plus: dict[nn.Parameter, tuple[str, float]] = {}
    if applied.strategy.loraplus_lr_ratio is not None:
        grouped = create_loraplus_optimizer(
            applied.model, torch.optim.SGD, lr=peak, loraplus_lr_ratio=applied.strategy.loraplus_lr_ratio
        )
        plus = {p: (kind, g["lr"]) for kind, g in zip(_PLUS, grouped.param_groups, strict=True) for p in g["params"]}
    rates: dict[str, dict[nn.Parameter, float]] = {}
    for name, parameter in applied.model.named_parameters():
        if parameter.requires_grad:
            part = anatomy.part_of(bare_name(name))
            kind, rate = plus[parameter] if plus and bare_name(name) not in applied.direct else ("", peak)
            scale = applied.strategy.plan(part).lr_scale if part else 1.0
            rates.setdefault(f"{part or 'shared'}{kind}", {})[parameter] = rate * scale
    return rates


def set_rates(optimizer: torch.optim.Optimizer, rates: Mapping[nn.Parameter, float], peak: float) -> None:
    """Split the groups of a new `optimizer`, which has the rate `peak`, so that each parameter has its rate in `rates`.

    Weight decay and all other settings stay those of its group. ConfigError for an optimiser with rates of its own.
    """
    groups = []
    for group in optimizer.param_groups:
        if group["lr"] != peak or not rates.keys() >= set(group["params"]):
            raise ConfigError(
                f"train.optim: {type(optimizer).__name__} has rates or parameters of its own, so strategy.PART.lr_scale and "
                "strategy.loraplus_lr_ratio cannot be used with it. Use adamw_torch, or leave them out."
            )
        several = dict.fromkeys(rates[parameter] for parameter in group["params"])
        for rate in sorted(several, key=lambda rate: rate != peak) or [peak]:
            groups.append({**group, "params": [p for p in group["params"] if rates[p] == rate], "lr": rate})
    optimizer.param_groups = [group for group in groups if group["params"]]
