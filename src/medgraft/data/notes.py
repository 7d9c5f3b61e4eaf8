"""What a reader notes while it reads: rows that cannot be read, and choices that it makes by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from medgraft.errors import DataError
from medgraft.types import BadRow


class RowError(Exception):
    """What is wrong with a row, and what to do, without a full stop."""


@dataclass
class ReadingNotes:
    """Notes of one reading; a reader has them as `self.notes`. Without `skip_bad_rows` the first bad row is a DataError.

    `root` is the folder of image paths that are relative or absolute elsewhere (`data.root`), `prompt` the template of prompts
    (`data.prompt`).
    """

    skip_bad_rows: bool = False
    root: Path | None = None
    prompt: str | None = None
    bad_rows: list[BadRow] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)

    def bad_row(self, file: Path, place: str, problem: str) -> None:
        """Note that `place` of `file`, such as "row 7", cannot be read; the caller goes on with the next row.

        `problem` says what was found and what to do, without a full stop. DataError unless bad rows are skipped.
        """
        row = BadRow(str(file), place, problem)
        if not self.skip_bad_rows:
            raise DataError(f"{row}. To leave such rows out and list them: --set data.skip_bad_rows=true")
        self.bad_rows.append(row)

    @contextmanager
    def row(self, file: Path, place: str) -> Iterator[None]:
        """A RowError inside the block makes `place` of `file` a bad row."""
        try:
            yield
        except RowError as error:
            problem = str(error)
        else:
            return
        self.bad_row(file, place, problem)

    def assumed(self, sentence: str) -> None:
        """Note a choice that the data did not settle, in a sentence for users; each is listed once."""
        if sentence not in self.assumptions:
            self.assumptions.append(sentence)
