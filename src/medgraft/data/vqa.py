"""Readers of VQA-RAD (Lau et al. 2018), SLAKE (Liu et al. 2021) and PathVQA (He et al. 2020) as they are published.

Each question is an example. Examples with the same image are one group, so intervals are over images, not over questions.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from medgraft.data.base import Dataset
from medgraft.data.json_lists import json_problem, parse_json
from medgraft.data.notes import RowError
from medgraft.data.questions import METRICS, PROMPT, question_facts, read_answers
from medgraft.data.roco import require_folder
from medgraft.data.splits import hashed_split
from medgraft.data.text import kind, label, read_text, shown
from medgraft.errors import DataError
from medgraft.types import Example, Split

Box = list[int]  # left, top, right, bottom in pixels, as the boxes of phantoms
_FILES: tuple[tuple[Split, str], ...] = (("train", "train"), ("validation", "validate"), ("test", "test"))
_FOLDERS: tuple[tuple[Split, str], ...] = (("train", "train"), ("validation", "val"), ("test", "test"))


class _Questions(Dataset):
    """What the readers share: entries of a file become examples, one for each question."""

    metrics: ClassVar[tuple[str, ...]] = METRICS
    default_prompt: ClassVar[str | None] = PROMPT

    def _entries(self, file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The place and the content of each object in a JSON array; DataError if the file holds none."""
        try:
            content = parse_json(read_text(file, self.notes))
        except (json.JSONDecodeError, RowError) as error:
            raise DataError(f"{file}{json_problem(error)}") from None
        yield from self._listed(file, content)

    def _listed(self, file: Path, content: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if not isinstance(content, list):
            raise DataError(f"{file} is {kind(content)}, where a list of questions is needed.")
        for number, entry in enumerate(content, start=1):
            with self.notes.row(file, f"entry {number}"):
                if not isinstance(entry, dict):
                    raise RowError(f"it is {kind(entry)} where an object is needed")
                yield f"entry {number}", entry


class VqaRad(_Questions):
    """VQA-RAD: `VQA_RAD Dataset Public.json` and `VQA_RAD Image Folder/`. Groups are the cases that images are from."""

    split: Literal["published", "image"] = Field(
        default="published",
        description="published: test is what `phrase_type` says, which asks of images of training; image: 80/10/10 by case",
    )

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        root = require_folder(path, "vqa-rad", "the folder of its JSON file and image folder")
        file, images = root / "VQA_RAD Dataset Public.json", root / "VQA_RAD Image Folder"
        if not file.is_file():
            raise DataError(f"{root} is not VQA-RAD as published: it has no {file.name!r}.")
        entries = list(self._entries(file))
        cases: dict[str, set[str]] = {}
        for _, entry in entries:
            cases.setdefault(str(entry.get("image_name")), set()).add(str(entry.get("image_case_url")).rpartition("id=")[2])
        if self.split == "published":
            self.notes.assumed(
                f"{root.name}: the published test questions are about images of training; data.split=image splits by case."
            )
        for place, entry in entries:
            with self.notes.row(file, place):
                name, key = _name(entry, "image_name"), label(entry.get("qid"), "qid")
                if key is None:
                    raise RowError("it has no 'qid'")
                answers = read_answers(entry.get("answer"))
                published = {what: entry.get(what) for what in ("question_type", "answer_type")}
                facts = question_facts(entry.get("question"), {**published, "organ": entry.get("image_organ")})
                group = min(cases[name])  # a few images have the addresses of several
                yield Example(key, images / name, answers, self._split(entry, group), group, facts)

    def _split(self, entry: Mapping[str, Any], group: str) -> Split:
        if self.split == "image":
            return hashed_split(group)
        phrase = str(entry.get("phrase_type")).removeprefix("test_")
        if phrase not in ("freeform", "para"):
            raise RowError(
                f"the phrase_type is {shown(entry.get('phrase_type'))}; it must be freeform or para, or begin with test_"
            )
        return "test" if phrase != entry["phrase_type"] else "train"


class Slake(_Questions):
    """SLAKE: `train.json`, `validate.json`, `test.json` and `imgs/`. Facts have the `boxes` of organs and findings."""

    language: Literal["en", "zh"] = Field(default="en", description="language of the questions")

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        root = require_folder(path, "slake", "the folder of train.json, validate.json, test.json and imgs/")
        files = [(split, file) for split, name in _FILES if (file := root / f"{name}.json").is_file()]
        if not files:
            raise DataError(f"{root} is not SLAKE as published: it has no train.json, validate.json or test.json.")
        boxes = cache(self._boxes)
        for split, file in files:
            for place, entry in self._entries(file):
                if entry.get("q_lang") != self.language:
                    continue
                with self.notes.row(file, place):
                    name, key = _name(entry, "img_name"), label(entry.get("qid"), "qid")
                    if key is None:
                        raise RowError("it has no 'qid'")
                    image, answers = root / "imgs" / name, read_answers(entry.get("answer"))
                    published = {what: entry.get(what) for what in ("answer_type", "modality", "location")}
                    facts = question_facts(entry.get("question"), {"question_type": entry.get("content_type"), **published})
                    facts |= {"boxes": found} if (found := boxes(image.parent / "detection.json")) else {}
                    yield Example(key, image, answers, split, name.partition("/")[0], facts)

    def _boxes(self, file: Path) -> dict[str, list[Box]]:
        """The boxes of each organ and finding, by its name; none without a file."""
        found: dict[str, list[Box]] = {}
        for place, entry in self._entries(file) if file.is_file() else ():
            for name, box in entry.items():
                if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, int | float) for side in box):
                    raise RowError(
                        f"{file.name}, {place}: the box of {name!r} is {shown(box)}; it must be [x, y, width, height]"
                    )
                x, y, width, height = (round(side) for side in box)
                found.setdefault(name, []).append([x, y, x + width, y + height])
        return found


class PathVqa(_Questions):
    """PathVQA: `qas/{train,val,test}/{train,val,test}_qa.pkl` and `images/{train,val,test}/`, possibly below `pvqa/`.

    Its copy on the hub is read as `hf:flaviagiammarino/path-vqa` with `data.prompt={question}` and `data.caption=answer`.
    """

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        root = require_folder(path, "pathvqa", "the folder of qas/ and images/")
        root = root / "pvqa" if (root / "pvqa").is_dir() else root
        files = [(split, name, root / "qas" / name / f"{name}_qa.pkl") for split, name in _FOLDERS]
        if not any(file.is_file() for *_, file in files):
            raise DataError(
                f"{root} is not PathVQA as published: it has no qas/train/train_qa.pkl, val/val_qa.pkl or test/test_qa.pkl."
            )
        for split, folder, file in files:
            asked: Counter[str] = Counter()
            for place, entry in self._listed(file, _plain_pickle(file)) if file.is_file() else ():
                with self.notes.row(file, place):
                    name = _name(entry, "image")
                    asked[name] += 1
                    answers = read_answers(entry.get("answer"))
                    facts = question_facts(entry.get("question"), {})
                    image = root / "images" / folder / f"{name}.jpg"
                    yield Example(f"{name}#{asked[name]}", image, answers, split, name, facts)


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, texts and numbers alone, so that a file cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only plain lists of questions are read")


def _plain_pickle(file: Path) -> Any:
    try:
        with file.open("rb") as stream:
            return _PlainUnpickler(stream).load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is no pickle of questions: {error}.") from None


def _name(entry: Mapping[str, Any], key: str) -> str:
    name = entry.get(key)
    if not isinstance(name, str) or not name.strip():
        raise RowError(f"{key!r} is {kind(name)}; it must be the name of an image")
    return name.strip()
