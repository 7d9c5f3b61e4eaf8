"""Loads a data set: what its reader finds, less the examples that cannot be used, with a report."""

from __future__ import annotations

import functools
import logging
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, compress
from pathlib import Path

from medgraft.config import DataConfig
from medgraft.data.base import Dataset
from medgraft.data.example_table import ExampleTable
from medgraft.data.grey_levels import check_window
from medgraft.data.image_chunks import usable_images
from medgraft.data.leaks import find_leaks
from medgraft.data.notes import ReadingNotes
from medgraft.data.oddities import OddCaptions, misspelt_images
from medgraft.data.prompts import check_template, fill_template
from medgraft.errors import DataError, PluginError, UnknownNameError
from medgraft.plugin import PluginManager
from medgraft.sequences import Chosen
from medgraft.strict_model import validated
from medgraft.types import SPLITS, CaptionData, DataReport, Example, ImagePart, Split

_logger = logging.getLogger(__name__)

_OTHER_FOLDER = "If they lie elsewhere, name their folder: --set data.root=FOLDER"


class RefusedDataError(DataError):
    """Data that `load_data` refuses; `data` has what it found in them, all examples if none has a usable image."""

    def __init__(self, message: str, data: CaptionData):
        super().__init__(message)
        self.data = data


def load_data(data: DataConfig | str, *, plugins: PluginManager | None = None, splits: Iterable[Split] = SPLITS) -> CaptionData:
    """Read a data set, `NAME[:PATH]`, and leave out examples without a caption or a usable image; the report counts them.

    Only `splits` are read. Leaks between them are handled as `config.on_leak` says. RefusedDataError for what cannot be used,
    DataError if there is nothing at the path.
    """
    config = data if isinstance(data, DataConfig) else DataConfig.parse(data)
    plugins = plugins or PluginManager.from_environment()
    if config.name not in plugins.names("dataset") and Path(config.name).exists():
        raise UnknownNameError(f"{config.name} is a path. Say how to read it, such as {_reader_of(config.name)}:{config.name}")
    reader_class = plugins.get("dataset", config.name)
    if not (isinstance(reader_class, type) and issubclass(reader_class, Dataset)):
        raise PluginError(f"Data set {config.name!r} is {reader_class!r}, not a subclass of medgraft.plugin_api.Dataset.")
    reader = validated(reader_class, config.options, f"Data {config.name}")
    reader.notes.skip_bad_rows = config.skip_bad_rows
    reader.notes.root = _root(config)
    reader.notes.prompt = config.prompt
    if config.window is not None:
        check_window(config.window)
    path = Path(config.path).expanduser() if config.path else None
    if path is not None and not reader.takes_names and not path.exists():
        raise DataError(f"There is no {path}, which data {config.name!r} should read. Check the path.")
    try:
        return _read(reader, path, config, set(splits))
    except RefusedDataError:
        raise
    except DataError as error:
        raise RefusedDataError(str(error), CaptionData(config.name, (), _report(reader.notes))) from None


def _read(reader: Dataset, path: Path | None, config: DataConfig, wanted: set[Split]) -> CaptionData:
    odd = OddCaptions()
    try:
        listed = ExampleTable(
            _with_settings(odd.seen(example), config) for example in _prompted(reader, path, config) if example.split in wanted
        )
    except UnicodeDecodeError as error:
        raise DataError(f"{config.name}:{config.path} is not UTF-8 text: {error}. Save it as UTF-8.") from None
    _check_ids(listed, config)
    captioned = _captioned(listed)
    usable, checked = usable_images(listed, captioned, config.max_images)
    missing = tuple(sorted(str(image) for image in checked.missing))
    misspelt = misspelt_images(missing)
    for sentence in filter(None, (misspelt, *odd.sentences())):
        reader.notes.assumed(sentence)
    for note, count in Counter(checked.notes.values()).items():
        shown = next(image for image, its_note in checked.notes.items() if its_note == note)
        reader.notes.assumed(f"{count} images are read with a choice: {note}. Such as {shown}.")
    report = replace(
        _report(reader.notes),
        missing=missing,
        corrupt=tuple(sorted(f"{image}: {problem}" for image, problem in checked.unreadable.items())),
        uncaptioned=len(listed) - sum(map(len, captioned.values())),
    )
    where = config.path or "the default place"
    if not listed:
        there = "rows with images" if wanted == set(SPLITS) else f"images in {', '.join(sorted(wanted))}"
        bad_rows = f": {len(report.bad_rows)} rows are bad, such as {report.bad_rows[0]}" if report.bad_rows else ""
        raise DataError(f"{config.name}:{where} has no {there}{bad_rows}.")
    if not usable:
        bad, counts = (*report.corrupt, *report.missing), (len(report.missing), len(report.corrupt))
        found = f"{counts[0]} missing, {counts[1]} unreadable, such as {bad[0]}" if bad else "none has a caption"
        advice = " " + (misspelt or _OTHER_FOLDER) if missing else ""
        data = CaptionData(config.name, Chosen(listed, array("I", chain.from_iterable(captioned.values()))), report)
        raise RefusedDataError(f"{config.name}:{where} has no usable images: {found}.{advice}", data)
    chosen = Chosen(listed, usable)
    return _without_leaks(chosen, report, config, reader) if len(wanted) > 1 else CaptionData(config.name, chosen, report)


def _prompted(reader: Dataset, path: Path | None, config: DataConfig) -> Iterator[Example]:
    """The examples, whose prompts are filled with their facts where the reader has not filled them."""
    template = reader.prompt_template
    for example in reader.read(path):
        if template is None or example.prompt is not None:
            yield example
            continue
        fields = example.facts or {}
        check_template(template, fields, str(config))
        with reader.notes.row(path or Path(config.name), f"example {example.id!r}"):
            yield replace(example, prompt=fill_template(template, fields))


def _report(notes: ReadingNotes) -> DataReport:
    return DataReport(bad_rows=tuple(notes.bad_rows), assumptions=tuple(notes.assumptions))


def _without_leaks(examples: Chosen[Example], report: DataReport, config: DataConfig, reader: Dataset) -> CaptionData:
    """The examples that `config.on_leak` leaves; the leaks between their splits are added to the report."""
    leaks = find_leaks(examples, near_duplicates=not reader.synthetic)
    data = CaptionData(config.name, examples, replace(report, leaks=leaks.found))
    if not leaks.found:
        return data
    found = f"{config}: the splits overlap: {'; '.join(map(str, leaks.found))}."
    if config.on_leak == "error":
        advice = "Split by patient or article, or set data.on_leak=drop to leave them out of training."
        raise RefusedDataError(f"{found} {advice}", data)
    if config.on_leak == "warn":
        _warn_once(f"{found} Scores on such images are too good: data.on_leak=drop leaves them out of training.")
        return data
    stays = (place not in leaks.leaking for place in range(len(examples)))
    remaining = Chosen(examples.items, array("I", compress(examples.places, stays)))
    if any(leak.other == "train" for leak in leaks.found) and not any(example.split == "train" for example in remaining):
        raise RefusedDataError(f"{found} Without such images nothing is left to train on. Split by patient or article.", data)
    dropped = len({image for place in leaks.leaking for image in examples[place].images})
    return replace(data, examples=remaining, report=replace(data.report, leaking=dropped))


@functools.cache
def _warn_once(text: str) -> None:
    _logger.warning("%s", text)


def _root(config: DataConfig) -> Path | None:
    root = Path(config.root).expanduser() if config.root else None
    if root is not None and not root.is_dir():
        raise DataError(f"data.root is {root}, which is not a folder. Name the folder that image paths lie under.")
    return root


def _check_ids(examples: Sequence[Example], config: DataConfig) -> None:
    if len({hash((example.split, example.id)) for example in examples}) == len(examples):
        return  # the usual case, in less memory
    seen: set[tuple[str, str]] = set()
    for example in examples:
        key = (example.split, example.id)
        if key in seen:
            twice = f"id {example.id!r} occurs twice in {example.split}; each image needs an id of its own"
            raise DataError(f"{config.name}:{config.path}: {twice}.")
        seen.add(key)


def _captioned(examples: Sequence[Example]) -> dict[Split, array[int]]:
    """The places of the examples with a caption, by split."""
    places: dict[Split, array[int]] = {split: array("I") for split in SPLITS}
    for place, example in enumerate(examples):
        if any(re.search(r"\w", caption) for caption in example.captions):  # "-" is none
            places[example.split].append(place)
    return places


def _reader_of(path: str) -> str:
    """The reader that a path probably needs, by its suffix."""
    readers = {".tsv": "tsv", ".json": "json", ".jsonl": "jsonl", ".parquet": "hf", ".arrow": "hf", ".tar": "webdataset"}
    return readers.get(Path(path).suffix.lower(), "imagefolder" if Path(path).is_dir() else "csv")


def _with_settings(example: Example, config: DataConfig) -> Example:
    """The example with the frame and window of the config, where its images have none of their own."""
    if config.frame is None and config.window is None:
        return example
    parts = (image if isinstance(image, ImagePart) else ImagePart(image) for image in example.images)
    image, *more = (
        replace(part, frame=config.frame if part.frame is None else part.frame, window=part.window or config.window)
        for part in parts
    )
    return replace(example, image=image, more_images=tuple(more))
