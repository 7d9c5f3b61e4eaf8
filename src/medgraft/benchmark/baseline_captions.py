"""Captions of the baselines, which ignore the image: the most frequent, a random one, and answers from the question alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from medgraft.types import Example

STRATEGIES = ("most-frequent", "random")
QUESTION_ONLY = "question-only"  # for data with questions


def baseline_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """The baselines for `examples`; the last is for questions alone."""
    asked = any(example.prompt is not None for example in examples)
    return (*STRATEGIES, QUESTION_ONLY) if asked else STRATEGIES


def baseline_captions(name: str, train: Sequence[Example], examples: Sequence[Example]) -> list[str]:
    """A caption for each of `examples` by the baseline `name`, from the captions of `train`."""
    if name == QUESTION_ONLY:
        return _from_questions(train, examples)
    captions = [caption for example in train for caption in example.captions if caption]
    if name == "most-frequent":
        return [Counter(captions).most_common(1)[0][0]] * len(examples)
    return [captions[i] for i in np.random.default_rng(0).integers(0, len(captions), len(examples))]


def _from_questions(train: Sequence[Example], asked: Sequence[Example]) -> list[str]:
    """For each question the most frequent training answer to the same one, else to those of its type, else to any.

    The type is the data set's, or the question's first word. Neither letter case nor spaces count.
    """
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        for caption in filter(None, example.captions):
            for key in _question_keys(example):
                answers[key][_folded(caption)] += 1
    return [next(answers[key] for key in _question_keys(e) if key in answers).most_common(1)[0][0] for e in asked]


def _question_keys(example: Example) -> tuple[str, str, str]:
    """What training answers are looked up by, the closest first; every question has the last."""
    facts = example.facts or {}
    question = _folded(str(facts.get("question") or example.prompt or ""))
    kind = _folded(str(facts.get("question_type") or question.partition(" ")[0]))
    return f"question {question}", f"type {kind}", "any"


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
