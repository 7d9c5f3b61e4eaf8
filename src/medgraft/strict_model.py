"""Models of settings and records: an unknown key or a wrong value is an error that names every problem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from medgraft.errors import ConfigError, suggestion

ModelT = TypeVar("ModelT", bound=BaseModel)


class StrictModel(BaseModel):
    """Immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def validated(model: type[ModelT], values: Mapping[str, Any], what: str) -> ModelT:
    """`model` made from `values`; ConfigError lists every problem, with suggestions for unknown keys."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{what}: {'; '.join(problems(error, model))}") from None


def problems(error: ValidationError, model: type[BaseModel] | None = None) -> Iterable[str]:
    """Each problem in one sentence; where `model` is given, with those of its fields that an unknown key resembles."""
    for problem in error.errors():
        where = ".".join(str(step) for step in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _fields_at(model, problem["loc"][:-1]) if model else []
            hint = suggestion(str(problem["loc"][-1]), known) or (" Known: " + ", ".join(known) if known else "")
            yield f"unknown key {where!r}.{hint}"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            yield f"{where}: {message}" if where else message


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for step in path:
        annotation = model.model_fields[str(step)].annotation if str(step) in model.model_fields else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
