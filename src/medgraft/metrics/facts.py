"""Whether a caption of a phantom says what the phantom shows.

Phantoms are drawn from facts, so that a caption can be held against them and not against another caption's words. A fact
counts where the reference states it: a view that nobody mentions is not asked for. The finding is always asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from medgraft.metrics.base import CaptionMetric, CaptionSet, Measured, UnavailableError, ratios

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
# what contains another's words stands before it
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
    """The facts that `caption` states, by FIELDS; None for what it does not say, or, as its finding, for nothing found."""
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
    """Where `caption` names the finding, its side and its site: (start, end) in characters of each that it names."""
    _, positive = _readings(caption)
    places = {name: _first(of, positive)[1] for name, of in (("finding", _FINDINGS), ("side", _SIDES), ("site", _SITES))}
    return {name: place for name, place in places.items() if place is not None and places["finding"] is not None}


def _readings(caption: str) -> tuple[str, str]:
    """The caption in lower case, and the same with blanks for what it negates."""
    text = caption.lower()
    return text, _NEGATED.sub(lambda found: " " * len(found[0]), text)


def _first(patterns: tuple[tuple[str, str], ...], text: str) -> tuple[str | None, tuple[int, int] | None]:
    """The value of the first pattern that is found, and where it is."""
    found = ((value, match.span()) for pattern, value in patterns if (match := re.search(pattern, text)))
    return next(found, (None, None))


def _right(prediction: Mapping[str, Any], reference: Mapping[str, Any], shown: Mapping[str, Any], field: str) -> float:
    """1 or 0, NaN where the fact is not asked for."""
    if field != "finding" and reference[field] is None:
        return float("nan")
    return float(prediction[field] == shown[field])


class PhantomFacts(CaptionMetric):
    """`fact_FIELD`: the share of images whose caption has that fact right; `fact_all`: all that were asked for."""

    summary = __doc__ or ""
    citation = "medgraft's phantoms, facts.jsonl"
    signature = "facts|phantoms|asked for:stated by a reference|size:exact"

    def measure(self, captions: CaptionSet) -> Measured:
        """See CaptionMetric."""
        if captions.facts is None or any(facts is None for facts in captions.facts):
            raise UnavailableError("the data set does not say what its images show, as phantoms do")
        right = np.array(
            [
                [_right(stated_facts(prediction), stated_facts(references[0]), shown or {}, field) for field in FIELDS]
                for prediction, references, shown in zip(captions.predictions, captions.references, captions.facts, strict=True)
            ]
        )  # [N, fields]
        columns = {f"fact_{name.removesuffix('_mm')}": right[:, i] for i, name in enumerate(FIELDS)}
        columns["fact_all"] = np.nanmin(right, axis=1)
        return ratios({name: (np.nan_to_num(values), np.isfinite(values)) for name, values in columns.items()})
