"""The base class of data sets, whose fields are options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from pydantic import PrivateAttr

from medgraft.config import METRICS
from medgraft.data.notes import ReadingNotes
from medgraft.strict_model import StrictModel
from medgraft.types import Example


class Dataset(StrictModel, ABC):
    """Reads a data set; its fields are options. It lists every example; missing images are handled afterwards.

    `self.notes` takes what cannot be read and what had to be assumed. `metrics` are those of the task. With `takes_names` a
    path need not be a file or folder that exists: it may be a pattern, or a name on a hub. `synthetic` images are drawn from
    templates, so that different ones are alike: near-duplicates are not looked for.

    A reader of questions puts them into `facts`, as `question`, and has `default_prompt` "{question}": prompts are filled with
    `facts`, unless the reader fills `prompt_template` itself, as those of tables do with the columns of each row.
    """

    metrics: ClassVar[tuple[str, ...]] = METRICS  # of the task, where the settings name none
    takes_names: ClassVar[bool] = False
    synthetic: ClassVar[bool] = False
    default_prompt: ClassVar[str | None] = None

    _notes: ReadingNotes = PrivateAttr(default_factory=ReadingNotes)

    @property
    def notes(self) -> ReadingNotes:
        """The notes of this reading."""
        return self._notes

    @property
    def prompt_template(self) -> str | None:
        """The template of prompts: `data.prompt`, or else the reader's own; None if examples have the run's prompt."""
        return self.default_prompt if self.notes.prompt is None else self.notes.prompt

    def use_notes(self, notes: ReadingNotes) -> None:
        """Note in `notes`, those of a reader that reads through this one."""
        self._notes = notes

    @abstractmethod
    def read(self, path: Path | None) -> Iterable[Example]:
        """Every example; DataError if `path` is not in this format. Captions may be empty."""
