"""Answers and their cache: one file each, by the content of what was asked."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image


@dataclass(frozen=True)
class Answer:
    """A model's answer. `refused` is the provider's reason for giving none; `model` the version that answered.

    `cut_off`: whether it ended at the limit of tokens; None if unknown, as in answers that an older version cached.
    """

    text: str
    input_tokens: int
    output_tokens: int
    model: str
    date: str
    refused: str | None = None
    cut_off: bool | None = None


class NoRoomError(Exception):
    """The model used up its tokens before it said a word, as models do that think first; asking again does not help."""

    code = 400

    def __init__(self) -> None:
        super().__init__("it used all its tokens and said nothing; raise generation.max_new_tokens")


def question_id(image: Image, **question: Any) -> str:
    """SHA-256 of an image's pixels and of everything else that is asked."""
    whole = hashlib.sha256(f"{image.mode}{image.size}".encode())
    whole.update(image.tobytes())
    whole.update(json.dumps(question, sort_keys=True).encode())
    return whole.hexdigest()


class AnswerCache:
    """A folder of answers."""

    def __init__(self, folder: Path):
        self.folder = folder

    def get(self, key: str) -> Answer | None:
        """The answer to a question, None if there is none or its file is damaged."""
        try:
            return Answer(**json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))["answer"])
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def put(self, key: str, answer: Answer, question: dict[str, Any]) -> None:
        """Keep an answer with its question, at once or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"question": question, "answer": asdict(answer)}, file, indent=1, ensure_ascii=False)
        Path(temporary).replace(self.folder / f"{key}.json")
