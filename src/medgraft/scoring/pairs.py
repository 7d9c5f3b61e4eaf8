"""Pairs predictions with references by id.

As with COCO's tools, every id of the references needs exactly one prediction, and an empty caption is a caption like others.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from medgraft.data.delimited import Row
from medgraft.data.notes import RowError
from medgraft.data.text import bare_text, kind, read_captions
from medgraft.errors import ScoringError
from medgraft.scoring.files import IDS, PREDICTIONS, REFERENCES, CaptionFile, by_id, read_file
from medgraft.scoring.run_captions import RunCaptions

Source = str | Path | Mapping[Any, Any]  # a file, or {id: caption or captions}
Captions = dict[str, list[str | None]]  # by id; None for null and NaN


def pair(predictions: Source, references: Source | None, *, allow_missing: bool) -> tuple[RunCaptions, tuple[str, ...]]:
    """The captions to score, and sentences about what was assumed and left out; ScoringError if the two sides do not match.

    Without `references` the predictions must be a run's predictions.json, which has them. With `allow_missing` only ids that
    have both a prediction and a reference are scored.
    """
    first = _file(predictions, "predictions")
    if references is not None:
        second = _file(references, "references")
    elif first.run is not None:
        second = first
    else:
        raise ScoringError(f"{first.name} holds predictions alone. Name the references: --references FILE")
    if second.run is not None:
        second = CaptionFile(second.name, by_id("", second.run.references).rows, second.run)
    predicted, listed, notes = _matched(first, second)
    if several := [key for key, texts in predicted.items() if len(texts) > 1]:
        raise ScoringError(f"{first.name}: {_count(several, predicted)} several predictions. Keep one for each id.")
    single = {key: texts[0] for key, texts in predicted.items() if texts and texts[0] is not None}
    usable = {key: present for key, texts in listed.items() if (present := tuple(filter(None, texts)))}
    common = [key for key in usable if key in single]
    problems = [
        f"{name}: {_count(lacking, ids)} {what}"
        for name, ids, lacking, what in (
            (second.name, listed, [key for key in listed if key not in predicted], "no prediction"),
            (first.name, predicted, [key for key in predicted if key not in listed], "no reference"),
            (first.name, predicted, [key for key in predicted if key not in single], "null as prediction"),
            (second.name, listed, [key for key in listed if key not in usable], "no text as reference"),
        )
        if lacking
    ]
    if problems and not (allow_missing and common):
        raise ScoringError(
            f"{'; '.join(problems)}. Complete the files, or score only the {len(common)} ids that have both: --allow-missing"
        )
    notes += [f"Left out: {problem}." for problem in problems]
    if unusable := sum(len(texts) for texts in listed.values()) - sum(len(texts) for texts in usable.values()):
        notes.append(f"{second.name}: {unusable} references are empty and were left out.")
    if empty := [key for key in common if not single[key]]:
        notes.append(f"{first.name}: {_count(empty, common)} an empty prediction, which is scored as such.")
    captions = RunCaptions({key: single[key] for key in common}, {key: usable[key] for key in common}, {}, {})
    return _with_run(captions, second.run or first.run), tuple(notes)


def predictions_of(source: Source) -> dict[str, str]:
    """The prediction of each id; ScoringError if an id has several or none."""
    file = _file(source, "predictions")
    texts = next(iter(_by_id_column(file, PREDICTIONS, []).values()))
    if unclear := [key for key, several in texts.items() if len(several) != 1 or several[0] is None]:
        raise ScoringError(f"{file.name}: {_count(unclear, texts)} several predictions or none. Keep one for each id.")
    return {key: str(several[0]) for key, several in texts.items()}


def _file(source: Source, name: str) -> CaptionFile:
    return by_id(name, source) if isinstance(source, Mapping) else read_file(Path(source).expanduser())


def _with_run(captions: RunCaptions, run: RunCaptions | None) -> RunCaptions:
    """`captions` with the groups, facts, concepts, saliency scores and prompts that a run has for them."""
    if run is None:
        return captions
    ids = captions.predictions

    def part(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: values[key] for key in ids if key in values}

    saliency = part(run.saliency) if all(run.predictions.get(key) == text for key, text in ids.items()) else {}
    groups, facts, concepts, prompts = map(part, (run.groups, run.facts, run.concepts, run.prompts))
    return RunCaptions(ids, captions.references, groups, facts, saliency, concepts, prompts)


def _matched(first: CaptionFile, second: CaptionFile) -> tuple[Captions, Captions, list[str]]:
    """Predictions and references by the id columns that have ids in common, else by file names."""
    notes = [*first.notes, *second.notes]
    predictions, references = _by_id_column(first, PREDICTIONS, notes), _by_id_column(second, REFERENCES, notes)
    usual = next(iter(predictions)), next(iter(references))
    keys: tuple[Callable[[str], str], ...] = (str, _file_name)
    for key, (a, b) in itertools.product(keys, itertools.product(predictions, references)):
        predicted, listed = _renamed(predictions[a], key), _renamed(references[b], key)
        if predicted and listed and predicted.keys() & listed.keys():
            if key is not str or (a, b) != usual:
                how = " by file name, without folder and ending" if key is not str else ""
                notes.append(f"Ids were matched{how}: {a!r} of {first.name} with {b!r} of {second.name}.")
            return predicted, listed, notes
    raise ScoringError(
        f"{first.name} and {second.name} have no id in common: their ids are such as {next(iter(predictions[usual[0]]))!r} and "
        f"{next(iter(references[usual[1]]))!r}."
    )


def _renamed(captions: Captions, key: Callable[[str], str]) -> Captions | None:
    """`captions` by `key` of their ids; None if two ids have the same."""
    renamed = {key(name): texts for name, texts in captions.items()}
    return renamed if len(renamed) == len(captions) else None


def _file_name(name: str) -> str:
    """`name` without folder, ending, COCO's prefix and leading zeros."""
    last = re.sub(r"\.[A-Za-z]\w{1,4}(\.gz)?$", "", name.replace("\\", "/").rpartition("/")[2])
    return re.sub(r"^COCO_[a-z]+\d{4}_", "", last).lstrip("0") or "0"


def _by_id_column(file: CaptionFile, captions: Sequence[str], notes: list[str]) -> dict[str, Captions]:
    """For each id column with an id in every row, in the order of IDS: the captions by id."""
    columns = list(dict.fromkeys(name for row in file.rows for name in row.cells))
    found = [name for name in captions if name in columns]
    ids = [name for name in IDS if name in columns]
    if not found or not ids:
        what = " and ".join(part for part, present in (("ids", ids), ("captions", found)) if not present)
        raise ScoringError(
            f"{file.name} has no column of {what}: it has {', '.join(columns)[:200]}. Name the columns "
            f"{IDS[0]} and {captions[0]}."
        )
    if len(found) > 1:
        notes.append(f"{file.name}: column {found[0]!r} was taken, not {', '.join(map(repr, found[1:]))}.")
    texts = [_captions(row, found[0], file.name) for row in file.rows]
    complete: dict[str, Captions] = {}
    for name in ids:
        keys = [_id(row.cells.get(name)) for row in file.rows]
        if None not in keys:
            by_key = complete.setdefault(name, {})
            for key, several in zip(keys, texts, strict=True):
                by_key.setdefault(str(key), []).extend(several)
    if not complete:
        lacking = [row.place for row in file.rows if _id(row.cells.get(ids[0])) is None]
        raise ScoringError(f"{file.name}: {len(lacking)} of {len(file.rows)} rows have no {ids[0]}, such as {lacking[0]}.")
    return complete


def _id(value: Any) -> str | None:
    """An id as text, a whole number without fraction; None if `value` is no id."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    text = str(value).strip()
    return re.sub(r"^(\d+)\.0$", r"\1", text) or None


def _captions(row: Row, column: str, file: str) -> list[str | None]:
    try:
        return _texts(row.cells.get(column))
    except RowError as error:
        raise ScoringError(f"{file}, {row.place}: {error}.") from None


def _texts(value: Any) -> list[str | None]:
    """The captions in a cell: a text, a list of them, or objects with `caption` as in pycocoevalcap; None where it is null."""
    match value:
        case None:
            return [None]
        case float() if math.isnan(value):
            return [None]
        case str() if not value.strip():
            return [""]
        case str():
            return list(read_captions(value)) if bare_text(value) else [None]
        case list() | tuple():
            return [text for item in value for text in _texts(item)]
        case {"caption": caption}:
            return _texts(caption)
    raise RowError(f"the caption is {kind(value)}; it must be a text or a list of texts")


def _count(some: Sequence[str], of: Collection[str]) -> str:
    return f"{len(some)} of {len(of)} ids, such as {some[0]!r}, {'has' if len(some) == 1 else 'have'}"
