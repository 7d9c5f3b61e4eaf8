"""Questions about phantoms, made from their facts: what kind of image, which finding, where, on which side, yes or no."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from medgraft.data.phantoms import Phantoms
from medgraft.data.phantoms.facts import STUDIES, Study
from medgraft.data.questions import METRICS, PROMPT
from medgraft.types import Example

_NAMES: Mapping[Study, str] = {
    "chest-xray": "chest radiograph", "chest-ct": "chest CT", "abdomen-ct": "abdominal CT", "head-ct": "head CT",
    "brain-mr": "brain MRI", "abdomen-us": "abdominal ultrasound",
}  # fmt: skip
_WITHOUT_ARTICLE = ("ascites", "cardiomegaly", "consolidation")
_PRESENT = 0.6  # so that half of the answers are yes, as some images are normal
_Question = tuple[str, str, str, str]  # question, answer, answer_type, question_type


class PhantomQuestions(Phantoms):
    """Phantoms as questions and answers, `questions` of each image; the facts say of which type each is."""

    metrics: ClassVar[tuple[str, ...]] = METRICS
    default_prompt: ClassVar[str | None] = PROMPT

    questions: int = Field(default=3, gt=0, description="questions asked of each image, as far as its facts give as many")

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        for example in super().read(path):
            facts = example.facts or {}
            rng = np.random.default_rng(int.from_bytes(hashlib.sha256(example.id.encode()).digest()[:8], "big"))
            asked = _questions(facts, rng) if facts else []
            for number in sorted(rng.permutation(len(asked))[: self.questions].tolist()):
                question, answer, kind, what = asked[number]
                described = {
                    "question": question,
                    "answer_type": kind,
                    "question_type": what,
                    "modality": _modality(facts["study"]),
                }
                yield replace(example, id=f"{example.id}#{what}", captions=(answer,), facts={**facts, **described})


def _questions(facts: Mapping[str, Any], rng: np.random.Generator) -> list[_Question]:
    """All that can be asked; of a finding that is not there as often as of the one that is."""
    study: Study = facts["study"]
    finding, side, site = facts.get("finding"), facts.get("side"), facts.get("site")
    found = [
        (
            _pick(rng, "What kind of image is this?", "Which modality and body part are seen?"),
            _NAMES[study],
            "open",
            "modality",
        ),
        ("Is this image normal?", "no" if finding else "yes", "closed", "normal"),
    ]
    # a gallstone is a stone
    others = [kind.name for kind in STUDIES[study] if not finding or (kind.name not in finding and finding not in kind.name)]
    present = finding is not None and rng.random() < _PRESENT
    asked = str(finding) if present else _pick(rng, *others)
    found.append((f"Is there {_indefinite(asked)}?", "yes" if present else "no", "closed", "presence"))
    if finding:
        found.append((_pick(rng, "What is the abnormality?", "Which finding is seen?"), finding, "open", "finding"))
    if side:
        found.append((f"On which side is the {finding}?", side, "open", "side"))
    if site:
        found.append((f"Where is the {finding}?", site, "open", "site"))
    if study == "chest-xray":
        found.append(("Is this a PA or an AP view?", facts["view"], "closed", "view"))
    return found


def _modality(study: Study) -> str:
    return {"xray": "X-ray", "ct": "CT", "mr": "MR", "us": "ultrasound"}[study.rpartition("-")[2]]


def _indefinite(name: str) -> str:
    return name if name in _WITHOUT_ARTICLE else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _pick(rng: np.random.Generator, *texts: str) -> str:
    return texts[int(rng.integers(len(texts)))]
