"""The facts of a phantom, from which its image is rendered and its caption written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Study = Literal["chest-xray", "chest-ct", "abdomen-ct", "head-ct", "brain-mr", "abdomen-us"]


@dataclass(frozen=True)
class Finding:
    """A kind of finding in a study: possible sites, whether it has a side, and its size range in mm (None: not measured)."""

    name: str
    sites: tuple[str | None, ...]
    sided: bool
    size_mm: tuple[int, int] | None


@dataclass(frozen=True)
class Facts:
    """The facts of one image. `side` is the patient's, which is the opposite side of a frontal or axial image."""

    study: Study
    view: str
    contrast: str | None  # CT window or MR weighting
    finding: str | None
    side: Literal["left", "right"] | None
    site: str | None
    size_mm: int | None
    arrow: bool


_LOBES = ("upper", "middle", "lower")
_BRAIN = ("frontal", "parietal", "occipital")

STUDIES: Mapping[Study, tuple[Finding, ...]] = {
    "chest-xray": (
        Finding("nodule", _LOBES, True, (14, 26)),
        Finding("mass", _LOBES, True, (34, 60)),
        Finding("consolidation", _LOBES, True, None),
        Finding("pleural effusion", (None,), True, None),
        Finding("pneumothorax", (None,), True, None),
        Finding("cardiomegaly", (None,), False, None),
        Finding("clavicle fracture", (None,), True, None),
    ),
    "chest-ct": (
        Finding("nodule", ("anterior", "posterior"), True, (10, 24)),
        Finding("mass", ("anterior", "posterior"), True, (32, 56)),
        Finding("consolidation", ("anterior", "posterior"), True, None),
        Finding("pleural effusion", (None,), True, None),
        Finding("pneumothorax", (None,), True, None),
    ),
    "abdomen-ct": (
        Finding("cyst", ("liver", "kidney"), True, (18, 42)),
        Finding("mass", ("liver", "kidney"), True, (28, 55)),
        Finding("stone", ("kidney",), True, (8, 16)),
        Finding("ascites", (None,), False, None),
    ),
    "head-ct": (
        Finding("haemorrhage", _BRAIN, True, (20, 45)),
        Finding("infarct", _BRAIN, True, (30, 55)),
        Finding("subdural haematoma", (None,), True, None),
        Finding("skull fracture", _BRAIN, True, None),
    ),
    "brain-mr": (
        Finding("tumour", (*_BRAIN, "cerebellum"), True, (20, 45)),
        Finding("infarct", _BRAIN, True, (25, 50)),
        Finding("cyst", (*_BRAIN, "cerebellum"), True, (16, 36)),
    ),
    "abdomen-us": (
        Finding("gallstone", ("gallbladder",), False, (8, 18)),
        Finding("cyst", ("liver", "kidney"), False, (18, 40)),
        Finding("mass", ("liver", "kidney"), False, (24, 50)),
        Finding("stone", ("kidney",), False, (7, 14)),
    ),
}
_WEIGHTS = {"chest-xray": 0.28, "chest-ct": 0.15, "abdomen-ct": 0.15, "head-ct": 0.14, "brain-mr": 0.16, "abdomen-us": 0.12}
_NORMAL = 0.17
_CONTRASTS: Mapping[Study, tuple[str | None, ...]] = {
    "chest-xray": (None,),
    "chest-ct": ("lung window", "mediastinal window"),
    "abdomen-ct": ("portal venous phase", "unenhanced"),
    "head-ct": (None,),
    "brain-mr": ("T1-weighted", "T2-weighted", "FLAIR"),
    "abdomen-us": (None,),
}


def draw_facts(rng: np.random.Generator, *, unseen: bool) -> Facts:
    """Random facts: with `unseen` a combination that never occurs in training, otherwise one that may."""
    while True:
        facts = _draw(rng)
        if is_held_out(facts) == unseen:
            return facts


def is_held_out(facts: Facts) -> bool:
    """Whether this combination of study, finding, side and site occurs only in the test split (about one in six)."""
    if facts.finding is None or (facts.side is None and facts.site is None):
        return False
    text = f"{facts.study}|{facts.finding}|{facts.side}|{facts.site}"
    return hashlib.sha256(text.encode()).digest()[0] % 6 == 0


def _draw(rng: np.random.Generator) -> Facts:
    studies = list(STUDIES)
    study = studies[int(rng.choice(len(studies), p=[_WEIGHTS[s] for s in studies]))]
    contrast = _CONTRASTS[study][int(rng.integers(len(_CONTRASTS[study])))]
    view = {"chest-xray": ("PA", "AP")[int(rng.random() < 0.35)], "abdomen-us": "transverse"}.get(study, "axial")
    if rng.random() < _NORMAL:
        if study == "brain-mr" and rng.random() < 0.5:
            view = "sagittal"
        return Facts(study, view, contrast, None, None, None, None, False)
    kinds = STUDIES[study]
    kind = kinds[int(rng.integers(len(kinds)))]
    side: Literal["left", "right"] | None = ("left", "right")[int(rng.integers(2))] if kind.sided else None
    site = kind.sites[int(rng.integers(len(kind.sites)))]
    if study == "abdomen-ct" and site == "liver":
        side = None  # the liver is always on the right
    if study == "chest-xray" and site == "middle":
        side = "right"  # the left lung has no middle lobe
    if study == "brain-mr" and (site == "cerebellum" or rng.random() < 0.25):
        view, side = ("sagittal", None)  # a midline slice does not show the side
    size = int(rng.integers(kind.size_mm[0], kind.size_mm[1] + 1)) if kind.size_mm else None
    arrow = bool(rng.random() < 0.3) and kind.name not in ("cardiomegaly", "ascites")
    return Facts(study, view, contrast, kind.name, side, site, size, arrow)
