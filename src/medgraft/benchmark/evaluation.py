"""Captions a split and scores the captions."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from medgraft import hardware, processes
from medgraft.adapter import LoadedAdapter, SeenInTraining, Start
from medgraft.adapter.base_name import public_options
from medgraft.benchmark.frames import images_frame
from medgraft.benchmark.saliency import SaliencyResult, score_saliency
from medgraft.captioning import Generated
from medgraft.clock import Clock
from medgraft.config import SALIENCY_METRICS, DataConfig, GenerationConfig, RunSettings
from medgraft.errors import DataError, first_line
from medgraft.inference import Captioner, Inference
from medgraft.metrics import Scores, measure
from medgraft.plugin import PluginManager
from medgraft.progress import progress_bar
from medgraft.scoring import RunCaptions, captions_of, collapse, shuffled
from medgraft.sequences import Chosen
from medgraft.stats import Interval, score_intervals
from medgraft.text_statistics import GenerationStatistics, caption_warnings
from medgraft.token_counts import generation_statistics
from medgraft.types import DataReport, Example

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Predictions, their scores with intervals, and signs of captions that ignore the image.

    `collapse` holds the shares of `scoring.collapse` and, as `shuffled_NAME`, every score with each caption moved to another
    image. `maps` are packed attention maps by image id. `peak_memory_bytes` covers training and captioning, without maps.
    `generated` counts the captions that were cut off; None for captions that no model generated.
    `medgraft.evaluate` adds the report of its data, how many images the adapter was trained on (None if that is unknown), and
    the evaluations of captions that ignore the image, by name (see benchmark.baselines; none without training images).
    """

    captions: RunCaptions
    scores: Scores
    intervals: Mapping[str, Interval]
    collapse: Mapping[str, float]
    maps: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    generated: GenerationStatistics | None = None
    data_report: DataReport = field(default_factory=DataReport)
    seen_in_training: SeenInTraining | None = None
    baselines: Mapping[str, Evaluation] = field(default_factory=dict)

    @property
    def predictions(self) -> Mapping[str, str]:
        """Captions by image id."""
        return self.captions.predictions

    @property
    def references(self) -> Mapping[str, tuple[str, ...]]:
        """Reference captions by image id."""
        return self.captions.references

    def for_record(self) -> dict[str, Any]:
        """The evaluation's fields of a Record."""
        return {
            "metrics": dict(self.scores.values),
            "intervals": {name: (interval.low, interval.high) for name, interval in self.intervals.items()},
            "collapse": dict(self.collapse),
            "signatures": dict(self.scores.signatures),
            "unavailable": dict(self.scores.unavailable),
            "notes": self.scores.notes or None,
            "generated": self.generated,
        }

    def warnings(self) -> list[str]:
        """Lines on captions that were cut off, on most of them being empty or equal, and the metrics' notes."""
        cut_off = self.generated.warnings() if self.generated else []
        return [*cut_off, *caption_warnings(list(self.predictions.values())), *self.scores.notes]

    @property
    def metrics(self) -> Mapping[str, float]:
        """Every score by name."""
        return self.scores.values

    def to_frame(self) -> pd.DataFrame:
        """One row for each image, by id: `caption`, `references`, `group` and the image's own scores; NaN where it has none."""
        return images_frame(self.captions, self.scores)


@dataclass(frozen=True)
class Captioned:
    """The examples whose images could be read, what was generated for them, and the `problems` of the others."""

    examples: Sequence[Example]
    generated: Generated
    problems: tuple[str, ...] = ()


def caption_examples(
    captioner: Captioner,
    examples: Sequence[Example],
    generation: GenerationConfig,
    save: Callable[[str, str], None] | None = None,
) -> Captioned:
    """Caption `examples`, the first caption of each image; goes on after an image that cannot be read, with a warning.

    `save` is called with each id and caption as it is made. DataError if no image can be read.
    """
    if generation.num_return_sequences > 1:
        _logger.info("The first of the %d captions of each image is scored.", generation.num_return_sequences)
    places = array("I")
    cut_off: int | None = 0
    captions: list[str] = []
    problems: list[str] = []
    with progress_bar(total=len(examples), desc="captioning", unit="image") as bar:
        images, prompts = [example.images for example in examples], [example.prompt for example in examples]
        for batch in captioner.batches(images, generation, prompts):
            for place, each in enumerate(batch.images, len(captions) + len(problems)):
                if each.problem is not None:
                    problems.append(each.problem)
                    continue
                places.append(place)
                captions.append(each.captions[0])
                if save is not None:
                    save(examples[place].id, each.captions[0])
            cut_off = None if cut_off is None or batch.cut_off is None else cut_off + batch.cut_off
            bar.update(len(batch.images))
    if problems and not captions:
        raise DataError(f"None of the {len(problems)} images can be read, such as: {problems[0]}")
    if problems:
        _logger.warning("Left out while captioning: %d of %d images, such as: %s", len(problems), len(examples), problems[0])
    generated = Generated(captions, cut_off, captioner.token_limit(generation))
    return Captioned(Chosen(examples, places) if problems else examples, generated, tuple(problems))


def score_captions(
    captioner: Captioner, captioned: Captioned, settings: RunSettings, *, plugins: PluginManager, clock: Clock
) -> Evaluation:
    """Scores of what `captioner` generated, and the saliency scores that `settings` ask for.

    Logs a warning if captions were cut off, if most of them are empty or equal, and for each note of a metric.
    """
    examples, captions = captioned.examples, captioned.generated.captions
    peak = hardware.largest(hardware.peak_memory_bytes())
    with clock.phase("saliency"):
        saliency, obstacle = _saliency(captioner, examples, captions, settings)
    with clock.phase("scoring"):
        found = evaluated(captions_of(examples, captions, saliency.scores), metrics=settings.metrics, plugins=plugins)
        backbone = captioner.backbone if isinstance(captioner, Inference) else None
        statistics = generation_statistics(backbone, examples, captioned.generated)
    reasons = dict(found.scores.unavailable)
    reasons |= {name: obstacle for name in SALIENCY_METRICS if name in settings.metrics and obstacle}
    scores = replace(found.scores, unavailable=reasons)
    found = replace(found, maps=saliency.maps, scores=scores, peak_memory_bytes=peak, generated=statistics)
    for warning in found.warnings():
        _logger.warning("%s", warning)
    return found


def _saliency(
    captioner: Captioner, examples: Sequence[Example], captions: Sequence[str], settings: RunSettings
) -> tuple[SaliencyResult, str | None]:
    """Saliency of the captions, and the reason if it cannot be computed."""
    if not hardware.is_main_process():
        return SaliencyResult({}, {}), None
    if not isinstance(captioner, Inference):
        return SaliencyResult({}, {}), "a model behind an API returns no attention weights"
    try:
        return score_saliency(
            captioner, examples, {example.id: caption for example, caption in zip(examples, captions, strict=True)},
            pointing="localization" in settings.metrics,
            curves=settings.saliency.curves if "faithfulness" in settings.metrics else 0, maps=settings.saliency.maps,
        ), None  # fmt: skip
    except Exception as error:  # such as out of memory: a finished run is not lost because of its maps
        _logger.debug("no attention maps", exc_info=True)
        return SaliencyResult({}, {}), first_line(error)


def evaluated(captions: RunCaptions, *, metrics: tuple[str, ...], plugins: PluginManager) -> Evaluation:
    """Scores of `captions`, with 95 % intervals over groups for metrics that measure every image.

    Of several processes the main one has them all, and the others help.
    """
    own = metrics if hardware.is_main_process() else ()
    scores = measure(captions.caption_set(), metrics=own, plugins=plugins)
    intervals = score_intervals(scores, captions.group_names())
    signs = collapse(captions)
    if len(captions.ids) > 1:
        others = shuffled(captions).caption_set()
        shared = (measure(others, metrics=[name], plugins=plugins).values for name in hardware.share(metrics))
        for values in processes.in_turn(len(metrics), shared):
            signs |= {f"shuffled_{name}": value for name, value in values.items()}
    return Evaluation(captions, scores, intervals, signs)


def seen_in_training(adapter: LoadedAdapter | Start, data: DataConfig, examples: Sequence[Example]) -> SeenInTraining | None:
    """How many of `examples`, read by `data`, the adapter was trained on; None if that is unknown.

    Warns if there are any, and if the data are read by other options than in training. With `data.on_leak` "error" trained
    examples are a DataError.
    """
    if adapter.manifest is not None and adapter.manifest.data["name"] == data.name:
        before, now = adapter.manifest.data, data.model_dump()
        before, now = ({n: d.get(n) for n in ("window", "frame")} | public_options(d.get("options", {})) for d in (before, now))
        changed = [name for name in dict.fromkeys((*before, *now)) if before.get(name) != now.get(name)]
        shown = ", ".join(f"data.{name} was {_setting(before, name)} and is {_setting(now, name)}" for name in changed)
        if changed:
            _logger.warning("The data are read by other options than in training, so splits may differ: %s.", shown)
    seen = adapter.trained_on.seen(examples) if adapter.trained_on else None
    if seen is not None and (seen.images or seen.groups):
        if data.on_leak == "error":
            raise DataError(f"{seen} Score a split that it was not trained on, with the data options of its training.")
        _logger.warning("%s Its scores on them do not show what it does on new images.", seen)
    return seen


def _setting(options: Mapping[str, Any], name: str) -> str:
    return "not set" if options.get(name) is None else repr(options[name])
