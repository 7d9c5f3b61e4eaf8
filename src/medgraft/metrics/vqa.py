"""Answers to questions: exact match by the rules of the VQA v2 evaluator, token F1 and BLEU-1, open and closed ones apart.

Prediction and references are both put into the evaluator's form, always; it does so only where its ten people disagree. The
best of several references counts. A question is closed if its facts say so, else if every reference is yes or no.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medgraft.metrics.base import CaptionMetric
from medgraft.metrics.measured import Array, CaptionSet, Measured, ratios
from medgraft.metrics.vqa_answers import normalized_answer

_YES_NO = frozenset(("yes", "no"))
_BY = {"question_type": "type", "modality": "modality"}  # facts whose values have scores of their own


class Vqa(CaptionMetric):
    """`vqa_exact`, `vqa_f1` and `vqa_bleu_1`, each also as `vqa_open_...` and `vqa_closed_...`: means over questions.

    `vqa_yes_no` is the share of yes-no questions whose prediction says the right one of the two words and not the other.
    `vqa_exact_type_X` and `vqa_exact_modality_X` are over the questions of one type or modality, as the facts have them; a
    question of several types counts for each.
    """

    summary = __doc__ or ""
    citation = "Antol et al. 2015, arXiv 1505.00468; Rajpurkar et al. 2016, arXiv 1606.05250 (F1); Papineni et al. 2002 (BLEU)"
    signature = (
        "vqa|answers:VQA v2 evaluator, version 1, both sides|closed:facts, else yes or no|f1,bleu_1:tokens, per question"
    )

    def measure(self, captions: CaptionSet) -> Measured:
        """See CaptionMetric."""
        facts = [each or {} for each in captions.facts or (None,) * len(captions.predictions)]
        predicted = [normalized_answer(prediction).split() for prediction in captions.predictions]
        right = [[normalized_answer(answer).split() for answer in answers] for answers in captions.references]
        pairs = list(zip(predicted, right, strict=True))
        values: dict[str, Array] = {
            "exact": np.array([float(words in answers) for words, answers in pairs]),
            "f1": np.array([max(token_f1(words, answer) for answer in answers) for words, answers in pairs]),
            "bleu_1": np.array([bleu_1(words, answers) for words, answers in pairs]),
        }
        binary = np.array([all(" ".join(answer) in _YES_NO for answer in answers) for answers in right])
        named = [str(each.get("answer_type", "")).strip().casefold() for each in facts]
        closed = np.array([name == "closed" or (name != "open" and yes_no) for name, yes_no in zip(named, binary, strict=True)])
        parts = {"": np.ones(len(predicted), dtype=bool), "open_": ~closed, "closed_": closed}
        columns = {f"vqa_{part}{name}": (each, mask) for part, mask in parts.items() for name, each in values.items()}
        columns["vqa_yes_no"] = (np.array([_says(words, answers) for words, answers in pairs]), binary)
        columns |= {name: (values["exact"], mask) for name, mask in _groups(facts).items()}
        return ratios({name: (each * mask, mask) for name, (each, mask) in columns.items()})


def token_f1(words: Sequence[str], answer: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the tokens of `words` in `answer`, each counted as often as it occurs."""
    if not words or not answer:
        return float(words == answer)
    common = (Counter(words) & Counter(answer)).total()
    return 2 * common / (len(words) + len(answer))


def bleu_1(words: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """BLEU-1 of one answer: clipped precision of its tokens, times the penalty against the reference of closest length."""
    if not words:
        return float(any(not answer for answer in answers))
    most: Counter[str] = Counter()
    for answer in answers:
        most |= Counter(answer)
    closest = min((abs(len(answer) - len(words)), len(answer)) for answer in answers)[1]
    return (Counter(words) & most).total() / len(words) * min(1.0, math.exp(1 - closest / len(words)))


def _says(words: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Whether exactly one of yes and no is among `words`, and is the answer."""
    found = _YES_NO.intersection(words)
    return float(len(found) == 1 and list(found) in answers)


def _groups(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Masks over the questions, by the name of the score of each type and modality."""
    masks: dict[str, Any] = {}
    for fact, short in _BY.items():
        for place, each in enumerate(facts):
            for value in str(each.get(fact) or "").split(","):
                if name := re.sub(r"\W+", "_", value.strip().casefold()).strip("_"):
                    masks.setdefault(f"vqa_exact_{short}_{name}", np.zeros(len(facts), dtype=bool))[place] = True
    return dict(sorted(masks.items()))
