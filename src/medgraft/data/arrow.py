"""Arrow files as Hugging Face datasets writes them: their columns, a piece at a time, and where each image's bytes lie."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from medgraft.data.columns import is_bytes
from medgraft.errors import DataError

_ROWS = 1000  # rows read at once


Encoded = tuple[int, int] | str | None  # an image: where its bytes lie (offset, size), else its path, else nothing


class ArrowFile:
    """A file in Arrow's stream or file format, mapped into memory. DataError if it is none."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                self._buffer = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            self._is_file = self._buffer.slice(0, 6).to_pybytes() == b"ARROW1"
            self.schema: pa.Schema = self._open().schema
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read as an Arrow file: {error}. Copy it again.") from None

    @property
    def kinds(self) -> dict[str, pa.DataType]:
        """The type of each column."""
        return {field.name: field.type for field in self.schema}

    def column(self, name: str) -> pa.ChunkedArray:
        """One whole column, without a copy."""
        return pa.chunked_array([batch.column(name) for batch in self._batches()], self.schema.field(name).type)

    def rows(self, image: str, others: Sequence[str]) -> Iterator[tuple[Encoded, dict[str, Any]]]:
        """Of each row the image in column `image` and the values of the columns `others`."""
        for whole in self._batches():
            for start in range(0, whole.num_rows, _ROWS):
                batch = whole.slice(start, _ROWS)
                values = [batch.column(name).to_pylist() for name in others]
                for encoded, *row in zip(self._images(batch.column(image)), *values, strict=True):
                    yield encoded, dict(zip(others, row, strict=True))

    def _open(self) -> Any:
        return pa.ipc.open_file(self._buffer) if self._is_file else pa.ipc.open_stream(self._buffer)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        reader = self._open()
        try:
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches)) if self._is_file else reader
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path} cannot be read as an Arrow file: {error}. Copy it again.") from None

    def _images(self, column: pa.Array) -> list[Encoded]:
        if is_bytes(column.type):
            return [*self._places(column)]
        if not pa.types.is_struct(column.type):
            return list(column.to_pylist())
        paths = column.field("path").to_pylist() if column.type.num_fields > 1 else [None] * len(column)
        places = self._places(column.field("bytes")) if is_bytes(column.field("bytes").type) else [None] * len(column)
        return [place or path for place, path in zip(places, paths, strict=True)]

    def _places(self, values: pa.Array) -> list[tuple[int, int] | None]:
        if not len(values):
            return []
        offset_type = np.int64 if pa.types.is_large_binary(values.type) else np.int32
        _, offsets, data = values.buffers()
        ends = np.frombuffer(offsets, offset_type)[values.offset : values.offset + len(values) + 1].astype(np.int64)
        first = data.address - self._buffer.address if data else 0
        if not 0 <= first <= self._buffer.size:
            raise DataError(f"{self.path} is compressed. Save it as parquet, or with save_to_disk of datasets.")
        spans = zip((first + ends[:-1]).tolist(), np.diff(ends).tolist(), values.is_valid().to_pylist(), strict=True)
        return [(offset, size) if valid else None for offset, size, valid in spans]
