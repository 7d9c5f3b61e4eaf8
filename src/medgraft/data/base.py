"""What a data set is: options as named fields, and a reader of a folder or file."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from medgraft.config import DataConfig, StrictModel, validated
from medgraft.data.images import check_images
from medgraft.errors import DataError, PluginError
from medgraft.plugin import PluginManager
from medgraft.types import SPLITS, CaptionData, DataReport, Example, Split


class Dataset(StrictModel, ABC):
    """A reader; its fields are its options. It lists what should be there: missing images are dealt with afterwards."""

    @abstractmethod
    def read(self, path: Path | None) -> Iterable[Example]:
        """Every example; DataError if `path` is not in this format. Captions may be empty."""


def load_data(config: DataConfig, *, plugins: PluginManager, splits: Iterable[Split] = SPLITS) -> CaptionData:
    """Read a data set, leave out examples without caption or usable image, and say how many.

    Only `splits` are kept; raises DataError if nothing is left of them.
    """
    reader_class = plugins.get("dataset", config.name)
    if not (isinstance(reader_class, type) and issubclass(reader_class, Dataset)):
        raise PluginError(f"Data set {config.name!r} is {reader_class!r}, not a subclass of medgraft.data.Dataset.")
    reader = validated(reader_class, config.options, f"Data {config.name}")
    path = Path(config.path).expanduser() if config.path else None
    if path is not None and not path.exists():
        raise DataError(f"There is no {path}. Data {config.name!r} was asked to read it.")
    wanted = set(splits)
    listed = [example for example in reader.read(path) if example.split in wanted]
    _check_ids(listed, config)
    captioned = [example for example in listed if any(caption.strip() for caption in example.captions)]
    chosen = _first(captioned, config.max_images)
    missing, corrupt = check_images([example.image for example in chosen])
    bad = missing | corrupt
    examples = tuple(example for example in chosen if example.image not in bad)
    where = config.path or "the default place"
    if not listed:
        raise DataError(f"{config.name}:{where} has no images in {', '.join(sorted(wanted))}.")
    if not examples:
        shown = next(iter(sorted(bad)), None)
        found = f"{len(missing)} missing, {len(corrupt)} corrupt, such as {shown}" if bad else "none has a caption"
        raise DataError(f"{config.name}:{where} has no usable images: {found}.")
    report = DataReport(
        missing=tuple(sorted(str(path) for path in missing)),
        corrupt=tuple(sorted(str(path) for path in corrupt)),
        uncaptioned=len(listed) - len(captioned),
    )
    return CaptionData(config.name, examples, report)


def data_fingerprint(examples: Iterable[Example]) -> str:
    """SHA-256 over ids, splits, captions and image bytes: equal for equal data, wherever it lies."""
    whole = hashlib.sha256()
    for example in sorted(examples, key=lambda e: (e.split, e.id)):
        whole.update("\0".join((example.id, example.split, *example.captions)).encode())
        whole.update(hashlib.sha256(example.image.read_bytes()).digest())
    return whole.hexdigest()


def _check_ids(examples: list[Example], config: DataConfig) -> None:
    seen: set[tuple[str, str]] = set()
    for example in examples:
        key = (example.split, example.id)
        if key in seen:
            raise DataError(f"{config.name}:{config.path}: id {example.id!r} occurs twice in {example.split}.")
        seen.add(key)


def _first(examples: list[Example], limit: int | None) -> list[Example]:
    if limit is None:
        return examples
    kept: list[Example] = []
    count = dict.fromkeys(SPLITS, 0)
    for example in examples:
        if count[example.split] < limit:
            kept.append(example)
            count[example.split] += 1
    return kept
