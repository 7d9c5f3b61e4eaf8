"""Settings of the executor of a suite's runs."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from medgraft.strict_model import StrictModel

_USED_BY = {
    "address": ("ray",),
    "cluster": ("submitit",),
    **dict.fromkeys(("gpus", "cpus", "memory_gb", "attempts", "options"), ("submitit", "ray")),
}


class ExecutorConfig(StrictModel):
    """Where a suite's runs are done: here one after the other, or by workers that submitit (SLURM) or Ray starts."""

    name: Literal["local", "submitit", "ray"] = Field(default="local", description="`--executor` sets it")
    address: str | None = Field(
        default=None,
        description="address of a running Ray cluster, as ray.init takes it; default: one is started on this machine",
    )
    cluster: Literal["slurm", "local", "debug"] = Field(
        default="slurm", description="what submitit submits to: SLURM, processes on this machine, or this process"
    )
    workers: int | None = Field(
        default=None,
        gt=0,
        description="most runs at once (`--workers`), and what `--dry-run` plans for; default: as many as the engine starts",
    )
    gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        default="auto", description="GPUs for each run; auto: 1 if this machine, or the Ray cluster, has any"
    )
    cpus: int = Field(default=1, gt=0, description="cores for each run")
    memory_gb: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        default="auto", description="memory for each run; auto: a quarter more than the dry run estimates"
    )
    attempts: int = Field(default=3, gt=0, description="how often a run is begun whose worker is lost")
    price_per_hour: float | None = Field(default=None, ge=0, description="price of one worker for an hour, for `--dry-run`")
    options: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="the engine's own parameters: of submitit's update_parameters, or of Ray's tasks",
    )

    @model_validator(mode="after")
    def _every_setting_is_used(self) -> Self:
        for key, users in _USED_BY.items():
            if self.name not in users and getattr(self, key) != type(self).model_fields[key].get_default(
                call_default_factory=True
            ):
                raise ValueError(f"{key} is for {' and '.join(users)}, and the executor is {self.name}")
        return self
