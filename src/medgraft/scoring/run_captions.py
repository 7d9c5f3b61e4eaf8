"""A run's predictions with their references, stored as `predictions.json` in the run's folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from medgraft.disk import write_whole
from medgraft.errors import ScoringError
from medgraft.metrics import CaptionSet
from medgraft.metrics.saliency_scores import SaliencyScores
from medgraft.types import Example

PREDICTIONS_FILE = "predictions.json"


@dataclass(frozen=True)
class RunCaptions:
    """By image id: predictions, references and groups; facts, concepts, saliency scores and prompts where there are any.

    An example that shares its image with others, such as a question, has an id of its own.
    """

    predictions: Mapping[str, str]
    references: Mapping[str, tuple[str, ...]]
    groups: Mapping[str, str | None]
    facts: Mapping[str, Mapping[str, Any]]
    saliency: Mapping[str, SaliencyScores] = field(default_factory=dict)
    concepts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)

    @property
    def ids(self) -> tuple[str, ...]:
        """Image ids, in the order of `caption_set` and `group_names`."""
        return tuple(sorted(self.predictions))

    def caption_set(self) -> CaptionSet:
        """The captions in the form that metrics take."""
        return CaptionSet(
            tuple(self.predictions[key] for key in self.ids),
            tuple(self.references[key] for key in self.ids),
            tuple(self.facts.get(key) for key in self.ids) if self.facts else None,
            saliency=tuple(self.saliency.get(key) for key in self.ids) if self.saliency else None,
            concepts=tuple(self.concepts.get(key) for key in self.ids) if self.concepts else None,
        )

    def group_names(self) -> tuple[str | None, ...]:
        """The group of each image, in the order of `ids`."""
        return tuple(self.groups.get(key) for key in self.ids)


def captions_of(
    examples: Sequence[Example], captions: Sequence[str], saliency: Mapping[str, SaliencyScores] | None = None
) -> RunCaptions:
    """`captions` of `examples`, in their order, with saliency scores by image id."""
    return RunCaptions(
        predictions={example.id: caption for example, caption in zip(examples, captions, strict=True)},
        references={example.id: tuple(caption for caption in example.captions if caption) for example in examples},
        groups={example.id: example.group for example in examples},
        facts={example.id: example.facts for example in examples if example.facts is not None},
        saliency=saliency or {},
        concepts={example.id: example.concepts for example in examples if example.concepts is not None},
        prompts={example.id: example.prompt for example in examples if example.prompt is not None},
    )


def write_captions(captions: RunCaptions, folder: Path) -> None:
    """Write `predictions.json` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / PREDICTIONS_FILE, json.dumps(_rounded(asdict(captions)), indent=0, ensure_ascii=False))


def read_captions(folder: Path) -> RunCaptions | None:
    """The content of `predictions.json` in `folder`, None if there is no such file; ScoringError if it cannot be read."""
    path = folder / PREDICTIONS_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ScoringError(f"{path} cannot be read: {error}") from None
    return captions_from(content, path)


def captions_from(content: Any, path: Path) -> RunCaptions:
    """The captions in `content` of a `predictions.json`; ScoringError naming `path` if it is not in that form."""
    try:
        predictions = dict[str, str](content["predictions"])
        references = {key: tuple(texts) for key, texts in content["references"].items()}
        saliency = TypeAdapter(dict[str, SaliencyScores]).validate_python(content.get("saliency", content.get("looks", {})))
        concepts = {key: tuple(cuis) for key, cuis in content.get("concepts", {}).items()}
        prompts = dict[str, str](content.get("prompts", {}))
        if not predictions or predictions.keys() != references.keys():
            raise ValueError(f"{len(predictions)} predictions and {len(references)} references")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScoringError(f"{path} does not hold the captions of a run: {type(error).__name__} {error}") from None
    groups, facts = content.get("groups", {}), content.get("facts", {})
    return RunCaptions(predictions, references, groups, facts, saliency, concepts, prompts)


def _rounded(value: Any) -> Any:
    """`value` with its numbers rounded to four decimals, which is more precise than any score."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def shuffled(captions: RunCaptions, seed: int = 0) -> RunCaptions:
    """Each caption moved to another image; what remains of a score does not depend on the image."""
    ids = list(captions.ids)
    order = [ids[i] for i in np.random.default_rng(seed).permutation(len(ids))]
    moved = dict(zip(order, (*order[1:], order[0]), strict=True))  # one cycle, so that no image gets its own caption
    return replace(captions, predictions={key: captions.predictions[other] for key, other in moved.items()}, saliency={})


def collapse(captions: RunCaptions) -> dict[str, float]:
    """`distinct_share`: distinct captions per image; `most_frequent_share`: share of images with the most frequent caption.

    Empty for a single image, of which both would be 1.
    """
    counts = Counter(captions.predictions.values())
    images = len(captions.predictions)
    if images < 2:
        return {}
    return {"distinct_share": len(counts) / images, "most_frequent_share": counts.most_common(1)[0][1] / images}
