"""What readers of radiology reports share: a study has a report with sections and one or more images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medgraft.data.base import Dataset
from medgraft.data.examples import ExampleList
from medgraft.data.splits import hashed_split
from medgraft.types import Example, Split

_FRONTAL = frozenset(("frontal", "pa", "ap"))
_SHOWN = 5  # ids in a note

Sections = Literal["findings", "impression", "both"]


@dataclass(frozen=True)
class Study:
    """A study: its images, each with its view or None, and the sections of its report by name.

    `group` is the patient, or the study where patients are unknown. `split` None: by a hash of the group. `facts` are what else
    is known of it, without the view.
    """

    id: str
    images: Sequence[tuple[Path, str | None]]
    sections: Mapping[str, str]
    group: str
    split: Split | None = None
    facts: Mapping[str, Any] | None = None


class ReportDataset(Dataset):
    """Reads studies with reports: an example for each, or with `images` all for each image.

    With `images` together an example has all images of its study, frontal ones first, and their views are one text.

    With `section` both the text has the headings "Findings:" and "Impression:", or one of them where a report has one section
    alone. How many reports lack a section, and how many studies have more images, is noted.
    """

    section: Sections = Field(default="findings", description="which part of a report is its caption; both: with headings")
    images: Literal["frontal", "first", "all", "together"] = Field(
        default="frontal",
        description="which images of a study: the first frontal one, or the first if no view is known; the first; all, "
        "each with the same report; or all together, which the model sees side by side",
    )

    @abstractmethod
    def studies(self, path: Path | None) -> Iterator[tuple[Path, str, Study]]:
        """Every study, with the file and the place in it that errors name; DataError if `path` is not in this format."""

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        examples, counts = ExampleList(self.notes, one_id=True), _Counts()
        for file, place, study in self.studies(path):
            caption = section_text(study.sections, self.section)
            counts.add(study, caption)
            for number, ((image, *more), view) in enumerate(self._chosen(study), start=1):
                key = study.id if number == 1 else f"{study.id}#{number}"
                facts = None if study.facts is None else {**study.facts, "view": view}
                split = study.split or hashed_split(study.group)
                captions = (caption,) if caption else ()
                example = Example(key, image, captions, split, study.group, facts, more_images=tuple(more))
                examples.add(example, file, place, hashed=study.split is None)
        name = path.name if path is not None else "reports"
        for sentence in counts.sentences(self.section, self.images):
            self.notes.assumed(f"{name}: {sentence}")
        yield from examples.examples(path or Path(name))

    def _chosen(self, study: Study) -> Sequence[tuple[Sequence[Path], str | None]]:
        """The images of each example, with their view."""
        frontal_first = sorted(study.images, key=lambda each: not is_frontal(each[1]))
        if self.images == "together" and study.images:
            views = ", ".join(view for _, view in frontal_first if view)
            return [([image for image, _ in frontal_first], views or None)]
        each = [([image], view) for image, view in (frontal_first if self.images == "frontal" else study.images)]
        return each if self.images == "all" else each[:1]


def section_text(sections: Mapping[str, str], wanted: Sections) -> str:
    """The text of the wanted section, empty if there is none; both: with their headings, which tell them apart."""
    if wanted != "both":
        return sections.get(wanted, "")
    return " ".join(f"{name.capitalize()}: {sections[name]}" for name in ("findings", "impression") if name in sections)


def is_frontal(view: str | None) -> bool:
    """Whether a view is known to be frontal."""
    return view is not None and view.strip().casefold() in _FRONTAL


class _Counts:
    """Studies by what they lack or have too much of."""

    def __init__(self) -> None:
        self.studies = self.several = self.sideways = 0
        self.without_text: list[str] = []
        self.without_image: list[str] = []
        self.alone: dict[str, list[str]] = {"findings": [], "impression": []}

    def add(self, study: Study, caption: str) -> None:
        self.studies += 1
        self.several += len(study.images) > 1
        views = [view for _, view in study.images if view]
        self.sideways += bool(views) and not any(map(is_frontal, views))
        if not caption:
            self.without_text.append(study.id)
        if not study.images:
            self.without_image.append(study.id)
        present = [name for name in self.alone if name in study.sections]
        if len(present) == 1:
            self.alone[present[0]].append(study.id)

    def sentences(self, section: Sections, images: str) -> Iterator[str]:
        what = "neither findings nor an impression" if section == "both" else f"no {section}"
        lacking = {f"{what} and are left out": self.without_text, "no image and are left out": self.without_image}
        if section == "both":
            lacking |= {f"{name} alone": ids for name, ids in self.alone.items()}
        for problem, ids in lacking.items():
            if ids:
                yield f"{len(ids)} of {self.studies} reports have {problem}, such as {', '.join(map(repr, ids[:_SHOWN]))}."
        if self.several:
            how = {
                "all": "all of which are read, each with the same report", "first": "of which the first is read",
                "together": "which the model sees together",
            }  # fmt: skip
            which = how.get(images, "of which the first frontal one is read, or the first where no view is known to be frontal")
            yield f"{self.several} of {self.studies} studies have several images, {which}."
        if self.sideways and images == "frontal":
            yield f"{self.sideways} of {self.studies} studies have no frontal image; the first one is read."
