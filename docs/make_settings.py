"""Write settings.md from the models that check settings: `python docs/make_settings.py`."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from medgraft.config import BackboneRows, DataConfig, RunSettings, SuiteConfig
from medgraft.plugin import PluginManager
from medgraft.strategies.base import PartPlan, Strategy
from medgraft.types import PARTS

PAGE = Path(__file__).parent / "settings.md"
_HEAD = """# Settings

Made by `python docs/make_settings.py` from the code that checks settings; a test fails when this page is out of date.

Every key is set on the command line as `--set SECTION.KEY=VALUE`, or in a suite's TOML file as a table `[SECTION]`. In a suite,
`[overrides.NAME.strategy]` and `[overrides.NAME.train]` hold settings of the strategy NAME alone. A value is read as JSON if
it is valid JSON, else as text: `train.dtype=fp32`, `tuning.factors=[0.3,1,3]`, `train.lr_scheduler_type=linear`. An unknown
key or a wrong value is an error that lists every problem.
"""
_STRATEGY = """Start from a preset (`medgraft list` shows them) or `peft:<METHOD>`, and change it: `strategy.vision=frozen` sets
the mode of a part, `strategy.text.roles=attn,cross` one of its fields. Any other key goes to the PEFT method's config, under
PEFT's own name: `strategy.r=8`, `strategy.lora_alpha=16`. The defaults here are those of a strategy without a preset."""
_DATA = """Any other key is an option of the reader, from the tables below. `--data NAME:PATH` sets the first two."""
_ENVIRONMENT = """## Environment

| variable | meaning |
|---|---|
| `MEDGRAFT_DEVICE` | `cpu`: use no accelerator |
| `MEDGRAFT_ACCELERATION` | `none`, `auto` or names of kernels; overrides `acceleration.kernels` and what an adapter names |
| `MEDGRAFT_CACHE` | folder of phantoms, stored features and the file index; else `medgraft` in the user's cache |
| `MEDGRAFT_FEATURES` | folder of the feature store alone; else `features` in the folder above |
| `MEDGRAFT_FILE_INDEX` | `off`: check and hash every image and weight file at every start, without the index of files |
| `MEDGRAFT_DISABLE_PLUGINS` | plugins or distributions to leave out, separated by commas |
| `MEDGRAFT_STRICT_PLUGINS` | `1`: a plugin that fails to load is an error |
| `MEDGRAFT_DEBUG` | `1`: print the exception of a plugin that fails to load |
| `XDG_CACHE_HOME` | the user's cache, else `~/.cache`; answers from APIs are always there |
| `HF_HUB_OFFLINE` | `1`: nothing is downloaded from the Hugging Face hub; USER/REPO is what was downloaded before |
| `HF_TOKEN` | a token of the hub, instead of the one that `hf auth login` stores |
| `HF_ENDPOINT` | the address of another hub |
"""


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for name, field in SuiteConfig.model_fields.items():
        model = _model(field.annotation)
        if model is not None and not issubclass(model, DataConfig | BackboneRows):
            note = " For suites only." if name not in RunSettings.model_fields else ""
            parts.append(f"## {name}\n\n{_first_line(model)}{note}\n\n{_table(_rows(model, name))}")
    plans = f"A PART is one of `{'`, `'.join(PARTS)}`:\n\n{_table(_rows(PartPlan, 'strategy.PART'))}"
    parts.append(f"## strategy\n\n{_STRATEGY}\n\n{_table(_rows(Strategy, 'strategy'))}\n{plans}")
    parts.append(f"## data\n\n{_DATA}\n\n{_table(_rows(DataConfig, 'data'))}\n{_readers()}")
    own = {name: field for name, field in SuiteConfig.model_fields.items() if not _is_section(field)}
    own = dict(sorted(own.items(), key=lambda item: item[0] in RunSettings.model_fields))  # a suite's own keys first
    parts.append(
        "## Suite files\n\nThe keys at the top of a suite's TOML file, besides the sections above; `--set` does not set them. "
        f"Example: [quickstart](../benchmarks/suites/quickstart.toml).\n\n{_table(_row(n, f) for n, f in own.items())}"
    )
    return "\n".join([*parts, _ENVIRONMENT])


def _readers() -> str:
    """Options of every built-in reader, those with the same ones together."""
    manager = PluginManager(disabled=frozenset(_other_plugins()))
    names: dict[str, list[str]] = {}
    for spec, _ in manager.specs("dataset"):
        if rows := list(_rows(spec.resolve(), "data")):
            names.setdefault(_table(rows), []).append(f"`{spec.name}`")
    return "\n".join(f"### Options of {', '.join(several)}\n\n{table}" for table, several in names.items())


def _other_plugins() -> Iterable[str]:
    """All but medgraft's own, so that the page does not depend on what is installed here."""
    return (info.plugin for info in PluginManager().plugins() if info.distribution != "medgraft")


def _is_section(field: FieldInfo) -> bool:
    model = _model(field.annotation)
    return model is not None and not issubclass(model, DataConfig | BackboneRows)


def _model(annotation: Any) -> type[BaseModel] | None:
    """The model in `M` or `M | None`."""
    for choice in (annotation, *typing.get_args(annotation)):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return choice
    return None


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").splitlines()[0]


def _rows(model: type[BaseModel], section: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield _row(f"{section}.{name}", field)


def _row(key: str, field: FieldInfo) -> str:
    meaning = (field.description or "").replace("|", r"\|")
    return f"| `{key}` | {_type(field.annotation)} | {_default(field)} | {meaning} |"


def _table(rows: Iterable[str]) -> str:
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, PartPlan):
        return f"`{value.mode}`"
    if value is None:
        return "none"
    return f"`{value}`" if isinstance(value, str) and value else f"`{json.dumps(value)}`"


def _type(annotation: Any) -> str:
    names = {bool: "true or false", int: "integer", float: "number", str: "text", type(None): "none"}
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if annotation in names:
        return names[annotation]
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type(choice) for choice in arguments if choice is not type(None))
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, PartPlan):
        return "a mode, or fields below"
    return "table"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
