"""Questions about images: their answers and facts, and the reader of tables with a question and an answer column."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from medgraft.data.delimited import Row
from medgraft.data.json_lists import JsonTable
from medgraft.data.notes import RowError
from medgraft.data.tables import CsvTable
from medgraft.data.text import LONE_SURROGATE, clean_caption, kind, shown

METRICS = ("vqa",)
PROMPT = "{question}"
_COLUMNS = ("answer_type", "question_type", "modality")  # of a table, where it has them


def read_answers(value: Any) -> tuple[str, ...]:
    """The answer in a cell or JSON value, or the answers in a list; numbers as text. RowError for any other value.

    "None" and "n/a" are answers, as they may be to a question; an empty text is none.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ()
    if isinstance(value, list):
        return tuple(answer for item in value for answer in read_answers(item))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(f"the answer is {kind(value)}; it must be a text, a number or a list of them")
    answer = clean_caption(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    if LONE_SURROGATE.search(answer):
        raise RowError(f"the answer {shown(value)} has half of a letter (a lone surrogate), which cannot be written")
    return (answer,) if answer else ()


def question_facts(question: Any, published: Mapping[str, Any]) -> dict[str, Any]:
    """`question`, and what else is `published` of one, by the names of facts; `answer_type` in lower case, as open or closed.

    RowError if the question is no text.
    """
    if not isinstance(question, str) or not (text := clean_caption(question)):
        raise RowError(f"the question is {kind(question)}; it must be a text")
    facts = {name: clean_caption(value) if isinstance(value, str) else value for name, value in published.items()}
    facts = {"question": text} | {name: value for name, value in facts.items() if value not in (None, "")}
    return facts | ({"answer_type": str(facts["answer_type"]).casefold()} if "answer_type" in facts else {})


class QuestionTable(CsvTable):
    """A CSV, JSON or JSON lines file with columns `image`, `question` and `answer`; one example for each question.

    The columns `answer_type`, `question_type` and `modality` are facts where they are there. All questions of an image, or of
    a group, are in one split unless a column says otherwise.
    """

    metrics: ClassVar[tuple[str, ...]] = METRICS
    default_prompt: ClassVar[str | None] = PROMPT

    caption: str = Field(default="answer", description="column of answers; in JSON it may be a list")
    question: str = Field(default="question", description="column of questions")

    @property
    def prompt_template(self) -> str | None:
        """See Dataset."""
        return f"{{{self.question}}}" if self.notes.prompt is None else self.notes.prompt

    def load(self, path: Path) -> tuple[list[str], list[Row]]:
        """See Table.load."""
        if path.suffix.lower() not in (".json", ".jsonl", ".ndjson"):
            return super().load(path)
        reader = JsonTable(image=self.image, caption=self.caption)
        reader.use_notes(self.notes)
        return reader.load(path)

    def captions(self, value: Any) -> tuple[str, ...]:
        """See Table.captions."""
        return read_answers(value)

    def facts(self, row: Row) -> dict[str, Any]:
        """See Table.facts."""
        return question_facts(row.cells.get(self.question), {name: row.cells.get(name) for name in _COLUMNS})
