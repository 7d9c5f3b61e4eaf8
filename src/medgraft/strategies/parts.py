"""Apply a strategy to a model: add adapters, unfreeze what is trained in full, and check that nothing else is trainable."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from medgraft.errors import ConfigError, StrategyError
from medgraft.strategies.base import PartPlan, Strategy
from medgraft.strategies.peft_methods import peft_config
from medgraft.strategies.quantization import quantized_modules
from medgraft.types import Anatomy, Part, lies_in

if TYPE_CHECKING:
    from peft import PeftConfig

_WRAPPED = ("base_model.model.", "base_model.")


@dataclass(frozen=True)
class Applied:
    """The result of applying a strategy. `model` is the PeftModel, or the backbone's model if there is no adapter.

    `direct` are the names of parameters trained in place, `adapter_parameters` of those that PEFT added.
    """

    strategy: Strategy
    model: nn.Module
    matched_modules: tuple[str, ...]
    quantized: tuple[str, ...]
    direct: tuple[str, ...]
    adapter_parameters: tuple[str, ...]
    frozen_parts: tuple[Part, ...]
    trainable_parameters: int
    total_parameters: int

    def summary(self) -> str:
        """One line: how many parameters are trained, their share, adapted modules and quantisation."""
        share = 100 * self.trainable_parameters / max(self.total_parameters, 1)
        text = f"{self.trainable_parameters:,} of {self.total_parameters:,} parameters trained ({share:.2f} %)"
        if self.matched_modules:
            text += f", {self.strategy.method} on {len(self.matched_modules)} modules"
        if self.quantized:
            text += f", {len(self.quantized)} modules quantised to {self.strategy.quantization}"
        return text


def apply_strategy(model: nn.Module, anatomy: Anatomy, strategy: Strategy, base: str | None = None) -> Applied:
    """Change `model` so that exactly the parameters selected by `strategy` are trainable; `base` goes into PEFT's config.

    StrategyError if the backbone has none of the trained parts, a plan matches nothing, or it would train quantised weights.
    """
    anatomy = anatomy.present(name for name, _ in model.named_parameters())
    _check_parts(anatomy, strategy)
    quantized = quantized_modules(model)
    if strategy.quantization != "none" and not quantized:
        raise StrategyError(f"The base was loaded without {strategy.quantization}; pass the strategy to load_backbone.")
    model.requires_grad_(False)
    before = {id(parameter) for parameter in model.parameters()}
    wrapped: nn.Module = model
    matched: tuple[str, ...] = ()
    if strategy.uses_adapter:
        wrapped, matched = _add_adapter(model, anatomy, strategy, base)
    for name, parameter in _full_parameters(model, anatomy, strategy):
        if not parameter.is_floating_point():
            raise StrategyError(f"{name} is quantised and cannot be trained; freeze its part or give it an adapter.")
        parameter.requires_grad_(True)
    trained = {bare_name(n): p for n, p in wrapped.named_parameters() if p.requires_grad}
    direct = tuple(name for name, parameter in trained.items() if id(parameter) in before)
    added = tuple(name for name, parameter in trained.items() if id(parameter) not in before)
    _check_scope(anatomy, strategy, direct, added)
    return Applied(
        strategy=strategy,
        model=wrapped,
        matched_modules=matched,
        quantized=quantized,
        direct=direct,
        adapter_parameters=added,
        frozen_parts=tuple(p for p in anatomy.parts if strategy.plan(p).mode == "frozen"),
        trainable_parameters=sum(p.numel() for p in trained.values()),
        total_parameters=sum(_size(p) for p in wrapped.parameters()),
    )


def _check_parts(anatomy: Anatomy, strategy: Strategy) -> None:
    if not strategy.trains:
        return
    if not any(strategy.plan(part).mode != "frozen" for part in anatomy.parts):
        raise StrategyError(
            f"The strategy trains only {', '.join(p for p, plan in strategy.plans.items() if plan.mode != 'frozen')}, "
            f"but this backbone has {', '.join(anatomy.parts)}."
        )


def _add_adapter(model: nn.Module, anatomy: Anatomy, strategy: Strategy, base: str | None) -> tuple[nn.Module, tuple[str, ...]]:
    config = peft_config(strategy, anatomy, model, base)
    try:
        peft_model = add_peft(model, config, base)
    except (ValueError, TypeError, KeyError, NotImplementedError, AssertionError) as error:  # PEFT's methods raise any of these
        base_kind = f" to a base model in {strategy.quantization}" if strategy.quantization != "none" else ""
        raise ConfigError(f"PEFT method {strategy.method} cannot be applied{base_kind}: {error}") from error
    return peft_model, tuple(peft_model.base_model.targeted_module_names)


def add_peft(model: nn.Module, config: PeftConfig, base: str | None) -> Any:
    """PEFT's get_peft_model without warnings that do not apply here; `base` is the base's name in the saved config."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        for expected in (
            "base_model_name_or_path. was renamed",
            "fan_in_fan_out",
            "Failed to load the CUDA extension",
            "Unsupported layer type.*LayerNorm",
            "Setting boft_n",
        ):
            warnings.filterwarnings("ignore", message=f".*{expected}")
        peft_model = get_peft_model(model, config)
    for adapter_config in peft_model.peft_config.values():  # PEFT wrote this machine's path of the model here
        adapter_config.base_model_name_or_path = base
    return peft_model


def _full_parameters(model: nn.Module, anatomy: Anatomy, strategy: Strategy) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that are trained in place; StrategyError for a part without a match."""
    for part in anatomy.parts:
        plan = strategy.plan(part)
        if plan.mode != "full":
            continue
        own = [(n, p) for n, p in model.named_parameters() if anatomy.part_of(n) == part and not lies_in(n, anatomy.never_run)]
        found = [(n, p) for n, p in own if _wanted(n, anatomy, plan)]
        if not found and part != "bridge":  # a bridge may be a single linear layer, for example without norms
            roles = f" of role {' or '.join(plan.roles)}" if plan.roles else ""
            kind = "biases" if plan.bias_only else "parameters"
            raise StrategyError(f"The strategy trains {kind}{roles} in part {part!r}, but it has none.")
        yield from found


def _wanted(name: str, anatomy: Anatomy, plan: PartPlan) -> bool:
    if plan.bias_only and not name.endswith("bias"):
        return False
    return plan.roles is None or anatomy.role_of(name) in plan.roles


def _check_scope(anatomy: Anatomy, strategy: Strategy, direct: tuple[str, ...], added: tuple[str, ...]) -> None:
    for mode, names in (("full", direct), ("adapter", added)):
        for name in names:
            part = anatomy.part_of(name)
            if part is not None and strategy.plan(part).mode != mode:
                raise StrategyError(f"{name} became trainable, but part {part!r} is {strategy.plan(part).mode!r}.")
    assert not strategy.trains or direct or added, "a strategy that trains something made nothing trainable"


def bare_name(name: str) -> str:
    """A parameter's name in the backbone's own model, without PEFT's prefix."""
    for prefix in _WRAPPED:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def _size(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)  # bitsandbytes packs two 4-bit values into a byte
    return int(state.shape.numel()) if state is not None else parameter.numel()
