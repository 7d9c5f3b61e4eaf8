"""The base class of data sets, whose fields are options, and loading of a data set."""

from __future__ import annotations

import csv
import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pydantic import PrivateAttr

from medgraft.config import DataConfig
from medgraft.data.grey_levels import check_window
from medgraft.data.images import CheckedImages, check_images, image_digests
from medgraft.data.notes import ReadingNotes
from medgraft.errors import DataError, PluginError
from medgraft.plugin import PluginManager
from medgraft.strict_model import StrictModel, validated
from medgraft.types import SPLITS, CaptionData, DataReport, Example, ImagePart, ImageSource, Split


class Dataset(StrictModel, ABC):
    """Reads a data set; its fields are options. It lists every example; missing images are handled afterwards.

    `self.notes` takes what cannot be read and what had to be assumed.
    """

    _notes: ReadingNotes = PrivateAttr(default_factory=ReadingNotes)

    @property
    def notes(self) -> ReadingNotes:
        """The notes of this reading."""
        return self._notes

    @abstractmethod
    def read(self, path: Path | None) -> Iterable[Example]:
        """Every example; DataError if `path` is not in this format. Captions may be empty."""


def load_data(config: DataConfig, *, plugins: PluginManager, splits: Iterable[Split] = SPLITS) -> CaptionData:
    """Read a data set and leave out examples without a caption or a usable image; the report counts them.

    Only `splits` are read; raises DataError if they have no images.
    """
    reader_class = plugins.get("dataset", config.name)
    if not (isinstance(reader_class, type) and issubclass(reader_class, Dataset)):
        raise PluginError(f"Data set {config.name!r} is {reader_class!r}, not a subclass of medgraft.plugin_api.Dataset.")
    reader = validated(reader_class, config.options, f"Data {config.name}")
    reader.notes.skip_bad_rows = config.skip_bad_rows
    if config.window is not None:
        check_window(config.window)
    path = Path(config.path).expanduser() if config.path else None
    if path is not None and not path.exists():
        raise DataError(f"There is no {path}, which data {config.name!r} should read. Check the path.")
    wanted = set(splits)
    try:
        listed = [_with_settings(example, config) for example in reader.read(path) if example.split in wanted]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{config.name}:{config.path} is not UTF-8 text: {error}. Save it as UTF-8.") from None
    _check_ids(listed, config)
    captioned = [example for example in listed if any(caption.strip() for caption in example.captions)]
    examples, checked = _usable(captioned, config.max_images)
    where = config.path or "the default place"
    if not listed:
        raise DataError(f"{config.name}:{where} has no images in {', '.join(sorted(wanted))}.")
    unreadable = sorted(f"{image}: {problem}" for image, problem in checked.unreadable.items())
    missing = sorted(str(image) for image in checked.missing)
    if not examples:
        bad = [*unreadable, *missing]
        found = f"{len(missing)} missing, {len(unreadable)} unreadable, such as {bad[0]}" if bad else "none has a caption"
        raise DataError(f"{config.name}:{where} has no usable images: {found}.")
    for note, count in Counter(checked.notes.values()).items():
        shown = next(image for image, its_note in checked.notes.items() if its_note == note)
        reader.notes.assumed(f"{count} images are read with a choice: {note}. Such as {shown}.")
    report = DataReport(
        missing=tuple(missing),
        corrupt=tuple(unreadable),
        uncaptioned=len(listed) - len(captioned),
        bad_rows=tuple(reader.notes.bad_rows),
        assumptions=tuple(reader.notes.assumptions),
    )
    return CaptionData(config.name, examples, report)


def data_fingerprint(examples: Iterable[Example]) -> str:
    """SHA-256 over ids, splits, captions and image bytes; it does not depend on the data's location."""
    ordered = sorted(examples, key=lambda e: (e.split, e.id))
    digests = image_digests([example.image for example in ordered])
    whole = hashlib.sha256()
    for example in ordered:
        whole.update("\0".join((example.id, example.split, *example.captions)).encode())
        whole.update(bytes.fromhex(digests[example.image]))
    return whole.hexdigest()


def _check_ids(examples: list[Example], config: DataConfig) -> None:
    seen: set[tuple[str, str]] = set()
    for example in examples:
        key = (example.split, example.id)
        if key in seen:
            raise DataError(f"{config.name}:{config.path}: id {example.id!r} occurs twice in {example.split}.")
        seen.add(key)


def _with_settings(example: Example, config: DataConfig) -> Example:
    """The example with the frame and window of the config, where its image has none of its own."""
    if config.frame is None and config.window is None:
        return example
    part = example.image if isinstance(example.image, ImagePart) else ImagePart(example.image)
    frame = config.frame if part.frame is None else part.frame
    return replace(example, image=replace(part, frame=frame, window=part.window or config.window))


def _usable(examples: list[Example], limit: int | None) -> tuple[tuple[Example, ...], CheckedImages]:
    """The first `limit` examples of each split whose image can be read, and what the check of images found."""
    missing: set[ImageSource] = set()
    unreadable: dict[ImageSource, str] = {}
    notes: dict[ImageSource, str] = {}
    usable: list[Example] = []
    for split in SPLITS:
        left = [example for example in examples if example.split == split]
        good: list[Example] = []
        while left and (limit is None or len(good) < limit):
            size = len(left) if limit is None else limit - len(good)
            chunk, left = left[:size], left[size:]
            checked = check_images([example.image for example in chunk])
            missing |= checked.missing
            unreadable |= checked.unreadable
            notes |= checked.notes
            good += [example for example in chunk if example.image not in missing and example.image not in unreadable]
        usable += good
    return tuple(usable), CheckedImages(frozenset(missing), unreadable, notes)
