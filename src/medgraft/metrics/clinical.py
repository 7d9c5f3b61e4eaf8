"""Lexical proxies of clinical content: whether modality, side, findings and measurements agree with the references.

These are only proxies: they match words in a plain-English list (`lexicon.toml`), so they miss other wordings, and a matching
word does not make a correct report. Scores of coverage state how many references the list covers.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from medgraft.metrics.base import CaptionMetric
from medgraft.metrics.measured import CaptionSet, Measured, ratios

_MEASURE = re.compile(r"\b(\d+(?:\.\d+)?)\s?(mm|cm)\b")
_OR, _GOES_ON = re.compile(r"\b(or|nor)\b"), re.compile(r"\s*(and|or|nor)\b")
_SIDES = re.compile(r"\b(left|right)\b")


@dataclass(frozen=True)
class Content:
    """The terms in a caption. A negated finding is a separate one: (name, False)."""

    modalities: frozenset[str]
    sides: frozenset[str]
    findings: frozenset[tuple[str, bool]]
    millimetres: frozenset[float]


def content(caption: str) -> Content:
    """The terms of the lexicon in `caption`."""
    text = caption.lower()
    lexicon = _lexicon()
    findings = {
        (name, not negated)
        for clause, negated in _clauses(text)
        for name, pattern in lexicon["findings"].items()
        if pattern.search(clause)
    }
    return Content(
        frozenset(name for name, pattern in lexicon["modalities"].items() if pattern.search(text)),
        frozenset(_SIDES.findall(text)),
        frozenset(findings),
        frozenset(float(value) * (10 if unit == "cm" else 1) for value, unit in _MEASURE.findall(text)),
    )


def _clauses(text: str) -> list[tuple[str, bool]]:
    """Parts of `text`, each with whether it is negated: up to the end of its clause, or of a list as in "no A, B or C"."""
    words = _lexicon()["negation"]
    parts = []
    for clause in re.split(r"[.;:]", words["ends"].sub(".", words["none"].sub(" ", text))):
        pieces, denied = clause.split(","), 0
        for place, piece in enumerate(pieces):
            if place < denied:
                parts.append((piece, True))
            elif after := words["after"].search(piece):
                parts += [(piece[: after.start()], True), (piece[after.end() :], False)]
            elif before := words["before"].search(piece):
                denied = place + _list_length([piece[before.start() :], *pieces[place + 1 :]])
                parts += [(piece[: before.start()], False), (piece[before.start() :], True)]
            else:
                parts.append((piece, False))
    return parts


def _list_length(pieces: Sequence[str]) -> int:
    """How many `pieces` between commas are denied with the first: those of a list that "or", "nor" or "and" ends."""
    length, closed, new_clause = 1, bool(_OR.search(pieces[0])), _lexicon()["negation"]["clause"]
    for place, piece in enumerate(pieces[1:], start=2):
        conjunction = _GOES_ON.match(piece)
        if (closed and not conjunction) or new_clause.match(_GOES_ON.sub("", piece).strip()):
            break
        if conjunction or _OR.search(piece) or " and " in piece:
            length, closed = place, True
    return length


@cache
def _lexicon() -> Mapping[str, Mapping[str, re.Pattern[str]]]:
    raw = tomllib.loads((files("medgraft.metrics") / "lexicon.toml").read_text(encoding="utf-8"))
    return {
        section: {name: re.compile(rf"(?<![\w-])(?:{'|'.join(patterns)})(?![\w-])") for name, patterns in entries.items()}
        for section, entries in raw.items()
    }


def _united(references: tuple[str, ...]) -> Content:
    """The terms in any of the references."""
    each = [content(reference) for reference in references]
    return Content(
        frozenset().union(*(c.modalities for c in each)),
        frozenset().union(*(c.sides for c in each)),
        frozenset().union(*(c.findings for c in each)),
        frozenset().union(*(c.millimetres for c in each)),
    )


class Clinical(CaptionMetric):
    """Shares of images or of findings.

    Among images whose references name one: `modality_accuracy`, `side_contradicted`, `side_omitted`. Over all findings, with
    negated ones separate: `finding_precision`, `finding_recall`, `finding_f1`. Over all images: `unsupported_measurement`, one
    that is in no reference; `finding_coverage` and `modality_coverage`, images whose references have terms of the lexicon.
    """

    summary = __doc__ or ""
    citation = "medgraft's lexicon"
    signature = "clinical|lexicon:2|findings:micro,negation apart|side:one named|measurement:mm,cm"

    def measure(self, captions: CaptionSet) -> Measured:
        """See CaptionMetric."""
        rows = [_row(content(p), _united(r)) for p, r in zip(captions.predictions, captions.references, strict=True)]
        return ratios({name: ([row[name][0] for row in rows], [row[name][1] for row in rows]) for name in rows[0]})


def _row(prediction: Content, reference: Content) -> dict[str, tuple[float, float]]:
    """One image's numerator and denominator of each score."""
    hits, named, sided = len(prediction.findings & reference.findings), bool(reference.modalities), len(reference.sides) == 1
    return {
        "modality_accuracy": (named and prediction.modalities == reference.modalities, named),
        "side_contradicted": (sided and bool(prediction.sides) and not prediction.sides & reference.sides, sided),
        "side_omitted": (sided and not prediction.sides, sided),
        "finding_precision": (hits, len(prediction.findings)),
        "finding_recall": (hits, len(reference.findings)),
        "finding_f1": (2 * hits, len(prediction.findings) + len(reference.findings)),
        "unsupported_measurement": (bool(prediction.millimetres - reference.millimetres), 1),
        "finding_coverage": (bool(reference.findings), 1),
        "modality_coverage": (named, 1),
    }
