"""Captions in conversations, as LLaVA, ShareGPT and chat templates write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medgraft.data.notes import RowError
from medgraft.data.text import kind, shown

KEYS = ("conversations", "messages")
_USERS, _ASSISTANTS = ("human", "user"), ("gpt", "assistant", "model", "chatgpt", "bot")
# requests for a caption, among them all that LLaVA and LLaVA-Med use
_REQUEST = re.compile(
    r"descri|caption|report|findings|impression|summar|explain|explanation|interpret|account|narrat|rundown|analy[sz]|clarify"
    r"|characteri[sz]e|break down|walk through|portray|illustrat|examine|depict|detail"
    r"|what (do|can) you see|what (is|does|are)\b.*\b(shown|show|seen|visible|depicted|in (the|this) \w+)\W*$",
    re.IGNORECASE | re.DOTALL,
)
_QUESTION = re.compile(
    r"(is|are|was|were|does|do|did|has|have|which|where|who|when|how (many|much|large|big))\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Conversation:
    """The caption that a conversation holds, and the image that its turns name, if any."""

    caption: str
    image: str | None = None


def read_conversation(turns: Any, *, first: bool) -> Conversation:
    """The assistant's answer, if the user asks for a caption once; with `first` the first answer of any conversation.

    RowError for another conversation, such as one of questions, and for what is no conversation.
    """
    if not isinstance(turns, list):
        raise RowError(f"the conversation is {kind(turns)}; it must be a list of turns")
    request, answers, images = "", [], []
    for turn in turns:
        role, content = _turn(turn)
        text, image = _content(content)
        images += [image] if image else []
        if role in _ASSISTANTS:
            answers.append(text)
        elif role in _USERS and not answers:
            request = f"{request} {text}"
        elif role not in (*_USERS, "system"):
            raise RowError(f"a turn is by {shown(role)}, which is neither user nor assistant")
    if not answers:
        raise RowError("the conversation has no answer by the assistant")
    if len(images) > 1:
        raise RowError(f"the conversation has {len(images)} images; it must have one")
    request = re.sub(r"<[^<>]*>", " ", request).strip()
    if not first and len(answers) > 1:
        raise RowError(f"the conversation has {len(answers)} answers, not one caption; data.turn=first takes the first")
    if not first and request and (_QUESTION.match(request) or not _REQUEST.search(request)):
        raise RowError(f"{shown(request)} does not ask for a caption; data.turn=first takes the answer all the same")
    return Conversation(answers[0], images[0] if images else None)


def _turn(turn: Any) -> tuple[str, Any]:
    for role, content in (("from", "value"), ("role", "content")):
        if isinstance(turn, Mapping) and isinstance(turn.get(role), str) and content in turn:
            return turn[role].strip().lower(), turn[content]
    raise RowError(f"a turn is {kind(turn)}, without from and value, or role and content")


def _content(content: Any) -> tuple[str, str | None]:
    """The text and the image of a turn: a text, or a list of parts, each a text or an object with a type."""
    texts, image = [], None
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(part, Mapping) and str(part.get("type")).startswith("image"):
            named = part.get("image") or part.get("path") or part.get("image_url") or part.get("url")
            named = named.get("url") if isinstance(named, Mapping) else named
            image = named if isinstance(named, str) else image
        else:
            raise RowError(f"a turn has {kind(part)} where a text is needed")
    return " ".join(texts), image
