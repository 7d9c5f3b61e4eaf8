"""What transformers' trackers, such as TensorBoard and MLflow, get of a run, and where they write it.

They write to `logs` in the run's folder, unless the user's own environment variables name another place.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import integration_utils
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from medgraft.config import RunConfig
from medgraft.errors import ConfigError, TrainingError, first_line, suggestion
from medgraft.redaction import redacted

LOGS = "logs"  # in the folder of a run
PROJECT = "medgraft"
_RUNS = "runs"  # the folder of a suite's runs in its results
_PACKAGES = {"azure_ml": "azureml-mlflow", "comet_ml": "comet-ml"}  # the others are called as the tracker
_EVENTS = tuple(name for name in vars(TrainerCallback) if name.startswith("on_"))


def check_trackers(names: Sequence[str]) -> dict[str, TrainerCallback]:
    """Transformers' callbacks of trackers, by name; ConfigError if one is unknown or not installed."""
    return {name: _callback(name) for name in dict.fromkeys(names)}


def _callback(name: str) -> TrainerCallback:
    known = sorted(INTEGRATION_TO_CALLBACK)
    if name not in known:
        hint = suggestion(name, known) or f" Known: {', '.join(known)}."
        raise ConfigError(f"train.report_to names {name!r}, which is no tracker of transformers.{hint}")
    package = _PACKAGES.get(name, name)
    what_to_do = f"Install it (pip install {package}), or leave it out."
    installed = getattr(integration_utils, f"is_{name}_available", None)
    if installed is not None and not installed():  # a callback that is made without its package fails again when it is deleted
        raise ConfigError(f"train.report_to names {name!r}, but {package} is not installed. {what_to_do}")
    try:
        made: TrainerCallback = INTEGRATION_TO_CALLBACK[name]()
    except Exception as error:  # each tracker raises errors of its own
        raise ConfigError(
            f"train.report_to names {name!r}, which cannot be used here: {first_line(error)} {what_to_do}"
        ) from error
    return made


def run_name(out: Path) -> str:
    """The name of the run in the folder `out`, by which trackers show it."""
    return out.resolve().name


def _group(out: Path) -> str | None:
    """The name of the suite that the run in `out` is part of."""
    return out.resolve().parents[1].name if out.resolve().parent.name == _RUNS else None


class Trackers(TrainerCallback):
    """Passes events on to trackers, which get the run's settings as their model's configuration, without secrets."""

    def __init__(self, names: Sequence[str], config: RunConfig, out: Path):
        self._callbacks, self._out = check_trackers(names), out
        self._settings = _Settings(config)
        board = self._callbacks.get("tensorboard")
        if board is not None:  # it would write to the folder of checkpoints, and all runs to one folder of the user's
            given = board.logging_dir
            board.logging_dir = str(Path(given) / run_name(out) if given else out / LOGS)
        for event in _EVENTS:
            setattr(self, event, partial(self._pass_on, event))

    def _pass_on(self, event: str, *args: Any, model: Any = None, **kwargs: Any) -> None:
        for name, callback in self._callbacks.items():
            try:
                with _environment(self._out), _described(model, self._settings):
                    getattr(callback, event)(*args, model=model, **kwargs)
            except Exception as error:  # each tracker raises errors of its own
                raise TrainingError(f"The tracker {name} failed: {first_line(error)}. Mend it, or leave it out.") from error


class _Settings:
    """A run's settings by `SECTION.KEY`, in the form in which trackers read a model's configuration."""

    def __init__(self, config: RunConfig):
        values = redacted(config.model_dump(mode="json"))
        self._values = dict(_flat(values))

    def to_dict(self) -> dict[str, Any]:
        """As transformers' configurations have it."""
        return self._values

    def to_json_string(self) -> str:
        """As transformers' configurations have it."""
        return json.dumps(self._values, indent=2)


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield above + key, value


@contextmanager
def _described(model: Any, settings: _Settings) -> Iterator[None]:
    """Let `model` have a configuration inside the block; the Trainer would take it for that of a transformers model."""
    if model is None:
        yield
        return
    model.config = settings
    try:
        yield
    finally:
        del model.config


@contextmanager
def _environment(out: Path) -> Iterator[None]:
    """Set the trackers' variables that the user has not set, inside the block."""
    logs, environ = (out / LOGS).resolve(), os.environ
    wanted = {"WANDB_DIR": str(logs), "WANDB_PROJECT": PROJECT, "TRACKIO_DIR": str(logs / "trackio")}
    wanted["MLFLOW_EXPERIMENT_NAME"] = _group(out) or PROJECT
    if group := _group(out):
        wanted["WANDB_RUN_GROUP"] = group
    if "WANDB_API_KEY" not in environ:  # nothing is sent unless the user asks for it
        wanted["WANDB_MODE"] = "offline"
    if importlib.util.find_spec("sqlalchemy"):
        wanted["MLFLOW_TRACKING_URI"] = f"sqlite:///{logs / 'mlflow.db'}"
    else:  # as with mlflow-skinny
        wanted |= {"MLFLOW_TRACKING_URI": (logs / "mlruns").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
    set_here = {name: value for name, value in wanted.items() if name not in environ}
    logs.mkdir(parents=True, exist_ok=True)
    environ.update(set_here)
    own = {*environ} - {*set_here}
    try:
        yield
    finally:
        for name in {*environ} - own:  # those that trackers set too
            del environ[name]
