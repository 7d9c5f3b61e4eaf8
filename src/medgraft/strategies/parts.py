"""Apply a strategy to a model: add adapters, unfreeze what is trained in full, and check that nothing else is trainable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn

from medgraft.errors import ConfigError, StrategyError
from medgraft.strategies.base import FROZEN, PartPlan, Strategy, bare_name
from medgraft.strategies.layers import selected_layers
from medgraft.strategies.lora_inits import changes_base
from medgraft.strategies.peft_methods import peft_config
from medgraft.strategies.peft_warnings import logged_warnings
from medgraft.strategies.quantization import quantized_modules
from medgraft.types import Anatomy, Part, lies_in


@dataclass(frozen=True)
class Applied:
    """The result of applying a strategy. `model` is the PeftModel, or the backbone's model if there is no adapter.

    `direct` are the names of parameters trained in place, `adapter_parameters` of those in PEFT's files. `initial` are
    the adapter's first tensors if its initialisation changed the base.
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
    initial: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def summary(self) -> str:
        """One line: how many parameters are trained, their share, adapted modules and quantisation."""
        share = 100 * self.trainable_parameters / max(self.total_parameters, 1)
        text = f"{self.trainable_parameters:,} of {self.total_parameters:,} parameters trained ({share:.2f} %)"
        if self.matched_modules:
            text += f", {self.strategy.method} on {len(self.matched_modules)} modules"
        if self.quantized:
            text += f", {len(self.quantized)} modules quantised to {self.strategy.quantization}"
        return text


def apply_strategy(
    model: nn.Module, anatomy: Anatomy, strategy: Strategy, attach: Callable[[], nn.Module] | None = None
) -> Applied:
    """Change `model` so that exactly the parameters selected by `strategy` are trainable.

    `attach`, if given, puts the weights of an adapter made with `strategy` onto `model`, makes them trainable and returns the
    whole; without it new adapters are added.
    StrategyError if the backbone has none of the trained parts, a plan matches nothing, or it would train quantised weights.
    """
    anatomy = anatomy.present(name for name, _ in model.named_parameters())
    _check_parts(anatomy, strategy)
    quantized = quantized_modules(model)
    if strategy.quantization != "none" and not quantized:
        raise StrategyError(f"The base was loaded without {strategy.quantization}; pass the strategy to load_backbone.")
    model.requires_grad_(False)
    before = {id(parameter) for parameter in model.parameters()}
    wrapped: Any = model
    if attach is not None:
        wrapped = attach()
    elif strategy.uses_adapter:
        wrapped = _add_adapter(model, anatomy, strategy)
    with logged_warnings():
        saved = get_peft_model_state_dict(wrapped, save_embedding_layers=False) if strategy.uses_adapter else {}
    initial = {name: tensor.detach().clone() for name, tensor in saved.items()} if changes_base(strategy) and not attach else {}
    places = {tensor.data_ptr() for tensor in saved.values()}
    by_peft = {id(p) for p in wrapped.parameters() if p.requires_grad and p.data_ptr() in places}
    for name, parameter in _full_parameters(model, anatomy, strategy):
        if not parameter.is_floating_point() or name.rpartition(".")[0] in quantized:
            raise StrategyError(f"{name} is quantised and cannot be trained; freeze its part or give it an adapter.")
        parameter.requires_grad_(True)
        by_peft.discard(id(parameter))
    trained = {bare_name(n): p for n, p in wrapped.named_parameters() if p.requires_grad}
    before -= by_peft  # PEFT's option `bias` trains parameters of the base, and its files hold them
    direct = tuple(name for name, parameter in trained.items() if id(parameter) in before)
    added = tuple(name for name, parameter in trained.items() if id(parameter) not in before)
    if attach is None:
        _check_scope(anatomy, strategy, direct, added)
    parts = {anatomy.part_of(name) for name in trained}
    if attach is not None:  # a plain PEFT adapter may be in some of the parts
        unused = [part for part in anatomy.parts if strategy.plan(part).mode == "adapter" and part not in parts]
        strategy = strategy.model_copy(update=dict.fromkeys(unused, FROZEN))
    return Applied(
        strategy=strategy,
        model=wrapped,
        matched_modules=tuple(wrapped.base_model.targeted_module_names) if strategy.uses_adapter else (),
        quantized=quantized,
        direct=direct,
        adapter_parameters=added,
        initial=initial,
        frozen_parts=tuple(p for p in anatomy.parts if strategy.plan(p).mode == "frozen" and p not in parts),
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
    for part, plan in strategy.plans.items():
        if part not in anatomy.parts and (plan.layers is not None or plan.lr_scale != 1):
            field = "lr_scale" if plan.layers is None else "layers"
            raise StrategyError(f"strategy.{part}.{field} is set, but this backbone has only {', '.join(anatomy.parts)}.")


def _add_adapter(model: nn.Module, anatomy: Anatomy, strategy: Strategy) -> PeftModel:
    config = peft_config(strategy, anatomy, model)
    try:
        with logged_warnings():
            peft_model: nn.Module = get_peft_model(model, config)
    except (ValueError, TypeError, KeyError, NotImplementedError, AssertionError) as error:  # PEFT's methods raise any of these
        if (odd := _unadaptable(error, model, anatomy, strategy)) is not None:
            raise StrategyError(odd) from error
        base_kind = f" to a base model in {strategy.quantization}" if strategy.quantization != "none" else ""
        raise ConfigError(f"PEFT method {strategy.method} cannot be applied{base_kind}: {error}") from error
    return peft_model


def _unadaptable(error: Exception, model: nn.Module, anatomy: Anatomy, strategy: Strategy) -> str | None:
    """What to say if PEFT's `error` is about a kind of layer that the method does not adapt, such as GPT-2's Conv1D."""
    kind = str(error).removeprefix("Target module ").partition("(")[0]
    if not str(error).startswith("Target module ") or kind == "Linear":
        return None
    parts = {anatomy.part_of(name): None for name, module in model.named_modules() if type(module).__name__ == kind}
    return (
        f"PEFT's {strategy.method} does not adapt layers of class {kind}, which part {next(iter(parts), None)!r} has. "
        "Freeze this part, or use another method, such as LoRA."
    )


def _full_parameters(model: nn.Module, anatomy: Anatomy, strategy: Strategy) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that are trained in place; StrategyError for a part without a match."""
    for part in anatomy.parts:
        plan = strategy.plan(part)
        if plan.mode != "full":
            continue
        own = [(n, p) for n, p in model.named_parameters() if anatomy.part_of(n) == part and not lies_in(n, anatomy.never_run)]
        layers = selected_layers(model, anatomy, part, plan)
        found = [(n, p) for n, p in own if _wanted(n, anatomy, plan) and (layers is None or _inside(n, layers))]
        if not found and part != "bridge":  # a bridge may be a single linear layer, for example without norms
            roles = f" of role {' or '.join(plan.roles)}" if plan.roles else ""
            where = f" in layers {plan.layers}" if plan.layers else ""
            kind = "biases" if plan.bias_only else "parameters"
            raise StrategyError(f"The strategy trains {kind}{roles}{where} in part {part!r}, but it has none.")
        yield from found


def _wanted(name: str, anatomy: Anatomy, plan: PartPlan) -> bool:
    if plan.bias_only and not name.endswith("bias"):
        return False
    return plan.roles is None or anatomy.role_of(name) in plan.roles


def _inside(name: str, modules: tuple[str, ...]) -> bool:
    return name.startswith(tuple(f"{module}." for module in modules))


def _check_scope(anatomy: Anatomy, strategy: Strategy, direct: tuple[str, ...], added: tuple[str, ...]) -> None:
    for mode, names in (("full", direct), ("adapter", added)):
        for name in names:
            part = anatomy.part_of(name)
            if part is not None and strategy.plan(part).mode != mode:
                raise StrategyError(
                    f"The options of PEFT's {strategy.method} train {name}, but part {part!r} is {strategy.plan(part).mode!r}. "
                    f"Set strategy.{part}={mode}, or change the option (bias, modules_to_save)."
                )
    assert not strategy.trains or direct or added, "a strategy that trains something made nothing trainable"


def _size(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)  # bitsandbytes packs two 4-bit values into a byte
    return int(state.shape.numel()) if state is not None else parameter.numel()
