"""COCO captions JSON: `images` (`id`, `file_name`) and `annotations` (`image_id`, `caption`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from medgraft.data.base import Dataset
from medgraft.data.text import clean_caption
from medgraft.errors import DataError
from medgraft.types import Example, Split


class CocoCaptions(Dataset):
    """`captions_{train,val,test}*.json` in a folder or its `annotations/`, images in `{train,val,test}*/` or `images`.

    A path to one file reads that file, as the split in its name or as `test`.
    """

    images: str | None = Field(default=None, description="folder of the images, relative to the data")

    def read(self, path: Path | None) -> Iterator[Example]:
        """See Dataset.read."""
        if path is None:
            raise DataError("Data 'coco' needs a path: a captions JSON file or the folder that contains annotations/.")
        files = [path] if path.is_file() else sorted([*path.glob("captions_*.json"), *path.glob("annotations/captions_*.json")])
        if not files:
            raise DataError(f"{path} holds no captions_*.json, nor does its annotations/ folder.")
        for file in files:
            yield from self._file(file, path if path.is_dir() else path.parent)

    def _file(self, file: Path, root: Path) -> Iterator[Example]:
        try:
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            names = {image["id"]: image["file_name"] for image in content["images"]}
            captions: dict[Any, list[str]] = {}
            for note in content["annotations"]:
                captions.setdefault(note["image_id"], []).append(clean_caption(note["caption"]))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"{file} is not COCO captions JSON: {type(error).__name__} {error}") from None
        folder = self._images(file, root)
        for key, name in names.items():
            yield Example(str(key), folder / name, tuple(captions.get(key, ())), _split(file.stem))

    def _images(self, file: Path, root: Path) -> Path:
        if self.images is not None:
            return root / self.images
        named = root / file.stem.removeprefix("captions_")
        return next((folder for folder in (named, root / "images") if folder.is_dir()), root)


def _split(stem: str) -> Split:
    if "train" in stem:
        return "train"
    return "validation" if "val" in stem else "test"
