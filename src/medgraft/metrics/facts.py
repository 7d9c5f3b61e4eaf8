"""Whether a caption of a phantom states the facts of its image.

Phantoms are drawn from facts, so a caption is compared with the facts and not with another caption's words. A fact counts if
the reference states it; for example, a view that the reference does not mention is not scored. The finding always counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from medgraft.metrics.base import CaptionMetric
from medgraft.metrics.measured import CaptionSet, Measured, UnavailableError, ratios

FIELDS = ("study", "view", "finding", "side", "site", "size_mm")
_NEGATED = re.compile(r"\b(no|without)\b[^.:;]*")
_STUDIES = (
    (r"x-ray|radiograph", "chest-xray"),
    (r"ultrasound|ultrasonography", "abdomen-us"),
    (r"\bmri\b|\bmr\b|magnetic resonance", "brain-mr"),
    (r"(\bct\b|computed tomography).*\bhead|\bhead (ct|computed tomography)", "head-ct"),
    (r"(\bct\b|computed tomography).*\bchest|\bchest (ct|computed tomography)", "chest-ct"),
    (r"(\bct\b|computed tomography).*\babdomen|\babdomen (ct|computed tomography)", "abdomen-ct"),
)
_VIEWS = ((r"\bpa\b|posteroanterior", "PA"), (r"\bap\b|anteroposterior|portable", "AP"), (r"sagittal", "sagittal"),
          (r"axial", "axial"))  # fmt: skip
# a value that contains another's words comes first
_FINDINGS = (
    (r"tumour|surrounding oedema", "tumour"),
    (r"subdural", "subdural haematoma"),
    (r"haemorrhage|haematoma", "haemorrhage"),
    (r"infarct", "infarct"),
    (r"clavicle", "clavicle fracture"),
    (r"fracture", "skull fracture"),
    (r"effusion", "pleural effusion"),
    (r"pneumothorax", "pneumothorax"),
    (r"cardiomegaly|enlargement of the heart", "cardiomegaly"),
    (r"consolidation", "consolidation"),
    (r"gallstone|(stone|calculus) in the gallbladder", "gallstone"),
    (r"\bstone|calculus", "stone"),
    (r"nodule|nodular", "nodule"),
    (r"cyst", "cyst"),
    (r"ascites|free fluid", "ascites"),
    (r"\bmass", "mass"),
)
_SIDES = ((r"\bleft\b", "left"), (r"\bright\b", "right"))
_SITES = (
    *((rf"\b{site}", site) for site in (
        "upper", "middle", "lower", "anterior", "posterior", "frontal", "parietal", "occipital", "cerebellum", "kidney",
    )),
    (r"gallstone|gallbladder", "gallbladder"),
    (r"(?<!around the )liver", "liver"),
)  # fmt: skip
_SIZE = re.compile(r"\b(\d+) ?mm\b")


def stated_facts(caption: str) -> dict[str, Any]:
    """The facts that `caption` states, by FIELDS; None for a missing one, and for `finding` if it states none."""
    text, positive = _readings(caption)
    size = _SIZE.search(positive)
    finding = _first(_FINDINGS, positive)
    return {
        "study": _first(_STUDIES, text)[0],
        "view": _first(_VIEWS, text)[0],
        "finding": finding[0],
        "side": _first(_SIDES, positive)[0],
        "site": _first(_SITES, positive)[0] if finding[0] else None,
        "size_mm": int(size[1]) if size else None,
    }


def where_stated(caption: str) -> dict[str, tuple[int, int]]:
    """(start, end) in characters of the finding, its side and its site in `caption`, for those that it names."""
    _, positive = _readings(caption)
    places = {name: _first(of, positive)[1] for name, of in (("finding", _FINDINGS), ("side", _SIDES), ("site", _SITES))}
    return {name: place for name, place in places.items() if place is not None and places["finding"] is not None}


def _readings(caption: str) -> tuple[str, str]:
    """The caption in lower case, and the same with negated parts blanked out."""
    text = caption.lower()
    return text, _NEGATED.sub(lambda found: " " * len(found[0]), text)


def _first(patterns: tuple[tuple[str, str], ...], text: str) -> tuple[str | None, tuple[int, int] | None]:
    """The value of the first matching pattern, and its position."""
    found = ((value, match.span()) for pattern, value in patterns if (match := re.search(pattern, text)))
    return next(found, (None, None))


def _right(prediction: Mapping[str, Any], reference: Mapping[str, Any], shown: Mapping[str, Any], field: str) -> float:
    """1 or 0, NaN if the fact does not count."""
    if field != "finding" and reference[field] is None:
        return float("nan")
    return float(prediction[field] == shown[field])


class PhantomFacts(CaptionMetric):
    """`fact_FIELD`: the share of images with that fact right in the caption; `fact_all`: with all facts that count right."""

    summary = __doc__ or ""
    citation = "medgraft's phantoms, facts.jsonl"
    signature = "facts|phantoms|asked for:stated by a reference|size:exact"

    def measure(self, captions: CaptionSet) -> Measured:
        """See CaptionMetric."""
        if captions.facts is None or any(not facts or not facts.keys() >= set(FIELDS) for facts in captions.facts):
            raise UnavailableError("the data set has no facts of its images, as phantoms have")
        each = [
            (stated_facts(prediction), stated_facts(references[0]), shown or {})
            for prediction, references, shown in zip(captions.predictions, captions.references, captions.facts, strict=True)
        ]
        right = np.array([[_right(*facts, field) for field in FIELDS] for facts in each])  # [N, fields]
        columns = {f"fact_{name.removesuffix('_mm')}": right[:, i] for i, name in enumerate(FIELDS)}
        columns["fact_all"] = np.nanmin(right, axis=1)
        return ratios({name: (np.nan_to_num(values), np.isfinite(values)) for name, values in columns.items()})
