"""What a run is made of, as strict models: an unknown key or a wrong value is an error that names every problem."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from medgraft.errors import ConfigError, suggestion

ModelT = TypeVar("ModelT", bound=BaseModel)


class StrictModel(BaseModel):
    """Immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(StrictModel):
    """Which data set, where it lies, and the options of its reader."""

    name: str
    path: str | None = None
    options: dict[str, JsonValue] = Field(default_factory=dict)
    max_images: int | None = Field(default=None, gt=0, description="images of each split, the first ones")

    @classmethod
    def parse(cls, text: str) -> DataConfig:
        """`NAME` or `NAME:PATH`."""
        name, _, path = text.partition(":")
        if not name:
            raise ConfigError(f"Data {text!r} has no name. Write NAME or NAME:PATH, such as roco:/data/roco.")
        return cls(name=name, path=path or None)


class TrainConfig(StrictModel):
    """How to train, in the words of transformers' TrainingArguments."""

    num_train_epochs: float = Field(default=3.0, gt=0)
    max_steps: int = Field(default=-1, ge=-1, description="overrides num_train_epochs if positive")
    per_device_train_batch_size: int = Field(default=16, gt=0)
    per_device_eval_batch_size: int = Field(default=32, gt=0)
    gradient_accumulation_steps: int = Field(default=1, gt=0)
    gradient_checkpointing: bool = False
    learning_rate: float | None = Field(default=None, gt=0, description="the strategy's own if not given")
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = Field(default=0.05, ge=0, description="steps, or a share of all steps if below 1")
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    optim: str = "adamw_torch_fused"
    bf16: bool | Literal["auto"] = "auto"
    max_text_tokens: int = Field(default=128, gt=2, description="longer captions are cut, with [DEC] and [SEP] counted")
    prompt: str | None = Field(default=None, description="text before every caption; the backbone's own if not given")
    save_steps: int | None = Field(default=None, gt=0, description="checkpoints for --resume; each epoch if not given")
    save_total_limit: int = Field(default=1, gt=0)
    group_by_length: bool = Field(default=False, description="batches of like length: less padding, but lower scores")
    eval_during_training: bool = Field(default=False, description="validation loss after each epoch")
    dataloader_num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        default="auto", description="auto: 0 on a CPU; up to 8 beside an accelerator, 0 where all features lie in its memory"
    )
    pixel_cache_gb: float = Field(default=0.5, ge=0, description="memory for images kept decoded and resized")
    report_to: tuple[str, ...] = ()


DISCARDED_STEPS = 3  # at the beginning of a run, which are slower
METRICS = ("bleu", "rouge_l", "cider", "rouge_1", "clinical", "facts", "localization")
LOOKS = ("localization", "faithfulness")  # metrics of where a model looked
CONTROLS = ("_uniform", "_untrained", "_random")  # ends of scores that only say what chance gets


class GenerationConfig(StrictModel):
    """How captions are decoded, in transformers' words; lengths in word pieces, prompt not counted."""

    max_new_tokens: int = Field(default=96, gt=0)
    num_beams: int = Field(default=1, gt=0)
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = Field(default=0, ge=0)
    repetition_penalty: float = Field(default=1.0, gt=0)


class FeaturesConfig(StrictModel):
    """The feature store, which keeps what frozen parts make of each image."""

    enabled: bool = True
    max_gb: float = Field(default=10.0, ge=0, description="what the store may take on disk, all models together")
    device_gb: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        default="auto", description="training features in the device's memory; auto: 40 % of an accelerator's free memory"
    )


class AccelerationConfig(StrictModel):
    """What makes steps quicker without changing what they compute."""

    cuda_graphs: bool | Literal["auto"] = Field(default="auto", description="replay training steps as CUDA graphs")


class SaliencyConfig(StrictModel):
    """Attention maps of test images: those that the report shows, and those that deletion and insertion are tried on."""

    maps: int = Field(default=128, ge=0, description="images whose maps are kept for the report")
    curves: int = Field(default=24, ge=0, description="images for the metric 'faithfulness', the first ones")


class RunConfig(StrictModel):
    """One run: backbone x strategy x data set x seed."""

    backbone: str
    strategy: str
    strategy_options: dict[str, JsonValue] = Field(default_factory=dict)
    data: DataConfig
    train: TrainConfig = TrainConfig()
    generation: GenerationConfig = GenerationConfig()
    features: FeaturesConfig = FeaturesConfig()
    acceleration: AccelerationConfig = AccelerationConfig()
    saliency: SaliencyConfig = SaliencyConfig()
    metrics: tuple[str, ...] = METRICS
    eval_split: Literal["train", "validation", "test"] = "test"
    seed: int = Field(default=0, ge=0)


class TuningConfig(StrictModel):
    """The same small budget for every strategy: learning rates tried on validation images before the suite's own runs.

    Each of `factors` times the rate that the strategy would have is tried once; the rate with the best `score` is used by
    all of its runs, the lower one of two that score the same.
    """

    factors: tuple[float, ...] = Field(default=(0.3, 1.0, 3.0), min_length=1)
    score: str = "cider"
    num_train_epochs: float | None = Field(default=None, gt=0, description="of each try; the suite's own if not given")
    seed: int = Field(default=1000, ge=0)

    @field_validator("factors")
    @classmethod
    def _positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if min(value) <= 0 or len(set(value)) < len(value):
            raise ValueError("factors are different numbers above 0")
        return value


class TimingConfig(StrictModel):
    """Steps timed for themselves, after the runs: `steps` of each run, the grid over and over, the first ones left out."""

    repeats: int = Field(default=3, ge=2)
    steps: int = Field(default=20, ge=DISCARDED_STEPS + 4)


class BackboneRows(StrictModel):
    """A backbone in a suite that is run with strategies of its own."""

    backbone: str
    strategies: tuple[str, ...] = Field(min_length=1)


class SuiteConfig(StrictModel):
    """A grid of runs. `overrides` holds settings for single strategies, as `[overrides.lora.train]` tables.

    A backbone is a name, to be run with all `strategies`, or a table that names its own.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    description: str = ""
    backbones: tuple[str | BackboneRows, ...] = Field(min_length=1)
    strategies: tuple[str, ...] = Field(min_length=1)
    data: tuple[DataConfig, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    train: TrainConfig = TrainConfig()
    generation: GenerationConfig = GenerationConfig()
    features: FeaturesConfig = FeaturesConfig()
    acceleration: AccelerationConfig = AccelerationConfig()
    saliency: SaliencyConfig = SaliencyConfig()
    metrics: tuple[str, ...] = METRICS
    eval_split: Literal["train", "validation", "test"] = "test"
    overrides: dict[str, dict[Literal["train", "strategy"], dict[str, JsonValue]]] = Field(default_factory=dict)
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


def validated(model: type[ModelT], values: Mapping[str, Any], what: str) -> ModelT:
    """`model` made from `values`; ConfigError lists every problem, with suggestions for unknown keys."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{what}: {'; '.join(_problems(model, error))}") from None


def _problems(model: type[BaseModel], error: ValidationError) -> Iterable[str]:
    for problem in error.errors():
        where = ".".join(str(step) for step in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _fields_at(model, problem["loc"][:-1])
            yield f"unknown key {where!r}.{suggestion(str(problem['loc'][-1]), known) or ' Known: ' + ', '.join(known)}"
        else:
            yield f"{where}: {problem['msg']}"


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for step in path:
        annotation = model.model_fields[str(step)].annotation if str(step) in model.model_fields else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)


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


SUITE_SECTIONS = ("train", "generation", "features", "acceleration", "saliency", "tuning", "timing", "data")


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


SECTIONS = ("strategy", "train", "data", "generation", "features", "acceleration", "saliency")


def parse_overrides(overrides: Iterable[str], sections: tuple[str, ...] = SECTIONS) -> dict[str, dict[str, JsonValue]]:
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
        "train": changes.get("train", {}),
        "generation": changes.get("generation", {}),
        "features": changes.get("features", {}),
        "acceleration": changes.get("acceleration", {}),
        "saliency": changes.get("saliency", {}),
        "seed": seed,
    }
    return validated(RunConfig, values, "Run")
