"""Finds what looks wrong in data that can be read: names of images that nearly are there, captions with traces of a format."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from medgraft.data.paths import IMAGE_SUFFIXES
from medgraft.data.text import shown
from medgraft.types import Example

_TRACES = {
    "HTML in them": re.compile(
        r"</?(p|br|b|i|em|strong|sub|sup|span|div|a|li|ul|img)\b[^<>]*>|&(nbsp|lt|gt|amp|quot|#x?[0-9a-f]+);", re.I
    ),
    "nothing but numbers": re.compile(r"\A[\W\d_]+\Z"),
    "letters of a wrong encoding in them": re.compile("\ufffd|Ã[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|â€"),
}


@dataclass
class OddCaptions:
    """Counts the captions that look odd, by what they have in them, with an example."""

    _counts: Counter[str] = field(default_factory=Counter)
    _examples: dict[str, str] = field(default_factory=dict)

    def seen(self, example: Example) -> Example:
        """`example` itself, its captions counted."""
        for caption in example.captions:
            for what, trace in _TRACES.items():
                if found := trace.search(caption):
                    self._counts[what] += 1
                    self._examples.setdefault(what, shown(caption[max(0, found.start() - 20) : found.end() + 20]))
        return example

    def sentences(self) -> list[str]:
        """One for each kind of oddity, if there are any; the captions are read as they stand."""
        return [
            f"{count:,} captions have {what}, such as {self._examples[what]}; they are read as they stand."
            for what, count in self._counts.items()
        ]


def misspelt_images(missing: Iterable[str]) -> str | None:
    """A sentence that counts the missing images for which there is a file with nearly the same name, None if there are none."""
    names: dict[Path, dict[str, str]] = {}
    count, example = 0, ""
    for path in map(Path, missing):
        if path.parent not in names:
            names[path.parent] = _by_spelling(path.parent)
        known, stem = names[path.parent], path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
        if there := known.get(_spelling(path.name)) or known.get(_spelling(stem)):
            count += 1
            same = unicodedata.normalize("NFC", there) == unicodedata.normalize("NFC", path.name)
            how = "written in another Unicode form (NFC or NFD)" if same else shown(there)
            example = example or f"{path} is {how} there"
    if not count:
        return None
    return f"{count:,} missing images are there under another spelling: {example}. Correct the names in the data."


def _by_spelling(folder: Path) -> dict[str, str]:
    """The images in `folder`, by their names with and without suffix."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    return {_spelling(file.stem): file.name for file in images} | {_spelling(file.name): file.name for file in images}


def _spelling(name: str) -> str:
    """What names have in common that differ in case, in the form of umlauts, or in percent signs for letters."""
    return unicodedata.normalize("NFC", unquote(name)).casefold()
