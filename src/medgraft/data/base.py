"""The base class of data sets, whose fields are options, and loading of a data set."""

from __future__ import annotations

import csv
import functools
import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from pydantic import PrivateAttr

from medgraft.config import DataConfig
from medgraft.data.images import check_images, image_digests
from medgraft.data.leaks import find_leaks
from medgraft.data.notes import ReadingNotes
from medgraft.errors import DataError, PluginError
from medgraft.plugin import PluginManager
from medgraft.strict_model import StrictModel, validated
from medgraft.types import SPLITS, CaptionData, DataReport, Example, ImageSource, Leak, Split

_logger = logging.getLogger(__name__)


class Dataset(StrictModel, ABC):
    """Reads a data set; its fields are options. It lists every example; missing images are handled afterwards.

    `self.notes` takes what cannot be read and what had to be assumed. `synthetic` images are drawn from templates, so that
    different ones are alike: near-duplicates are not looked for.
    """

    synthetic: ClassVar[bool] = False

    _notes: ReadingNotes = PrivateAttr(default_factory=ReadingNotes)

    @property
    def notes(self) -> ReadingNotes:
        """The notes of this reading."""
        return self._notes

    def use_notes(self, notes: ReadingNotes) -> None:
        """Note in `notes`, those of a reader that reads through this one."""
        self._notes = notes

    @abstractmethod
    def read(self, path: Path | None) -> Iterable[Example]:
        """Every example; DataError if `path` is not in this format. Captions may be empty."""


def load_data(config: DataConfig, *, plugins: PluginManager, splits: Iterable[Split] = SPLITS) -> CaptionData:
    """Read a data set and leave out examples without a caption or a usable image; the report counts them.

    Only `splits` are read; raises DataError if they have no images. Leaks between them are handled as `config.on_leak` says.
    """
    reader_class = plugins.get("dataset", config.name)
    if not (isinstance(reader_class, type) and issubclass(reader_class, Dataset)):
        raise PluginError(f"Data set {config.name!r} is {reader_class!r}, not a subclass of medgraft.plugin_api.Dataset.")
    reader = validated(reader_class, config.options, f"Data {config.name}")
    reader.notes.skip_bad_rows = config.skip_bad_rows
    reader.notes.root = _root(config)
    path = Path(config.path).expanduser() if config.path else None
    if path is not None and not path.exists():
        raise DataError(f"There is no {path}, which data {config.name!r} should read. Check the path.")
    wanted = set(splits)
    try:
        listed = [example for example in reader.read(path) if example.split in wanted]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{config.name}:{config.path} is not UTF-8 text: {error}. Save it as UTF-8.") from None
    _check_ids(listed, config)
    captioned = [example for example in listed if any(caption.strip() for caption in example.captions)]
    examples, missing, corrupt = _usable(captioned, config.max_images)
    bad = missing | corrupt
    where = config.path or "the default place"
    if not listed:
        raise DataError(f"{config.name}:{where} has no images in {', '.join(sorted(wanted))}.")
    if not examples:
        shown = min(map(str, bad), default=None)
        found = f"{len(missing)} missing, {len(corrupt)} corrupt, such as {shown}" if bad else "none has a caption"
        raise DataError(f"{config.name}:{where} has no usable images: {found}.")
    kept, leaks = _without_leaks(examples, config, reader) if len(wanted) > 1 else (examples, None)
    report = DataReport(
        missing=tuple(sorted(str(path) for path in missing)),
        corrupt=tuple(sorted(str(path) for path in corrupt)),
        uncaptioned=len(listed) - len(captioned),
        bad_rows=tuple(reader.notes.bad_rows),
        assumptions=tuple(reader.notes.assumptions),
        leaks=leaks,
        leaking=len(examples) - len(kept),
    )
    return CaptionData(config.name, kept, report)


def data_fingerprint(examples: Iterable[Example]) -> str:
    """SHA-256 over ids, splits, captions and image bytes; it does not depend on the data's location."""
    ordered = sorted(examples, key=lambda e: (e.split, e.id))
    digests = image_digests([example.image for example in ordered])
    whole = hashlib.sha256()
    for example in ordered:
        whole.update("\0".join((example.id, example.split, *example.captions)).encode())
        whole.update(bytes.fromhex(digests[example.image]))
    return whole.hexdigest()


def _without_leaks(
    examples: tuple[Example, ...], config: DataConfig, reader: Dataset
) -> tuple[tuple[Example, ...], tuple[Leak, ...]]:
    """The examples that `config.on_leak` keeps, and the leaks between their splits."""
    leaks = find_leaks(examples, near_duplicates=not reader.synthetic)
    if not leaks.found:
        return examples, ()
    found = f"{config.name}:{config.path or ''}".rstrip(":") + f": the splits overlap: {'; '.join(map(str, leaks.found))}."
    if config.on_leak == "error":
        raise DataError(f"{found} Split by patient or article, or set data.on_leak=drop to leave them out of training.")
    if config.on_leak == "warn":
        _warn_once(f"{found} Scores on such images are too good: data.on_leak=drop leaves them out of training.")
        return examples, leaks.found
    kept = tuple(example for example in examples if (example.split, example.id) not in leaks.leaking)
    if not any(example.split == "train" for example in kept) and any(example.split == "train" for example in examples):
        raise DataError(f"{found} Without such images nothing is left to train on. Split by patient or article.")
    return kept, leaks.found


@functools.cache
def _warn_once(text: str) -> None:
    _logger.warning("%s", text)


def _root(config: DataConfig) -> Path | None:
    root = Path(config.root).expanduser() if config.root else None
    if root is not None and not root.is_dir():
        raise DataError(f"data.root is {root}, which is not a folder. Name the folder that image paths lie under.")
    return root


def _check_ids(examples: list[Example], config: DataConfig) -> None:
    seen: set[tuple[str, str]] = set()
    for example in examples:
        key = (example.split, example.id)
        if key in seen:
            raise DataError(f"{config.name}:{config.path}: id {example.id!r} occurs twice in {example.split}.")
        seen.add(key)


def _usable(examples: list[Example], limit: int | None) -> tuple[tuple[Example, ...], set[ImageSource], set[ImageSource]]:
    """The first `limit` examples of each split whose image can be read, and the missing and corrupt images among them."""
    missing: set[ImageSource] = set()
    corrupt: set[ImageSource] = set()
    usable: list[Example] = []
    for split in SPLITS:
        left = [example for example in examples if example.split == split]
        good: list[Example] = []
        while left and (limit is None or len(good) < limit):
            size = len(left) if limit is None else limit - len(good)
            chunk, left = left[:size], left[size:]
            absent, broken = check_images([example.image for example in chunk])
            missing, corrupt = missing | absent, corrupt | broken
            good += [example for example in chunk if example.image not in absent | broken]
        usable += good
    return tuple(usable), missing, corrupt
