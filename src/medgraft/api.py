"""The functions of `import medgraft`: what the command line does, for Python."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import overload

from medgraft import adapter as adapters
from medgraft import config as configs
from medgraft import hardware, processes
from medgraft.adapter import LoadedAdapter
from medgraft.backbones import AnyBackbone
from medgraft.benchmark import Record, execute, write_baselines
from medgraft.benchmark import run_suite as run_suite_runs
from medgraft.benchmark.baselines import baselines_of
from medgraft.benchmark.evaluation import Evaluation, caption_examples, score_captions, seen_in_training
from medgraft.captioning import ImageCaptions, opened
from medgraft.clock import Clock
from medgraft.config import DataConfig, GenerationConfig, RunConfig, RunSettings, SaliencyConfig, SuiteConfig, load_suite
from medgraft.data import load_data
from medgraft.data.given_images import (
    GivenImage,
    GivenPair,
    GivenStudy,
    given_image,
    given_images,
    given_prompts,
    is_single,
    write_pairs,
)  # fmt: skip
from medgraft.errors import BackboneError, ConfigError
from medgraft.inference import Inference
from medgraft.loading import captioner_of, loaded_adapter
from medgraft.metrics import check_metrics, with_task_metrics
from medgraft.plugin import PluginManager
from medgraft.progress import progress_bars
from medgraft.saliency import Explanation, MapOptions
from medgraft.saliency.maps import attention_layout_of
from medgraft.scoring import PredictionsFile
from medgraft.types import ImageSource, Prompts, Split


def run_config(
    *,
    data: str,
    backbone: str | None = None,
    strategy: str | None = None,
    start_from: str | Path | None = None,
    seed: int = 0,
    max_images: int | None = None,
    overrides: Iterable[str] = (),
) -> RunConfig:
    """The settings of a run, from what the command line takes; `overrides` are its `--set`.

    `start_from` is an adapter to go on from, which says backbone and strategy; a plain PEFT adapter says only the strategy.
    """
    if start_from is not None:
        backbone, strategy = adapters.named_by(str(start_from), backbone, strategy)
    return configs.run_config(
        data=data, backbone=backbone, strategy=strategy, start_from=None if start_from is None else str(start_from), seed=seed,
        max_images=max_images, overrides=overrides,
    )  # fmt: skip


def train(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    plugins: PluginManager | None = None,
) -> Record:
    """Train, package and evaluate the run `config`; `medgraft.run_config` makes one from command-line options.

    With `start_from` in the config, training goes on from that adapter's weights. `resume` goes on with a run that was stopped,
    or trains a finished one further if the config asks for more epochs and its optimiser state was saved. The first Ctrl-C or
    SIGTERM during training raises Stopped, a KeyboardInterrupt, after a checkpoint was written.
    """
    with progress_bars(progress):
        manager = plugins or PluginManager.from_environment()
        result = execute(config, Path(out), plugins=manager, resume=resume, overwrite=overwrite)
        write_baselines(result, Path(out), plugins=manager)
        return result.record


@overload
def caption(  # type: ignore[overload-overlap]
    images: GivenImage, *, adapter: LoadedAdapter | str | Path | None = ..., backbone: AnyBackbone | str | None = ...,
    prompt: str | None = ..., generation: GenerationConfig | None = ..., progress: bool = ...,
    plugins: PluginManager | None = ...,
) -> str: ...  # fmt: skip


@overload
def caption(
    images: Sequence[GivenImage | GivenStudy], *, adapter: LoadedAdapter | str | Path | None = ...,
    backbone: AnyBackbone | str | None = ..., prompt: Prompts | None = ..., generation: GenerationConfig | None = ...,
    progress: bool = ..., plugins: PluginManager | None = ...,
) -> list[str]: ...  # fmt: skip


def caption(
    images: GivenImage | Sequence[GivenImage | GivenStudy],
    *,
    adapter: LoadedAdapter | str | Path | None = None,
    backbone: AnyBackbone | str | None = None,
    prompt: Prompts | None = None,
    generation: GenerationConfig | None = None,
    progress: bool = False,
    plugins: PluginManager | None = None,
) -> str | list[str]:
    """The caption of an image, or a list with one for each of several.

    An image is a path, a PIL image, or an array [H, W, 3] or [H, W] of uint8 values, or of floats from 0 to 1; in the place of
    one a tuple of several is a study, whose images the model sees together. The captions are of an adapter (an object, a
    folder, a name on the hub) or a backbone without one. `prompt`, such as a question, or one for each image, takes the place
    of the model's own, and `generation` of the settings that the adapter was trained with.
    DataError at an image that cannot be read; `caption_each` goes on, and gives several captions of each image.
    """
    if generation is not None and generation.num_return_sequences > 1:
        raise ConfigError("medgraft.caption gives one caption for each image; medgraft.caption_each gives several.")
    given = given_images(images)
    prompts = given_prompts(prompt, len(given))
    with progress_bars(progress):
        model, own = captioner_of(adapter, backbone, plugins)
        captions = model.caption(given, generation or own, prompts).captions
    return captions[0] if is_single(images) else captions


def caption_each(
    images: GivenImage | Sequence[GivenImage | GivenStudy],
    *,
    adapter: LoadedAdapter | str | Path | None = None,
    backbone: AnyBackbone | str | None = None,
    prompt: Prompts | None = None,
    generation: GenerationConfig | None = None,
    plugins: PluginManager | None = None,
) -> Iterator[ImageCaptions]:
    """All captions of each image (see `caption`), as they are made; one that cannot be read has none, and its problem.

    The model is loaded at once, as by `caption`; `generation.num_return_sequences` is the number of captions.
    """
    given = given_images(images)
    prompts = given_prompts(prompt, len(given))
    model, own = captioner_of(adapter, backbone, plugins)
    return (each for batch in model.batches(given, generation or own, prompts) for each in batch.images)


def explain(
    image: GivenImage,
    *,
    adapter: LoadedAdapter | str | Path | None = None,
    backbone: AnyBackbone | str | None = None,
    caption: str | None = None,
    maps: MapOptions = MapOptions(),
    generation: GenerationConfig | None = None,
    plugins: PluginManager | None = None,
) -> Explanation:
    """Attention maps for each word of the caption, generated or given, of one image (see `caption`).

    `maps.method` is one of medgraft.saliency.METHODS; `maps.layers` and `maps.heads` select layers and heads, counted from 0.
    """
    given = given_image(image)
    with progress_bars(False):
        model, own = captioner_of(adapter, backbone, plugins)
        if not isinstance(model, Inference):
            raise BackboneError("A model behind an API returns no attention weights, so it cannot be explained.")
        attention_layout_of(model.backbone, maps.method)  # fail before generating a caption
        shown = opened(given)
        text = caption or model.caption([given], generation or own).captions[0]
        (found,) = model.maps([shown], [text], maps)
    if not found.words:
        which = given if isinstance(given, ImageSource) else "the image"
        raise BackboneError(f"The caption of {which} is {text!r}: there are no words to explain. Give one with --caption.")
    return Explanation(shown, found, model.backbone.visible_region(*shown.size))


def evaluate(
    data: str | DataConfig | GivenPair | Sequence[GivenPair],
    *,
    adapter: LoadedAdapter | str | Path | None = None,
    backbone: AnyBackbone | str | None = None,
    split: Split = "test",
    metrics: tuple[str, ...] = (),
    generation: GenerationConfig | None = None,
    progress: bool = False,
) -> Evaluation:
    """Caption a split of `NAME[:PATH]`, or images that are given with their reference captions, and score the captions.

    Images are given as a pair (image, caption or captions) or a list of such pairs, with images as `caption` takes them; their
    ids are their paths, or their places from 0, and `split` does not matter. `metrics` are by default those of the data's task.
    Warns if the adapter was trained on some of the images, or others of their patients or articles (see `data.on_leak`).
    """
    with ExitStack() as stack:
        if not isinstance(data, str | DataConfig):
            folder = stack.enter_context(TemporaryDirectory(prefix="medgraft-"))
            data, split = write_pairs(data, Path(folder)), "test"
        config = data if isinstance(data, DataConfig) else DataConfig.parse(data)
        stack.enter_context(progress_bars(progress))
        return evaluate_split(SplitEvaluation(config, split, metrics, generation, None), adapter, backbone)


@dataclass(frozen=True)
class SplitEvaluation:
    """What `evaluate` is asked for; the captions are written to `predictions` as they are made, if it is given."""

    data: DataConfig
    split: Split
    metrics: tuple[str, ...]
    generation: GenerationConfig | None
    predictions: Path | None


def evaluate_split(
    wanted: SplitEvaluation, adapter: LoadedAdapter | str | Path | None, backbone: AnyBackbone | str | None
) -> Evaluation:
    """See `evaluate`."""
    manager = PluginManager.from_environment()
    settings = RunSettings(metrics=wanted.metrics, saliency=SaliencyConfig(maps=0))
    settings = with_task_metrics(settings, [wanted.data], plugins=manager)
    check_metrics(settings.metrics, manager)
    loaded = loaded_adapter(adapter, backbone, manager)
    model, own = captioner_of(loaded, backbone, manager)
    with processes.one_first():
        read = load_data(wanted.data, plugins=manager, splits=(wanted.split,))
    examples = read.split(wanted.split)
    seen = seen_in_training(loaded, wanted.data, examples) if loaded else None
    writes = wanted.predictions is not None and hardware.is_main_process()
    with PredictionsFile(wanted.predictions) if wanted.predictions and writes else nullcontext() as file:
        captioned = caption_examples(model, examples, wanted.generation or own, file.add if file else None)
    found = score_captions(model, captioned, settings, plugins=manager, clock=Clock())
    report = replace(read.report, corrupt=(*read.report.corrupt, *captioned.problems))
    baselines = baselines_of(wanted.data, captioned.examples, settings.metrics, plugins=manager)
    return replace(found, data_report=report, seen_in_training=seen, baselines=baselines)


def run_suite(
    suite: str | Path | SuiteConfig,
    out: str | Path,
    *,
    overrides: Iterable[str] = (),
    progress: bool = True,
    plugins: PluginManager | None = None,
) -> tuple[Record, ...]:
    """Do every run of a suite (a TOML file) without a record in `out`, and return the records of all runs."""
    config = suite if isinstance(suite, SuiteConfig) else load_suite(Path(suite), overrides)
    with progress_bars(progress):
        return run_suite_runs(config, Path(out), plugins=plugins or PluginManager.from_environment())
