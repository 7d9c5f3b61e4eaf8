"""Concept F1: UMLS concepts found in captions with the user's list of terms, compared with the data set's concepts.

The list follows the metric's name, `concepts:TERMS.csv`: a CSV with columns `cui` and `term`, one row per term, and
optionally `group`. Concepts of one group count as one, so synonyms do not count twice; those of the group `-` do not count,
so that words such as "arrow" win nothing. Concepts that are not in the list are ignored on both sides; `concept_coverage` is
the share of the references' concepts in the list.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medgraft.metrics.base import CaptionMetric
from medgraft.metrics.measured import CaptionSet, Measured, UnavailableError, ratios

_STOP = "-"


@dataclass(frozen=True)
class Terms:
    """`groups` by concept, without ignored ones; `known` has all concepts of the list; `pattern` matches any term."""

    groups: Mapping[str, str]
    known: frozenset[str]
    by_term: Mapping[str, frozenset[str]]
    pattern: re.Pattern[str]

    def in_caption(self, caption: str) -> frozenset[str]:
        """The groups of the terms in `caption`; of terms that begin at one position, the longest counts."""
        found = (self.by_term[" ".join(match[0].split())] for match in self.pattern.finditer(caption.lower()))
        return frozenset().union(*found)

    def of_concepts(self, concepts: tuple[str, ...]) -> frozenset[str]:
        """The groups of an image's concepts."""
        return frozenset(self.groups[cui] for cui in concepts if cui in self.groups)


class Concepts(CaptionMetric):
    """`concept_precision`, `concept_recall`, `concept_f1` over all images, and `concept_coverage`."""

    summary = __doc__ or ""
    citation = "ImageCLEFmedical Caption's UMLS concepts"

    def __init__(self, source: str = ""):
        self.source = source
        self.signature = f"concepts|terms:{Path(source).name}|micro|longest term|negation ignored"

    def measure(self, captions: CaptionSet) -> Measured:
        """See CaptionMetric."""
        if not self.source:
            raise UnavailableError("name a list of terms: concepts:TERMS.csv, with columns cui and term")
        terms = read_terms(Path(self.source).expanduser())
        if captions.concepts is None or not any(captions.concepts):
            raise UnavailableError("the data set has no concepts, as ROCO's cuis.txt and ROCOv2's *_concepts.csv have")
        rows: dict[str, tuple[list[float], list[float]]] = {}
        for caption, concepts in zip(captions.predictions, captions.concepts, strict=True):
            predicted, expected = terms.in_caption(caption), terms.of_concepts(concepts or ())
            hits = len(predicted & expected)
            for name, above, below in (
                ("concept_precision", hits, len(predicted)),
                ("concept_recall", hits, len(expected)),
                ("concept_f1", 2 * hits, len(predicted) + len(expected)),
                ("concept_coverage", sum(cui in terms.known for cui in concepts or ()), len(concepts or ())),
            ):
                columns = rows.setdefault(name, ([], []))
                columns[0].append(above)
                columns[1].append(below)
        return ratios(rows)


def read_terms(path: Path) -> Terms:
    """Read a CSV of terms; UnavailableError if it is not one."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            read = list(csv.DictReader(file, restkey=""))
            if any("" in row for row in read):
                raise UnavailableError(f"{path} has a row with more fields than columns; put terms with commas in quotes")
            rows = [{k.strip().lower(): (v or "").strip() for k, v in row.items()} for row in read]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnavailableError(f"{path} cannot be read as a list of terms: {error}") from None
    if not rows or not {"cui", "term"} <= set(rows[0]):
        raise UnavailableError(f"{path} is not a list of terms: it needs the columns cui and term")
    groups: dict[str, str] = {}
    for row in rows:
        group = row.get("group") or row["cui"]
        if groups.setdefault(row["cui"], group) != group:
            raise UnavailableError(f"{path} has {row['cui']} in two groups, {groups[row['cui']]} and {group}")
    by_term: dict[str, set[str]] = {}
    for row in rows:
        if row["term"] and groups[row["cui"]] != _STOP:
            by_term.setdefault(" ".join(row["term"].lower().split()), set()).add(groups[row["cui"]])
    longest = sorted(by_term, key=lambda term: (-len(term), term))
    words = "|".join(r"\s+".join(map(re.escape, term.split())) for term in longest) or r"(?!)"
    return Terms(
        {cui: group for cui, group in groups.items() if group != _STOP}, frozenset(groups),
        {term: frozenset(found) for term, found in by_term.items()}, re.compile(rf"(?<!\w)(?:{words})(?!\w)"),
    )  # fmt: skip
