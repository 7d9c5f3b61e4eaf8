"""Which columns of a table of `datasets` hold images, captions, ids, groups, splits and concepts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from medgraft.data.column_names import GROUPS, usual_column
from medgraft.data.notes import ReadingNotes
from medgraft.errors import DataError, suggestion

# names of columns that are found, the most likely first
_IMAGES = ("image", "images", "img", "image_path", "file_name", "filename", "path", "filepath")
_CAPTIONS = ("caption", "captions", "text", "report", "findings", "impression", "description", "sentence")
_IDS = ("image_id", "id")
_SPLITS = ("split", "subset", "partition")
_CONCEPTS = ("cui", "cuis", "concepts")


@dataclass(frozen=True)
class Columns:
    """The names of columns, None if there is none. `ids_differ`: whether no two rows have the same id."""

    image: str
    caption: str
    id: str | None = None
    group: str | None = None
    split: str | None = None
    concepts: str | None = None
    ids_differ: bool = True
    prompt: tuple[str, ...] = ()  # those that the prompt's template names

    @property
    def values(self) -> list[str]:
        """All columns but the image's."""
        return [name for name in (self.caption, self.id, self.group, self.split, self.concepts, *self.prompt) if name]


def find_columns(named: Mapping[str, str | None], kinds: Mapping[str, pa.DataType], where: str, notes: ReadingNotes) -> Columns:
    """The columns that users named, and the others as found by name and type among `kinds`; those found are noted.

    DataError if a named column is not there, or if there is no image or caption.
    """
    for name in filter(None, named.values()):
        if name not in kinds:
            raise DataError(f"{where} has no column {name!r}.{suggestion(name, kinds)} Columns: {', '.join(kinds)}.")
    encoded = [name for name, kind in kinds.items() if is_image(kind)]
    image = _find(_IMAGES, kinds, is_image) or (encoded[0] if len(encoded) == 1 else _find(_IMAGES, kinds, is_text))
    caption = _find(_CAPTIONS, kinds, is_texts) or _find(_CAPTIONS, kinds, _may_be_caption)
    found = {
        "image": image, "caption": caption, "id": _find(_IDS, kinds, is_label), "group": _find(GROUPS, kinds, is_label),
        "split": _find(_SPLITS, kinds, is_text), "concepts": _find(_CONCEPTS, kinds, is_texts),
    }  # fmt: skip
    chosen = {what: named.get(what) or name for what, name in found.items()}
    for what, fits in (("image", _may_be_image), ("caption", _may_be_caption)):
        column = chosen[what]
        if column is None or not fits(kinds[column]):
            problem = f"no column of {what}s was found" if column is None else f"column {column!r} holds no {what}s"
            known = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
            raise DataError(f"{where}: {problem}. Name it with --set data.{what}=COLUMN. Columns: {known}.")
    listed = [f"{what} {name!r}" for what, name in chosen.items() if name and not named.get(what)]
    if listed:
        notes.assumed(f"Columns were found by their names: {', '.join(listed)}.")
    return Columns(**chosen)  # type: ignore[arg-type]  # image and caption were checked


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values of this type are bytes."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_image(kind: pa.DataType) -> bool:
    """Whether values of this type are encoded images: bytes, or an Image of datasets, which is bytes and a path."""
    names = {field.name for field in kind} if pa.types.is_struct(kind) else set()
    return is_bytes(kind) or ("bytes" in names and names <= {"bytes", "path"})


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are texts."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_texts(kind: pa.DataType) -> bool:
    """Whether values of this type are texts, or lists of texts."""
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_text(kind.value_type if listed else kind)


def is_label(kind: pa.DataType) -> bool:
    """Whether values of this type are texts or whole numbers."""
    return is_text(kind) or bool(pa.types.is_integer(kind))


def _may_be_image(kind: pa.DataType) -> bool:
    return is_image(kind) or is_text(kind)


def _may_be_caption(kind: pa.DataType) -> bool:
    """A column without any text may be of type null, or of floats that are all NaN."""
    return is_texts(kind) or bool(pa.types.is_null(kind) or pa.types.is_floating(kind))


def _find(usual: Sequence[str], kinds: Mapping[str, pa.DataType], fits: Callable[[pa.DataType], bool]) -> str | None:
    return usual_column((column for column, kind in kinds.items() if fits(kind)), usual)
