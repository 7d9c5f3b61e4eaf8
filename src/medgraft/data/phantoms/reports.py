"""Reports of phantoms: findings with negatives, an impression and an indication, written from the facts of each image."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from medgraft.data.phantoms import Phantoms, cached
from medgraft.data.phantoms.captions import describe_finding, pick
from medgraft.data.phantoms.facts import STUDIES, Facts
from medgraft.data.phantoms.lateral import VERSION, has_hernia, write_laterals
from medgraft.data.reports import Sections, section_text
from medgraft.errors import DataError
from medgraft.types import Example

_NAMES = {"ascites": "free fluid", "cardiomegaly": "cardiac enlargement", "haemorrhage": "intracerebral haemorrhage"}
_ABSENT = {  # what is denied besides the study's other findings
    "chest-xray": ("pulmonary oedema", "free air"), "chest-ct": ("lymphadenopathy", "pericardial fluid"),
    "abdomen-ct": ("bowel obstruction", "lymphadenopathy"), "head-ct": ("midline shift", "hydrocephalus"),
    "brain-mr": ("midline shift", "abnormal enhancement"), "abdomen-us": ("biliary dilatation", "hydronephrosis"),
}  # fmt: skip
_NORMAL = {
    "chest-xray": ("The mediastinal contours are normal.", "The trachea is central.", "The bones are intact."),
    "chest-ct": ("The airways are patent.", "The great vessels are normal.", "The bones are intact."),
    "abdomen-ct": ("The spleen is normal.", "The pancreas is unremarkable.", "The bowel is of normal calibre."),
    "head-ct": ("The ventricles are normal in size.", "The basal cisterns are patent.", "The sinuses are clear."),
    "brain-mr": ("The ventricles are normal in size.", "Flow voids are preserved.", "The sinuses are clear."),
    "abdomen-us": ("The bile ducts are of normal calibre.", "The spleen is normal.", "The aorta is of normal calibre."),
}
_INDICATIONS = {  # none of them tells the finding
    "chest": ("Cough.", "Fever and cough.", "Shortness of breath.", "Chest pain.", "Before surgery."),
    "abdomen": ("Abdominal pain.", "Nausea and vomiting.", "Weight loss.", "Follow-up."),
    "head": ("Headache.", "Fall.", "Confusion.", "Loss of consciousness."),
    "brain": ("Headache.", "Seizure.", "Dizziness.", "Follow-up."),
}


def write_report(facts: Facts, rng: np.random.Generator) -> dict[str, str]:
    """`findings`, `impression` and `indication` of an image, worded at random."""
    shown = describe_finding(facts, rng)
    if facts.finding is None:
        positive = ""
        impression = describe_finding(facts, rng)
    else:
        positive = pick(rng, (f"There is {shown}.", f"{_capital(shown)} is seen.", f"{_capital(shown)} is present."))
        impression = describe_finding(facts, rng).removeprefix("a ").removeprefix("an ")
    broken = "fracture" in (facts.finding or "")
    normal = [sentence for sentence in _NORMAL[facts.study] if not (broken and "bones" in sentence)]
    sentences = [_negatives(facts, rng), pick(rng, normal)]
    sentences.insert(0 if rng.random() < 0.7 else 1, positive)
    return {
        "findings": " ".join(filter(None, sentences)),
        "impression": f"{_capital(impression)}.",
        "indication": pick(rng, _INDICATIONS[facts.study.partition("-")[0]]),
    }


def _negatives(facts: Facts, rng: np.random.Generator) -> str:
    """A sentence that denies two or three findings that are not there."""
    others = [_NAMES.get(kind.name, kind.name) for kind in STUDIES[facts.study] if kind.name != facts.finding]
    options = [*others, *_ABSENT[facts.study]]
    *first, last = [options[i] for i in rng.permutation(len(options))[: 2 + int(rng.random() < 0.5)]]
    listed = f"{', '.join(first)} or {last}"
    return pick(rng, (f"No {listed}.", f"There is no {listed}.", f"No evidence of {listed}.", f"No {listed} is seen."))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


class PhantomReports(Phantoms):
    """Phantoms with a report in place of the caption, in the same splits. Facts have the `indication` besides.

    With two `views` a study of the chest by X-rays has a lateral image too, and its report tells of a hiatal hernia or that
    there is none. Only the lateral view shows that. `hernia` is among its facts.
    """

    section: Sections = Field(default="findings", description="which part of a report is its caption; both: with headings")
    views: Literal[1, 2] = Field(
        default=1, description="2: chest X-rays have a lateral view too, with a finding that the frontal one does not show"
    )
    images: Literal["first", "together"] = Field(
        default="together", description="with 2 views: the frontal one alone, or both, which the model sees together"
    )

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        examples = self._reports(path)
        if self.views == 1:
            yield from examples
            return
        every = list(examples)
        chests = [each.id for each in every if (each.facts or {})["study"] == "chest-xray"]
        name = f"phantom-laterals-v{VERSION}-{hashlib.sha256(' '.join((*chests, str(self.seed))).encode()).hexdigest()[:16]}"
        folder = cached(name, lambda new: write_laterals(new, chests, self.seed))
        for example in every:
            yield self._with_lateral(example, folder / f"{example.id}.jpg") if example.id in chests else example

    def _with_lateral(self, example: Example, lateral: Path) -> Example:
        """The example with its lateral view, and what only that shows at the end of the findings."""
        hernia = has_hernia(example.id, self.seed)
        tells = "There is a hiatal hernia." if hernia else "There is no hiatal hernia."
        findings, heading, impression = example.captions[0].partition(" Impression:")
        caption = f"{findings} {tells}{heading}{impression}" if self.section != "impression" else example.captions[0]
        more = (lateral,) if self.images == "together" else ()
        return replace(example, captions=(caption,), facts={**(example.facts or {}), "hernia": hernia}, more_images=more)

    def _reports(self, path: Path | None) -> Iterator[Example]:
        """The examples with one view each."""
        for example in super().read(path):
            if example.facts is None:
                raise DataError(f"{path} has no facts of {example.id!r}. Write a folder by `medgraft phantoms`.")
            facts = Facts(**{field.name: example.facts[field.name] for field in fields(Facts)})
            report = write_report(facts, np.random.default_rng(zlib.crc32(example.id.encode())))
            known = {**example.facts, "indication": report["indication"]}
            yield replace(example, captions=(section_text(report, self.section),), facts=known)
