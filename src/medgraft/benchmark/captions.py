"""What a run said of each image, beside what it is scored against: `predictions.json` in a run's folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from medgraft.metrics import CaptionSet
from medgraft.metrics.saliency_scores import SaliencyScores
from medgraft.types import Example

_FILE = "predictions.json"


@dataclass(frozen=True)
class RunCaptions:
    """By image id: captions said, reference captions, groups, facts and concepts if the data set has them, where was looked."""

    predictions: Mapping[str, str]
    references: Mapping[str, tuple[str, ...]]
    groups: Mapping[str, str | None]
    facts: Mapping[str, Mapping[str, Any]]
    saliency: Mapping[str, SaliencyScores] = field(default_factory=dict)
    concepts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def ids(self) -> tuple[str, ...]:
        """Image ids in the order in which everything about them is listed."""
        return tuple(sorted(self.predictions))

    def caption_set(self) -> CaptionSet:
        """As metrics take them."""
        return CaptionSet(
            tuple(self.predictions[key] for key in self.ids),
            tuple(self.references[key] for key in self.ids),
            tuple(self.facts.get(key) for key in self.ids) if self.facts else None,
            saliency=tuple(self.saliency.get(key) for key in self.ids) if self.saliency else None,
            concepts=tuple(self.concepts.get(key) for key in self.ids) if self.concepts else None,
        )

    def group_names(self) -> tuple[str | None, ...]:
        """The group of each image."""
        return tuple(self.groups.get(key) for key in self.ids)


def captions_of(
    examples: Sequence[Example], captions: Sequence[str], saliency: Mapping[str, SaliencyScores] | None = None
) -> RunCaptions:
    """`captions` of `examples`, in their order, and where was looked by their ids."""
    return RunCaptions(
        predictions={example.id: caption for example, caption in zip(examples, captions, strict=True)},
        references={example.id: tuple(caption for caption in example.captions if caption) for example in examples},
        groups={example.id: example.group for example in examples},
        facts={example.id: example.facts for example in examples if example.facts is not None},
        saliency=saliency or {},
        concepts={example.id: example.concepts for example in examples if example.concepts is not None},
    )


def write_captions(captions: RunCaptions, folder: Path) -> None:
    """Write `predictions.json` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _FILE).write_text(json.dumps(_rounded(asdict(captions)), indent=0, ensure_ascii=False), encoding="utf-8")


def read_captions(folder: Path) -> RunCaptions | None:
    """What `write_captions` wrote into `folder`, None if nothing was."""
    try:
        content = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    references = {key: tuple(texts) for key, texts in content["references"].items()}
    saliency = TypeAdapter(dict[str, SaliencyScores]).validate_python(content.get("saliency", content.get("looks", {})))
    concepts = {key: tuple(cuis) for key, cuis in content.get("concepts", {}).items()}
    facts, groups = content.get("facts", {}), content.get("groups", {})
    return RunCaptions(content["predictions"], references, groups, facts, saliency, concepts)


def _rounded(value: Any) -> Any:
    """Numbers with four decimals, which is more than what they are good for."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def shuffled(captions: RunCaptions, seed: int = 0) -> RunCaptions:
    """The same captions said of other images: what is left of a score is not about the image."""
    ids = list(captions.ids)
    order = [ids[i] for i in np.random.default_rng(seed).permutation(len(ids))]
    moved = dict(zip(order, (*order[1:], order[0]), strict=True))  # one cycle, so that nobody keeps its own
    return replace(captions, predictions={key: captions.predictions[other] for key, other in moved.items()}, saliency={})


def collapse(captions: RunCaptions) -> dict[str, float]:
    """`distinct_share`: different captions of all captions; `most_frequent_share`: images that got the commonest caption."""
    counts = Counter(captions.predictions.values())
    images = len(captions.predictions)
    return {"distinct_share": len(counts) / images, "most_frequent_share": counts.most_common(1)[0][1] / images}
