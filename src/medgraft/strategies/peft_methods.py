"""PEFT's methods by name: their config classes, options and target modules."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from pydantic import JsonValue
from torch import nn

from medgraft.errors import ConfigError, StrategyError, UnknownNameError, suggestion
from medgraft.strategies.base import ADAPTER, LINEAR_ROLES, PartPlan, Strategy
from medgraft.strategies.layers import selected_layers
from medgraft.strategies.lora_inits import check_init
from medgraft.strategies.unsuited import UNSUITED, UNSUITED_OPTIONS
from medgraft.types import ROLES, Anatomy, Role

_OURS = ("target_modules", "feedforward_modules", "task_type", "peft_type", "inference_mode", "base_model_name_or_path")


def methods() -> tuple[str, ...]:
    """Every PEFT type that works on chosen linear layers (and LN_TUNING, which does the same for norms)."""
    targeted = (t.value for t, config in PEFT_TYPE_TO_CONFIG_MAPPING.items() if "target_modules" in _fields(config))
    return tuple(sorted(set(targeted) - set(UNSUITED)))


def peft_strategy(name: str) -> Strategy:
    """The strategy `peft:<METHOD>`: the method with PEFT's defaults on the linear layers of every part."""
    method = name.partition(":")[2].upper()
    if method in UNSUITED:
        raise StrategyError(f"PEFT method {method} {UNSUITED[method]}. Methods for linear layers: {', '.join(methods())}.")
    if method not in methods():
        raise UnknownNameError(
            f"Unknown PEFT method {method!r} in {name!r}.{suggestion(method.lower(), [m.lower() for m in methods()])} "
            f"Known: {', '.join(methods())}."
        )
    roles: tuple[Role, ...] | None = ("norm",) if method == "LN_TUNING" else None
    plan = PartPlan(mode="adapter", roles=roles) if roles else ADAPTER
    return Strategy(vision=plan, bridge=plan, text=plan, method=method, learning_rate=2e-3)


def peft_config(strategy: Strategy, anatomy: Anatomy, model: nn.Module) -> PeftConfig:
    """The method's PEFT config, with target modules from `anatomy`.

    It has no task type, because BLIP's forward does not accept the arguments of PEFT's task wrappers.
    """
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[_peft_type(strategy.method)]
    fields = _fields(config_class)
    check_options(strategy)
    options = dict(strategy.options)
    target = _target(strategy, anatomy, model, ROLES)
    named = [name for name, _ in model.named_modules() if re.fullmatch(target, name)]
    leaves = {name: model.get_submodule(name) for name in named if not any(model.get_submodule(name).children())}
    matched = [name for name, leaf in leaves.items() if any(True for _ in leaf.parameters())]  # BEiT's last norm may be none
    if not matched:
        near = ", ".join(name for name, module in model.named_modules() if isinstance(module, nn.Linear)) or "none"
        raise StrategyError(
            f"The strategy's adapter matches no module of this backbone: {target!r}. Linear modules: {near[:300]}."
        )
    _check_parts(strategy, anatomy, model, matched)
    _check_modules_to_save(options.get("modules_to_save"), model, matched)
    # if a role matches a container, such as embeddings, PEFT needs the names of its layers
    extra: dict[str, Any] = {"target_modules": target if matched == named else matched}
    if "feedforward_modules" in fields:  # there IA3 scales inputs instead of outputs
        mlp = _target(strategy, anatomy, model, ("mlp",))
        extra["feedforward_modules"] = mlp or []
    if strategy.method == "ADALORA" and "total_step" not in options:
        extra["total_step"] = 10_000  # replaced by the run's number of steps when training begins
    try:
        return config_class(**extra, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"PEFT's {config_class.__name__} does not accept the options {options}: {error}") from None


def _target(strategy: Strategy, anatomy: Anatomy, model: nn.Module, among: tuple[Role, ...]) -> str:
    """One regular expression for the modules that get the adapter and have a role in `among`."""
    patterns = []
    for part in anatomy.parts:
        plan = strategy.plan(part)
        if plan.mode == "adapter":
            wanted = [role for role in plan.roles or LINEAR_ROLES if role in among]
            pattern, layers = anatomy.pattern(part, wanted), selected_layers(model, anatomy, part, plan)
            patterns.append(rf"(?=({'|'.join(map(re.escape, layers))})\.){pattern}" if layers and pattern else pattern)
    return "|".join(pattern for pattern in patterns if pattern)


def _check_parts(strategy: Strategy, anatomy: Anatomy, model: nn.Module, matched: Sequence[str]) -> None:
    """Raise StrategyError for a part that gets an adapter in no module; a bridge may lack the roles, as a single layer does."""
    found = {anatomy.part_of(name) for name in matched}
    for part in anatomy.parts:
        plan = strategy.plan(part)
        if plan.mode == "adapter" and part not in found and not (part == "bridge" and plan.roles and not plan.layers):
            roles = " or ".join(plan.roles or LINEAR_ROLES)
            if plan.layers:
                raise StrategyError(
                    f"strategy.{part}.layers={plan.layers}: there is no module of role {roles} in these layers."
                )
            raise StrategyError(
                f"The strategy adapts part {part!r}, in which {type(model).__name__} has no module of role {roles}. "
                f"Choose other roles (strategy.{part}.roles=...), or set strategy.{part}=frozen."
            )


def _check_modules_to_save(wanted: Any, model: nn.Module, adapted: Sequence[str]) -> None:
    """Raise StrategyError for no such module, or one with modules that get an adapter, which PEFT could not load again."""
    for end in [wanted] if isinstance(wanted, str) else wanted or ():
        saved = [name for name, _ in model.named_modules() if name.endswith(str(end))]
        if not saved:
            raise StrategyError(f"modules_to_save: no module of this backbone has a name that ends with {end!r}.")
        excluded = re.compile(rf"(^|.*\.){end}($|\..*)")  # by PEFT, from the modules that get an adapter
        both = [name for name in adapted if name.startswith(tuple(f"{s}." for s in saved)) and not excluded.match(name)]
        nested = [name for name in saved if name.startswith(tuple(f"{s}." for s in saved))]
        if both or nested:
            raise StrategyError(
                f"modules_to_save={end!r} is {saved[0]}, and inside of it {(both or nested)[0]}, which PEFT cannot load "
                "again. Write whole names, or train the part in place, such as strategy.text=full."
            )


def check_options(strategy: Strategy) -> None:
    """Raise ConfigError for an option that PEFT's method lacks or that cannot work here, UnknownNameError for its method."""
    if strategy.loraplus_lr_ratio is not None and not (strategy.uses_adapter and strategy.method == "LORA"):
        trained = f"PEFT's {strategy.method}" if strategy.uses_adapter else "no adapter"
        raise ConfigError(f"loraplus_lr_ratio is for LoRA, whose B it trains faster, and this strategy has {trained}.")
    if not strategy.uses_adapter:
        return
    fields = _fields(PEFT_TYPE_TO_CONFIG_MAPPING[_peft_type(strategy.method)])
    for key in strategy.options:
        if key not in fields or key in _OURS:
            known = sorted(set(fields) - set(_OURS))
            why = "is set by medgraft from the anatomy" if key in _OURS else "is not one of its options"
            raise ConfigError(
                f"PEFT method {strategy.method}: {key!r} {why}.{suggestion(key, [*known, *Strategy.model_fields])} "
                f"Options: {', '.join(known)}."
            )
        if key in UNSUITED_OPTIONS and strategy.options[key]:
            raise ConfigError(f"{key} cannot be set: with it an adapter {UNSUITED_OPTIONS[key]}. Leave it out.")
    check_init(strategy)


def options_in(method: str, content: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The options of a PEFT method in the content of an adapter_config.json that are not PEFT's defaults."""
    fields = _fields(PEFT_TYPE_TO_CONFIG_MAPPING[_peft_type(method)])
    mine = {key: value for key, value in content.items() if key in fields and key not in (*_OURS, "peft_version", "revision")}
    return {key: value for key, value in mine.items() if isinstance(value, int | float | str) and value != fields[key].default}


def _fields(config: type[PeftConfig]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(config) if field.init}


def _peft_type(method: str) -> Any:
    for kind in PEFT_TYPE_TO_CONFIG_MAPPING:
        if kind.value == method.upper():
            return kind
    raise UnknownNameError(f"Unknown PEFT method {method!r}.{suggestion(method, methods())} Known: {', '.join(methods())}.")
