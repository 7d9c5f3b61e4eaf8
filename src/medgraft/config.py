"""What a run is made of, as strict models, and how `--set` and suite files change it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from medgraft.errors import ConfigError, suggestion
from medgraft.strict_model import StrictModel, validated
from medgraft.types import Split


class DataConfig(StrictModel):
    """Which data set, where it lies, and the options of its reader."""

    name: str = Field(description="the reader, as `medgraft list` shows it")
    path: str | None = Field(default=None, description="the folder or file that it reads")
    options: dict[str, JsonValue] = Field(default_factory=dict, description="options of the reader; each is a key of its own")
    max_images: int | None = Field(default=None, gt=0, description="only the first so many images of each split")

    @classmethod
    def parse(cls, text: str) -> DataConfig:
        """`NAME` or `NAME:PATH`."""
        name, _, path = text.partition(":")
        if not name:
            raise ConfigError(f"Data {text!r} has no name. Write NAME or NAME:PATH, such as roco:/data/roco.")
        return cls(name=name, path=path or None)


class TrainConfig(StrictModel):
    """How to train, in the words of transformers' TrainingArguments."""

    num_train_epochs: float = Field(default=3.0, gt=0, description="passes over the training captions")
    max_steps: int = Field(default=-1, ge=-1, description="optimiser steps; replaces num_train_epochs if positive")
    per_device_train_batch_size: int = Field(default=16, gt=0, description="captions in a training batch of one device")
    per_device_eval_batch_size: int = Field(default=32, gt=0, description="images in a batch of validation and captioning")
    gradient_accumulation_steps: int = Field(default=1, gt=0, description="batches whose gradients are added up for one step")
    gradient_checkpointing: bool = Field(default=False, description="less memory, more time")
    learning_rate: float | None = Field(default=None, gt=0, description="peak rate; the strategy's own if not given")
    lr_scheduler_type: str = Field(default="cosine", description="how the rate falls, by transformers' names")
    warmup_steps: float = Field(default=0.05, ge=0, description="steps until the peak rate, or a share of all steps if below 1")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's, not on biases and norms")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are clipped to this norm")
    optim: str = Field(default="adamw_torch_fused", description="the optimiser, by transformers' names")
    bf16: bool | Literal["auto"] = Field(default="auto", description="bf16 autocast; auto: where the hardware has bf16 units")
    max_text_tokens: int = Field(default=128, gt=2, description="longer captions are cut; special tokens count")
    prompt: str | None = Field(default=None, description="text before every caption; the backbone's own if not given")
    save_steps: int | None = Field(default=None, gt=0, description="steps between checkpoints; one each epoch if not given")
    save_total_limit: int = Field(default=1, gt=0, description="how many checkpoints stay on disk")
    eval_during_training: bool = Field(default=False, description="validation loss after each epoch")
    dataloader_num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        default="auto",
        description="processes that read images; auto: none on a CPU, up to 8 beside an accelerator",
    )
    pixel_cache_gb: float = Field(default=0.5, ge=0, description="memory for decoded and resized images")
    report_to: tuple[str, ...] = Field(default=(), description='loggers of transformers, such as ["tensorboard"]')

    @model_validator(mode="before")
    @classmethod
    def _ungrouped(cls, values: Any) -> Any:
        """Suites and runs of earlier versions name a setting that is gone."""
        if isinstance(values, Mapping) and values.get("group_by_length"):
            raise ValueError("group_by_length is gone, as it cost quality; leave it out")
        return {k: v for k, v in values.items() if k != "group_by_length"} if isinstance(values, Mapping) else values


TIMING_WARMUP_STEPS = 3  # at the beginning of a run, which are slower
METRICS = ("bleu", "rouge_l", "cider", "rouge_1", "clinical", "facts", "localization")
SALIENCY_METRICS = ("localization", "faithfulness")  # metrics of where a model looked
CONTROLS = ("_uniform", "_untrained", "_random")  # ends of scores that only say what chance gets


class GenerationConfig(StrictModel):
    """How captions are decoded, in transformers' words; lengths in word pieces, prompt not counted."""

    max_new_tokens: int = Field(default=96, gt=0, description="longest caption in tokens, without the prompt")
    num_beams: int = Field(default=1, gt=0, description="beam search with so many beams; 1 is greedy")
    length_penalty: float = Field(default=1.0, description="of beam search: above 0 favours longer captions")
    no_repeat_ngram_size: int = Field(default=0, ge=0, description="no n-gram of this size occurs twice; 0 allows all")
    repetition_penalty: float = Field(default=1.0, gt=0, description="above 1 makes repeated tokens less likely")


class FeaturesConfig(StrictModel):
    """The feature store, which keeps what frozen parts make of each image."""

    enabled: bool = Field(default=True, description="read and write stored features")
    max_gb: float = Field(default=10.0, ge=0, description="disk space of the store, all models together")
    device_gb: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        default="auto", description="training features in the GPU's memory; auto: 40 % of what is free there"
    )


class AccelerationConfig(StrictModel):
    """Kernels that compute the same in less time: `auto` for all that apply here, `none`, or some by name."""

    kernels: Literal["auto", "none"] | tuple[str, ...] = Field(
        default="auto", description="auto: all that apply here; none; or some by name, separated by commas"
    )

    @field_validator("kernels", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        named = isinstance(value, str) and value not in ("auto", "none")
        return tuple(name.strip() for name in value.split(",")) if named else value


class SaliencyConfig(StrictModel):
    """Attention maps of test images: those that the report shows, and those that deletion and insertion are tried on."""

    maps: int = Field(default=128, ge=0, description="images whose maps are written for the report")
    curves: int = Field(default=24, ge=0, description="images for the metric 'faithfulness', the first ones")


class RunSettings(StrictModel):
    """What runs and suites share. A new section of settings is one field here: `--set`, suites and records have it then."""

    train: TrainConfig = TrainConfig()
    generation: GenerationConfig = GenerationConfig()
    features: FeaturesConfig = FeaturesConfig()
    acceleration: AccelerationConfig = AccelerationConfig()
    saliency: SaliencyConfig = SaliencyConfig()
    metrics: tuple[str, ...] = Field(default=METRICS, description="what captions are scored by")
    eval_split: Split = Field(default="test", description="the split that is captioned")


class RunConfig(RunSettings):
    """One run: backbone x strategy x data set x seed."""

    backbone: str
    strategy: str
    strategy_options: dict[str, JsonValue] = Field(default_factory=dict)
    data: DataConfig
    seed: int = Field(default=0, ge=0)


class TuningConfig(StrictModel):
    """The same small budget for every strategy: learning rates tried on validation images before the suite's own runs.

    Each of `factors` times the rate that the strategy would have is tried once; the rate with the best `score` is used by
    all of its runs, the lower one of two that score the same.
    """

    factors: tuple[float, ...] = Field(
        default=(0.3, 1.0, 3.0), min_length=1, description="tried: each times the rate that the strategy would have"
    )
    score: str = Field(default="cider", description="the score of validation captions that decides")
    num_train_epochs: float | None = Field(default=None, gt=0, description="of each try; the suite's own if not given")
    seed: int = Field(default=1000, ge=0, description="of the tries")

    @field_validator("factors")
    @classmethod
    def _positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if min(value) <= 0 or len(set(value)) < len(value):
            raise ValueError("factors are different numbers above 0")
        return value


class TimingConfig(StrictModel):
    """Steps timed for themselves, after the runs: `steps` of each run, the grid over and over, the first ones left out."""

    repeats: int = Field(default=3, ge=2, description="how often the whole grid is timed")
    steps: int = Field(default=20, ge=TIMING_WARMUP_STEPS + 4, description="steps of each run and repeat")


class BackboneRows(StrictModel):
    """A backbone in a suite that is run with strategies of its own."""

    backbone: str
    strategies: tuple[str, ...] = Field(min_length=1)


class SuiteConfig(RunSettings):
    """A grid of runs. `overrides` holds settings for single strategies, as `[overrides.lora.train]` tables.

    A backbone is a name, to be run with all `strategies`, or a table that names its own.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="names the folder of results and the report")
    description: str = Field(default="", description="for people")
    backbones: tuple[str | BackboneRows, ...] = Field(
        min_length=1, description="NAME or NAME:SOURCE; as a table, with `strategies` of its own"
    )
    strategies: tuple[str, ...] = Field(min_length=1, description="presets, or peft:<METHOD>")
    data: tuple[DataConfig, ...] = Field(min_length=1, description="NAME[:PATH] or tables as in section data, one or several")
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="every run is done once with each")
    overrides: dict[str, dict[Literal["train", "strategy"], dict[str, JsonValue]]] = Field(
        default_factory=dict,
        description="settings of single strategies, as [overrides.lora.train]",
    )
    tuning: TuningConfig | None = None
    timing: TimingConfig | None = None

    @model_validator(mode="after")
    def _tuned_elsewhere(self) -> Self:
        if self.tuning is not None and self.eval_split == "validation":
            raise ValueError("tuning chooses on validation images, so eval_split cannot be validation too")
        return self

    @field_validator("data", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        several = value if isinstance(value, list | tuple) else [value]
        return [DataConfig.parse(item) if isinstance(item, str) else item for item in several]


SECTIONS = tuple(name for name, field in RunSettings.model_fields.items() if isinstance(field.default, StrictModel))
RUN_SECTIONS = ("strategy", "data", *SECTIONS)
SUITE_SECTIONS = ("data", *SECTIONS, "tuning", "timing")


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
    """The suite in `path` with `--set` overrides applied; relative data paths are taken from the working directory."""
    values = read_toml(path)
    for section, changes in parse_overrides(overrides, SUITE_SECTIONS).items():
        if not isinstance(values.get(section, {}), Mapping | str | list):
            raise ConfigError(f"Suite {path}: {section!r} is a table, not {values[section]!r}.")
        if section != "data":
            values[section] = {**values.get(section, {}), **changes}
            continue
        several = values.get("data", [])
        several = [several] if isinstance(several, Mapping | str) else several
        values["data"] = [_changed_data(item, changes) for item in several]
    return validated(SuiteConfig, values, f"Suite {path}")


def _changed_data(data: Mapping[str, Any] | str, changes: Mapping[str, JsonValue]) -> dict[str, Any]:
    base = DataConfig.parse(data).model_dump() if isinstance(data, str) else dict(data)
    own = {key: value for key, value in changes.items() if key in DataConfig.model_fields}
    options = {key: value for key, value in changes.items() if key not in DataConfig.model_fields}
    return {**base, **own, "options": {**base.get("options", {}), **options}}


def parse_overrides(overrides: Iterable[str], sections: tuple[str, ...] = RUN_SECTIONS) -> dict[str, dict[str, JsonValue]]:
    """`section.key=value` texts as {section: {key: value}}; values are JSON where they parse as JSON, else text."""
    result: dict[str, dict[str, JsonValue]] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        section, dot, name = key.strip().partition(".")
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


def data_config(text: str, overrides: Iterable[str], max_images: int | None) -> DataConfig:
    """`NAME[:PATH]` with `--set data.K=V` applied."""
    values = _changed_data(text, parse_overrides(overrides, ("data",)).get("data", {}))
    return validated(DataConfig, values | ({"max_images": max_images} if max_images is not None else {}), "Data")


def run_config(
    *, backbone: str, strategy: str, data: str, seed: int = 0, max_images: int | None = None, overrides: Iterable[str] = ()
) -> RunConfig:
    """One run from the words of the command line."""
    changes = parse_overrides(overrides)
    data_values = _changed_data(data, changes.get("data", {}))
    if max_images is not None:
        data_values["max_images"] = max_images
    values = {
        "backbone": backbone,
        "strategy": strategy,
        "strategy_options": changes.get("strategy", {}),
        "data": data_values,
        "seed": seed,
        **{section: changes.get(section, {}) for section in SECTIONS},
    }
    return validated(RunConfig, values, "Run")
