"""The settings of runs and suites as strict models: unknown keys and wrong values are errors, all listed at once."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from medgraft.augmentation_config import AugmentationConfig
from medgraft.errors import ConfigError, suggestion
from medgraft.executor_config import ExecutorConfig
from medgraft.forgetting_config import ForgettingConfig
from medgraft.generation_config import GenerationConfig as GenerationConfig  # exported from here
from medgraft.image_config import ImageConfig
from medgraft.model_config import ModelConfig as ModelConfig  # exported from here
from medgraft.strict_model import StrictModel, validated
from medgraft.train_config import TrainConfig
from medgraft.types import SPLITS, Split


class DataConfig(StrictModel):
    """The data set: its reader, its path, and the reader's options."""

    name: str = Field(description="the reader's name, as shown by `medgraft list`")
    path: str | None = Field(default=None, description="the folder or file to read")
    options: dict[str, JsonValue] = Field(default_factory=dict, description="options of the reader; each is a key of its own")
    max_images: int | None = Field(default=None, gt=0, description="use only the first max_images of each split")
    root: str | None = Field(default=None, description="folder for image paths that are relative or absolute elsewhere")
    window: str | None = Field(
        default=None,
        description="how images of more than 8 bits become grey levels: `auto`, `file`, `full`, `percentile`, `soft-tissue`, "
        "`mediastinum`, `lung`, `bone`, `brain` or CENTER,WIDTH; default: auto",
    )
    frame: int | None = Field(
        default=None,
        ge=0,
        description="frame or page of an image, or slice of a volume, from 0; default: middle of DICOM and NIfTI, else first",
    )
    prompt: str | None = Field(
        default=None,
        description="text before each caption, with `{COLUMN}` for a column of the row or a fact of the image, such as "
        "`Question: {question} Answer:`; default: the question where there is one, else the run's prompt",
    )
    skip_bad_rows: bool = Field(default=False, description="leave out and list rows that cannot be read, instead of an error")
    on_leak: Literal["error", "warn", "drop"] = Field(
        default="warn", description="images, near-duplicates or groups in several splits: refuse, report, or drop from training"
    )

    @classmethod
    def parse(cls, text: str) -> DataConfig:
        """`NAME` or `NAME:PATH`."""
        name, _, path = text.partition(":")
        if not name:
            raise ConfigError(f"Data {text!r} has no name. Write NAME or NAME:PATH, such as roco:/data/roco.")
        return cls(name=name, path=path or None)

    def __str__(self) -> str:
        """As `parse` reads it."""
        return self.name if self.path is None else f"{self.name}:{self.path}"


TIMING_WARMUP_STEPS = 3  # first steps of a run, which are slower and not timed
METRICS = ("bleu", "rouge_l", "cider", "rouge_1", "clinical", "facts", "localization")
SALIENCY_METRICS = ("localization", "faithfulness")  # metrics of saliency maps


class FeaturesConfig(StrictModel):
    """The feature store, which saves the output of frozen parts for each image."""

    enabled: bool = Field(default=True, description="read and write stored features")
    max_gb: float = Field(default=10.0, ge=0, description="disk space of the whole store, for all models")
    device_gb: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        default="auto", description="GPU memory for training features; auto: 40 % of its free memory"
    )
    views: int = Field(default=0, ge=0, description="fixed augmented views of each training image; 0: new ones in every epoch")


class AccelerationConfig(StrictModel):
    """Kernels that give the same results in less time."""

    kernels: Literal["auto", "none"] | tuple[str, ...] = Field(
        default="auto", description="auto: all that apply to model and machine; none; or names separated by commas"
    )

    @field_validator("kernels", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        named = isinstance(value, str) and value not in ("auto", "none")
        return tuple(name.strip() for name in value.split(",")) if named else value


class SaliencyConfig(StrictModel):
    """Saliency maps of test images, for the report and for the metric 'faithfulness' (deletion and insertion)."""

    maps: int = Field(default=128, ge=0, description="number of images whose maps are written for the report")
    curves: int = Field(default=24, ge=0, description="number of images for the metric 'faithfulness'")


class RunSettings(StrictModel):
    """Settings shared by runs and suites. A new section is one field here; `--set`, suites and records then support it."""

    train: TrainConfig = TrainConfig()
    model: ModelConfig = ModelConfig()
    image: ImageConfig = ImageConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    generation: GenerationConfig = GenerationConfig()
    features: FeaturesConfig = FeaturesConfig()
    acceleration: AccelerationConfig = AccelerationConfig()
    saliency: SaliencyConfig = SaliencyConfig()
    forgetting: ForgettingConfig = ForgettingConfig()
    metrics: tuple[str, ...] = Field(default=(), description="metrics to compute; default: those of the data's task")
    eval_split: Split = Field(default="test", description="the split to caption and score")

    @model_validator(mode="after")
    def _views_are_augmented(self) -> Self:
        if self.features.views and not self.augmentation.on:
            raise ValueError("features.views needs augmentation; add augmentation.preset=radiology, or leave it out")
        return self


class RunConfig(RunSettings):
    """One run: backbone x strategy x data set x seed.

    `start_from` names an adapter whose weights are the start; backbone and strategy are then the adapter's.
    """

    backbone: str
    strategy: str
    strategy_options: dict[str, JsonValue] = Field(default_factory=dict)
    data: DataConfig
    seed: int = Field(default=0, ge=0)
    start_from: str | None = None

    def needed_splits(self, trains: bool) -> tuple[Split, ...]:
        """The splits that a run reads: all if it trains, else only the one that it captions."""
        return SPLITS if trains else (self.eval_split,)


class TuningConfig(StrictModel):
    """Trials before the suite's runs that choose each strategy's learning rate on validation images, with equal budgets."""

    factors: tuple[float, ...] = Field(
        default=(0.3, 1.0, 3.0), min_length=1, description="trials: multiples of the default rate"
    )
    score: str = Field(default="cider", description="score of validation captions to maximise; in a tie the lowest rate")
    num_train_epochs: float | None = Field(default=None, gt=0, description="epochs of each trial; default: the suite's")
    seed: int = Field(default=1000, ge=0, description="seed of the trials")

    @field_validator("factors")
    @classmethod
    def _positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if min(value) <= 0 or len(set(value)) < len(value):
            raise ValueError("factors have to be distinct numbers above 0")
        return value


class TimingConfig(StrictModel):
    """Separate timing after the runs; the first steps of each run are not counted."""

    repeats: int = Field(default=3, ge=2, description="number of times that the whole grid is timed")
    steps: int = Field(default=20, ge=TIMING_WARMUP_STEPS + 4, description="steps per run and repeat")


class BackboneRows(StrictModel):
    """A backbone in a suite with its own list of strategies."""

    backbone: str
    strategies: tuple[str, ...] = Field(min_length=1)


class SuiteConfig(RunSettings):
    """A grid of runs. Each backbone is run with all `strategies`, or with those in its own table."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="name of the results folder and the report")
    description: str = Field(default="", description="text for the report")
    backbones: tuple[str | BackboneRows, ...] = Field(min_length=1, description="NAME[:SOURCE], or tables with own strategies")
    strategies: tuple[str, ...] = Field(min_length=1, description="presets, or peft:<METHOD>")
    data: tuple[DataConfig, ...] = Field(min_length=1, description="NAME[:PATH] or tables as in section data, one or several")
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="every run is repeated with each seed")
    overrides: dict[str, dict[Literal["train", "strategy"], dict[str, JsonValue]]] = Field(
        default_factory=dict, description="settings of single strategies, as [overrides.lora.train]"
    )
    tuning: TuningConfig | None = None
    timing: TimingConfig | None = None
    executor: ExecutorConfig = ExecutorConfig()

    @model_validator(mode="after")
    def _tuned_elsewhere(self) -> Self:
        if self.tuning is not None and self.eval_split == "validation":
            raise ValueError("tuning uses the validation images, so eval_split cannot be validation")
        return self

    @field_validator("data", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        items = value if isinstance(value, list | tuple) else [value]
        return [DataConfig.parse(item) if isinstance(item, str) else item for item in items]


SECTIONS = tuple(name for name, field in RunSettings.model_fields.items() if isinstance(field.default, StrictModel))
RUN_SECTIONS = ("strategy", "data", *SECTIONS)
SUITE_SECTIONS = ("data", *SECTIONS, "tuning", "timing", "executor")


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's content; ConfigError if it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no suite file {path}.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; a suite is a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def load_suite(path: Path, overrides: Iterable[str] = ()) -> SuiteConfig:
    """Load the suite in `path` with `--set` overrides applied; data paths are relative to the working directory."""
    values = read_toml(path)
    data = values.get("data")
    if isinstance(data, Mapping | str | list):
        values["data"] = [_changed_data(item, {}) for item in (data if isinstance(data, list) else [data])]
    for section, changes in parse_overrides(overrides, SUITE_SECTIONS).items():
        if not isinstance(values.get(section, {}), Mapping | str | list):
            raise ConfigError(f"Suite {path}: {section!r} has to be a table, not {values[section]!r}.")
        if section != "data":
            values[section] = {**values.get(section, {}), **changes}
            continue
        values["data"] = [_changed_data(item, changes) for item in values.get("data", [])]
    return validated(SuiteConfig, values, f"Suite {path}")


def _changed_data(data: Any, changes: Mapping[str, JsonValue]) -> Any:
    """The table of a data set with `changes`; keys that are no settings of DataConfig are options of the reader."""
    base = DataConfig.parse(data).model_dump() if isinstance(data, str) else data
    if not isinstance(base, Mapping) or not isinstance(base.get("options", {}), Mapping):
        return data  # which is refused
    own = {key: value for key, value in {**base, **changes}.items() if key in DataConfig.model_fields}
    options = {key: value for key, value in {**base, **changes}.items() if key not in DataConfig.model_fields}
    return {**own, "options": {**base.get("options", {}), **options}}


def parse_overrides(overrides: Iterable[str], sections: tuple[str, ...] = RUN_SECTIONS) -> dict[str, dict[str, JsonValue]]:
    """Parse `section.key=value` texts to {section: {key: value}}; values that are not valid JSON are text."""
    result: dict[str, dict[str, JsonValue]] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        section, dot, name = key.strip().partition(".")
        if equals and not dot and section in RunSettings.model_fields and section not in SECTIONS:
            raise ConfigError(
                f"--set {text!r}: {section} is in no section. Set it at the top of a suite's file, or in a RunConfig"
                f"{', or add metrics with --metric' if section == 'metrics' else ''}."
            )
        if not equals or not dot or not name:
            raise ConfigError(f"--set {text!r} is not of the form SECTION.KEY=VALUE, such as strategy.r=8.")
        if section not in sections:
            raise ConfigError(
                f"--set {text!r}: unknown section {section!r}.{suggestion(section, sections)} Known: {', '.join(sections)}."
            )
        result.setdefault(section, {})[name] = _json_or_text(value.strip())
    return result


def _json_or_text(value: str) -> JsonValue:
    try:
        parsed: JsonValue = json.loads(value)
    except json.JSONDecodeError:
        return value
    return parsed


def data_config(
    text: str, overrides: Iterable[str], max_images: int | None, sections: tuple[str, ...] = ("data",)
) -> DataConfig:
    """Parse `NAME[:PATH]` and apply `--set data.K=V`; settings of other `sections` are allowed, and not for the data."""
    values = _changed_data(text, parse_overrides(overrides, sections).get("data", {}))
    return validated(DataConfig, values | ({"max_images": max_images} if max_images is not None else {}), "Data")


def run_config(
    *,
    data: str,
    backbone: str | None = None,
    strategy: str | None = None,
    start_from: str | None = None,
    seed: int = 0,
    max_images: int | None = None,
    overrides: Iterable[str] = (),
) -> RunConfig:
    """The RunConfig for command line arguments; `medgraft.run_config` fills in what an adapter says."""
    if backbone is None or strategy is None:
        raise ConfigError("Name a backbone and a strategy (--backbone, --strategy), or an adapter to go on from (--from).")
    values = {"backbone": backbone, "strategy": strategy, "seed": seed, "start_from": start_from}
    return _changed_run({**values, "data": DataConfig.parse(data).model_dump()}, max_images, overrides)


def changed_run(
    config: RunConfig, *, seed: int | None = None, max_images: int | None = None, overrides: Iterable[str] = ()
) -> RunConfig:
    """`config` with command line arguments applied."""
    values = config.model_dump()
    return _changed_run(values if seed is None else {**values, "seed": seed}, max_images, overrides)


def _changed_run(values: Mapping[str, Any], max_images: int | None, overrides: Iterable[str]) -> RunConfig:
    changes = parse_overrides(overrides)
    data = _changed_data(values["data"], changes.get("data", {}))
    changed = {
        **values,
        "data": data if max_images is None else {**data, "max_images": max_images},
        "strategy_options": {**values.get("strategy_options", {}), **changes.get("strategy", {})},
        **{section: {**values.get(section, {}), **changes.get(section, {})} for section in SECTIONS},
    }
    return validated(RunConfig, changed, "Run")
