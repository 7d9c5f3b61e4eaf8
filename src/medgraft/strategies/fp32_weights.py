"""Which weights of a base a strategy needs in fp32; the others may be loaded in what they are computed in."""

from __future__ import annotations

from collections.abc import Callable

from peft.tuners import ia3, lora
from torch import nn

from medgraft.strategies.base import LINEAR_ROLES, Strategy
from medgraft.strategies.lora_inits import changes_base
from medgraft.types import Anatomy

# PEFT's methods, and options of LoRA, with which a frozen weight is used in its layer's product alone
_METHODS = ("LORA", "IA3")
_OPTIONS = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "use_rslora", "init_lora_weights", "rank_pattern",
    "alpha_pattern", "layers_to_transform", "layers_pattern", "feedforward_modules", "inference_mode", "fan_in_fan_out",
)  # fmt: skip


def needs_fp32(anatomy: Anatomy, strategy: Strategy) -> Callable[[str], bool]:
    """Whether `strategy` trains the base's weight of a name, or puts an adapter on it that uses its values otherwise."""
    plain = strategy.method in _METHODS and not changes_base(strategy) and strategy.options.keys() <= set(_OPTIONS)

    def needed(name: str) -> bool:
        part = anatomy.part_of(name)
        if part is None:
            return False
        plan, role = strategy.plan(part), anatomy.role_of(name)
        if plan.mode == "full":
            return not plan.bias_only and (plan.roles is None or role in plan.roles)
        return plan.mode == "adapter" and (not plain or (role in (plan.roles or ()) and role not in LINEAR_ROLES))

    return needed


def reads_once(adapter: nn.Module) -> bool:
    """Whether a PEFT layer uses the weight of the layer that it wraps only in that layer's product."""
    return isinstance(adapter, ia3.Linear) or (isinstance(adapter, lora.Linear) and not adapter.lora_variant)
