"""Strategies as data: each part is frozen, trained in full or given an adapter, on a base in full precision or quantised."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator

from medgraft.errors import ConfigError, suggestion
from medgraft.strict_model import StrictModel, validated
from medgraft.types import PARTS, Part, Role

Mode = Literal["frozen", "full", "adapter"]
Quantization = Literal["none", "int8", "nf4", "fp4"]
_WRAPPED = ("base_model.model.", "base_model.")  # PEFT's prefixes of names
LINEAR_ROLES: tuple[Role, ...] = ("attn", "mlp", "cross", "proj")
_LAYERS = re.compile(r"(\d+(-\d*)?(,\d+(-\d*)?)*)?")


def _is_none(value: Any) -> bool:
    return value is None


def _is_one(value: float) -> bool:
    return value == 1


def layer_ranges(layers: str) -> list[tuple[float, float]]:
    """The first and the last layer of each range in `layers`; infinity where a range has no end."""
    ranges = [text.partition("-") for text in layers.split(",") if text]
    return [(int(first), int(last) if last else math.inf if dash else int(first)) for first, dash, last in ranges]


class PartPlan(StrictModel):
    """How one part is trained. `roles` and `layers` select modules to train or adapt; `bias_only` trains their biases alone.

    Layers are counted from 0 in the part's module tree (layers.py). Fields that older versions lack are written only when set.
    """

    mode: Mode = Field(default="frozen", description="frozen, full (trained in place) or adapter (a PEFT method)")
    roles: tuple[Role, ...] | None = Field(default=None, description="only modules of these roles, such as attn,cross")
    bias_only: bool = Field(default=False, description="with mode full: train only biases")
    layers: str | None = Field(
        default=None, exclude_if=_is_none, description="only these layers of the part, counted from 0, such as 8- or 0-3,10"
    )
    lr_scale: float = Field(
        default=1.0, gt=0, exclude_if=_is_one, description="this part's learning rate as a multiple of the run's"
    )

    @field_validator("roles", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("layers", mode="before")
    @classmethod
    def _ranges(cls, value: Any) -> Any:
        """Also a number or a list of them."""
        if value is None:
            return None
        text = "".join((",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)).split())
        if not _LAYERS.fullmatch(text):
            raise ValueError(f"{value!r} is no selection of layers. Write numbers and ranges from 0, such as 8- or 0-3,10-")
        return text


FROZEN, FULL, ADAPTER = PartPlan(), PartPlan(mode="full"), PartPlan(mode="adapter")


class Strategy(StrictModel):
    """Which parts are trained and how, and the quantisation of the base model.

    `method` is a PEFT type (`LORA`, `IA3`, ...) and `options` are fields of its config class. `learning_rate` is the peak
    rate unless the run sets one. `compute_dtype` applies to 4-bit layers; `auto` is bf16 only where the hardware supports
    it, since emulated bf16 took 25 times as long.
    """

    vision: PartPlan = Field(default=FROZEN, description="how the vision tower is trained")
    bridge: PartPlan = Field(default=FROZEN, description="how the modules between vision tower and text model are trained")
    text: PartPlan = Field(default=FROZEN, description="how the text model is trained")
    method: str = Field(default="LORA", description="the adapters' PEFT method, by PEFT's name")
    options: dict[str, JsonValue] = Field(
        default_factory=dict, description="fields of the method's PEFT config; each is a key of its own, such as strategy.r"
    )
    quantization: Quantization = Field(default="none", description="how the base model is loaded: none, int8, nf4 or fp4")
    double_quantization: bool = Field(default=True, description="quantise the scales of 4-bit weights too")
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="dtype that 4-bit layers compute in; auto: bf16 where the hardware supports it"
    )
    learning_rate: float = Field(default=5e-4, gt=0, description="peak learning rate, unless train.learning_rate is set")
    loraplus_lr_ratio: float | None = Field(
        default=None, ge=1, exclude_if=_is_none, description="LoRA+: the learning rate of B as a multiple of A's, such as 16"
    )

    def plan(self, part: Part) -> PartPlan:
        """The plan for `part`."""
        plan: PartPlan = getattr(self, part)
        return plan

    @property
    def plans(self) -> Mapping[Part, PartPlan]:
        """The plan for each part."""
        return {part: self.plan(part) for part in PARTS}

    @property
    def trains(self) -> bool:
        """Whether anything is trained at all."""
        return any(plan.mode != "frozen" for plan in self.plans.values())

    @property
    def uses_adapter(self) -> bool:
        """Whether any part gets an adapter."""
        return any(plan.mode == "adapter" for plan in self.plans.values())

    def with_options(self, changes: Mapping[str, JsonValue]) -> Strategy:
        """A copy with `--set strategy.KEY=VALUE` applied.

        KEY is a field of Strategy, a part (`vision=frozen`), a field of a part (`text.roles=attn,cross`), or a field of the
        PEFT method's config; `get_strategy` checks the latter.
        """
        values = self.model_dump()
        for key, value in changes.items():
            head, _, tail = key.partition(".")
            if head in PARTS:
                values[head] = {**values[head], tail: value} if tail else {**values[head], "mode": value}
            elif tail:
                raise ConfigError(f"Strategy option {key!r}: {head!r} is not a part. Parts: {', '.join(PARTS)}.")
            elif key in Strategy.model_fields:
                values[key] = value
            else:
                values["options"] = {**values["options"], key: value}
        changed = validated(Strategy, values, "Strategy")
        for key in changes:
            head, _, tail = key.partition(".")
            if tail not in ("", "mode") and head in PARTS and changed.plans[head].mode == "frozen":
                raise ConfigError(
                    f"Strategy option {key!r} says how part {head!r} is trained, but it is frozen. "
                    f"Add strategy.{head}=adapter or {head}=full, or leave the option out."
                )
        if changed.options and not changed.uses_adapter:
            key = next(iter(changed.options))
            raise ConfigError(
                f"Strategy option {key!r} belongs to a PEFT method, but this strategy has no adapter."
                f"{suggestion(key, Strategy.model_fields)}"
            )
        return changed


def bare_name(name: str) -> str:
    """A parameter's name in the backbone's own model, without PEFT's prefix."""
    for prefix in _WRAPPED:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name
