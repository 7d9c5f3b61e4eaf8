"""COCO captions JSON: `images` (`id`, `file_name`) and `annotations` (`image_id`, `caption`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from medgraft.data.base import Dataset
from medgraft.data.examples import ExampleList
from medgraft.data.json_lists import json_problem, parse_json
from medgraft.data.notes import RowError
from medgraft.data.paths import image_file
from medgraft.data.splits import split_in_path
from medgraft.data.text import kind, label, read_captions, read_text, shown
from medgraft.errors import DataError
from medgraft.types import Example, Split


class CocoCaptions(Dataset):
    """`captions_{train,val,test}*.json` in a folder or its `annotations/`, images in `{train,val,test}*/` or `images`.

    A path to one file reads that file, as the split that is a word of its name or as `test`. Ids match as text.
    """

    images: str | None = Field(default=None, description="folder of the images, relative to the data")

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        if path is None:
            raise DataError("Data 'coco' needs a path: a captions JSON file or the folder that contains annotations/.")
        files = [path] if path.is_file() else sorted([*path.glob("captions_*.json"), *path.glob("annotations/captions_*.json")])
        if not files:
            other = next(iter(sorted(path.rglob("*.json"))), None)
            advice = f" To read one file with captions: coco:{other}" if other else ""
            raise DataError(f"{path} holds no captions_*.json, nor does its annotations/ folder.{advice}")
        examples = ExampleList(self.notes)
        for file in files:
            self._add(examples, file, path if path.is_dir() else path.parent)
        yield from examples.examples(path)

    def _add(self, examples: ExampleList, file: Path, root: Path) -> None:
        images, annotations = self._lists(file)
        split, folder = self._split(file), self._images(file, root)
        listed: dict[str, _Image] = {}
        for number, entry in enumerate(images, start=1):
            place = f"images entry {number}"
            with self.notes.row(file, place):
                key = _id(entry, "id")
                if key in listed:
                    raise RowError(f"the id {key!r} is that of {listed[key].place} too; each image needs an id of its own")
                _, image = image_file(entry.get("file_name"), folder, self.notes.root)
                listed[key] = _Image(place, image, type(entry["id"]), [])
        for number, entry in enumerate(annotations, start=1):
            with self.notes.row(file, f"annotations entry {number}"):
                key = _id(entry, "image_id")
                if key not in listed:
                    raise RowError(f"there is no image with the id {key!r}; add it or remove the annotation")
                if "caption" not in entry:
                    raise RowError("there is no caption; write it, as null if there is none")
                if type(entry["image_id"]) is not listed[key].id_type:
                    self.notes.assumed(f"{file.name}: ids are texts here and numbers there; they were matched as texts.")
                listed[key].captions.extend(read_captions(entry["caption"]))
        for key, found in listed.items():
            examples.add(Example(key, found.file, tuple(found.captions), split), file, found.place)

    def _lists(self, file: Path) -> tuple[list[Any], list[Any]]:
        try:
            content = parse_json(read_text(file, self.notes))
        except (json.JSONDecodeError, RowError) as error:
            raise DataError(f"{file}{json_problem(error)}") from None
        found = [content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations")]
        for key, value in zip(("images", "annotations"), found, strict=True):
            if not isinstance(value, list):
                what = f"{key} is {kind(value)}" if isinstance(content, dict) and key in content else f"it has no list {key!r}"
                raise DataError(
                    f"{file} is not COCO captions JSON: {what}. A list of images with captions is read as json:{file}."
                )
        return found[0] or [], found[1] or []

    def _split(self, file: Path) -> Split:
        split = split_in_path(Path(file.stem), file)
        if split is None:
            self.notes.assumed(f"{file.name} has no split in its name, so its images are test images.")
        return split or "test"

    def _images(self, file: Path, root: Path) -> Path:
        if self.images is not None:
            return root / Path(self.images).expanduser()
        roots = [root, root.parent] if root.name == "annotations" else [root]
        named = [above / name for above in roots for name in (file.stem.removeprefix("captions_"), "images")]
        return next((folder for folder in named if folder.is_dir()), root)


@dataclass(frozen=True)
class _Image:
    place: str
    file: Path
    id_type: type
    captions: list[str]


def _id(entry: Any, key: str) -> str:
    if not isinstance(entry, dict):
        raise RowError(f"it is {kind(entry)} where an object is needed")
    value = label(entry.get(key), key)
    if value is None:
        raise RowError(f"there is no {key}; it has {', '.join(map(shown, entry)) or 'no keys'}")
    return value
