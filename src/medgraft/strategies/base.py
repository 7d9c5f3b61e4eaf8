"""The algebra of strategies: for each part frozen, full or adapter, and how the base is held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator

from medgraft.errors import ConfigError, suggestion
from medgraft.strict_model import StrictModel, validated
from medgraft.types import PARTS, Part, Role

Mode = Literal["frozen", "full", "adapter"]
Quantization = Literal["none", "int8", "nf4", "fp4"]
LINEAR_ROLES: tuple[Role, ...] = ("attn", "mlp", "cross", "proj")


class PartPlan(StrictModel):
    """What happens to one part. `roles` narrows full training or says where adapters go; `bias_only` trains biases."""

    mode: Mode = Field(default="frozen", description="frozen, full (trained in place) or adapter (a PEFT method)")
    roles: tuple[Role, ...] | None = Field(default=None, description="only modules of these roles, such as attn,cross")
    bias_only: bool = Field(default=False, description="full training of biases alone")

    @field_validator("roles", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return tuple(value.split(",")) if isinstance(value, str) else value


FROZEN, FULL, ADAPTER = PartPlan(), PartPlan(mode="full"), PartPlan(mode="adapter")


class Strategy(StrictModel):
    """What is trained, and how the frozen base is held.

    `method` is a PEFT type (`LORA`, `IA3`, ...) and `options` the fields of its config class, under PEFT's names.
    `learning_rate` is the peak rate used unless the run names one. `compute_dtype` is that of 4-bit layers; `auto` is bf16
    where the hardware has it, since emulating it took 25 times as long.
    """

    vision: PartPlan = Field(default=FROZEN, description="what happens to the vision tower")
    bridge: PartPlan = Field(default=FROZEN, description="what happens to what stands between vision tower and text model")
    text: PartPlan = Field(default=FROZEN, description="what happens to the text model")
    method: str = Field(default="LORA", description="the PEFT method of adapters, by PEFT's names")
    options: dict[str, JsonValue] = Field(
        default_factory=dict, description="fields of the method's config in PEFT; each is a key of its own, such as strategy.r"
    )
    quantization: Quantization = Field(default="none", description="how the frozen base is loaded: none, int8, nf4 or fp4")
    double_quantization: bool = Field(default=True, description="of 4-bit weights: their scales are quantised too")
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="of 4-bit layers; auto: bf16 where the hardware has it"
    )
    learning_rate: float = Field(default=5e-4, gt=0, description="peak rate, unless train.learning_rate is given")

    def plan(self, part: Part) -> PartPlan:
        """What happens to `part`."""
        plan: PartPlan = getattr(self, part)
        return plan

    @property
    def plans(self) -> Mapping[Part, PartPlan]:
        """What happens to each part."""
        return {part: self.plan(part) for part in PARTS}

    @property
    def trains(self) -> bool:
        """Whether anything is trained at all."""
        return any(plan.mode != "frozen" for plan in self.plans.values())

    @property
    def uses_adapter(self) -> bool:
        """Whether any part carries a PEFT method."""
        return any(plan.mode == "adapter" for plan in self.plans.values())

    def with_options(self, changes: Mapping[str, JsonValue]) -> Strategy:
        """A copy with `--set strategy.KEY=VALUE` applied.

        KEY is a field of Strategy, a part (`vision=frozen`), a part's field (`text.roles=attn,cross`), or a field of the
        PEFT method's config, which `get_strategy` checks.
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
        if changed.options and not changed.uses_adapter:
            key = next(iter(changed.options))
            raise ConfigError(
                f"Strategy option {key!r} belongs to a PEFT method, but this strategy has no adapter."
                f"{suggestion(key, Strategy.model_fields)}"
            )
        return changed
