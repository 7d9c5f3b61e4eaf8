"""The settings of where a model's weights lie."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from medgraft.strict_model import StrictModel

DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"] | dict[str, int | str]


class ModelConfig(StrictModel):
    """Where the model's weights lie, under the names of transformers' `from_pretrained`."""

    device_map: DeviceMap | None = Field(
        default=None,
        description="spreads the model over GPUs, CPU and disk: `auto`, `balanced`, `balanced_low_0`, `sequential`, or a GPU's "
        'number, `cpu` or `disk` by module as {"vision_model":0,"":"cpu"}; default: all on one device',
    )
    max_memory: dict[int | str, int | str] | None = Field(
        default=None, description='memory to use with a named device_map, as {"0":"20GiB","cpu":"60GiB"}; default: what is free'
    )
    offload_folder: str | None = Field(
        default=None, description="folder for weights on `disk`; default: a temporary one, removed at the end"
    )

    @model_validator(mode="before")
    @classmethod
    def _numbers_of_gpus(cls, values: Any) -> Any:
        """JSON's keys are text; a GPU's number among them is a number."""
        if isinstance(values, dict) and isinstance(values.get("max_memory"), dict):
            memory = {int(k) if str(k).isdigit() else k: v for k, v in values["max_memory"].items()}
            return {**values, "max_memory": memory}
        return values

    @model_validator(mode="after")
    def _belong_to_a_map(self) -> Self:
        given = [name for name in ("max_memory", "offload_folder") if getattr(self, name) is not None]
        if given and (self.device_map is None or (given[0] == "max_memory" and not isinstance(self.device_map, str))):
            raise ValueError(f"{given[0]} belongs to a device_map that is named; add device_map=auto, or leave {given[0]} out")
        if self.device_map == {}:
            raise ValueError('device_map is empty; {"": 0} puts all modules on the first GPU')
        return self

    @property
    def spreads(self) -> bool:
        """Whether a device map is asked for."""
        return self.device_map is not None
