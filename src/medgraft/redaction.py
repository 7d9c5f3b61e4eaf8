"""Secrets taken out of everything that medgraft writes or prints: records, manifests, cards, checkpoints, logs, errors.

A secret is what stands under a name such as `api_key`, the value of an environment variable with such a name, a password or
token in a URL, and a text that looks like a key of a known service.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

REMOVED = "(removed)"
_NAMES = (
    r"(?:api|access|private|secret|auth|account)[_-]?key|token|secret|password|passwd|passphrase|credentials?|authorization"
)
_SETTING = re.compile(rf"(?:.*[_.-])?(?:{_NAMES})", re.IGNORECASE)
_VARIABLE = re.compile(rf"(?:.*_)?(?:{_NAMES}|key)", re.IGNORECASE)
_SERVICES = (  # Hugging Face; OpenAI, Anthropic; Google; GitHub; AWS; Slack
    r"hf_[A-Za-z0-9]{16,}", r"sk-[\w-]{16,}", r"AIza[\w-]{30,}", r"gh[pousr]_[A-Za-z0-9]{20,}", r"AKIA[A-Z0-9]{16}",
    r"xox[abp]-[\w-]{10,}",
)  # fmt: skip
_TEXTS = tuple(  # what stays, and the secret behind it
    re.compile(pattern, re.IGNORECASE if ignores_case else 0)
    for pattern, ignores_case in (
        (r"(://)[^/\s:@'\"]*:[^/\s'\"]+(?=@)", False),  # user:password@host
        (rf"([?&](?:[\w-]*[_-])?(?:{_NAMES}|key|sig|signature)=)[^&\s'\"]+", True),
        (r"(\bBearer )[\w.~+/=-]{8,}", True),
        (rf"(\b(?:[\w-]+[_-])?(?:{_NAMES})['\"]?\s?[=:]\s?['\"]?)[^\s'\",;&(){{}}]{{8,}}", True),
        (rf"(\b)(?:{'|'.join(_SERVICES)})", False),
    )
)
_LEAST = 8  # characters of an environment variable's value; shorter ones occur elsewhere by chance


def redacted_text(text: str) -> str:
    """`text` with `(removed)` in place of secrets."""
    for secret in _in_environment():
        text = text.replace(secret, REMOVED)
    for pattern in _TEXTS:
        text = pattern.sub(rf"\1{REMOVED}", text)
    return text


def redacted(value: Any) -> Any:
    """JSON's values with `(removed)` in place of secrets; keys stay."""
    if isinstance(value, dict):
        return {key: REMOVED if _is_secret(key, inner) else redacted(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(inner) for inner in value]
    return redacted_text(value) if isinstance(value, str) else value


def redacted_json(text: str) -> str:
    """A JSON text without secrets; the same text if there are none."""
    before = json.loads(text)
    after = redacted(before)
    return text if after == before else json.dumps(after, indent=1, ensure_ascii=False)


def _is_secret(name: str, value: Any) -> bool:
    return isinstance(value, str) and value[:1] not in ("", "<", "[") and bool(_SETTING.fullmatch(name))  # <pad> is none


def _in_environment() -> list[str]:
    """The values of environment variables with names of secrets, but for paths; the longest first."""
    values = {v for n, v in os.environ.items() if _VARIABLE.fullmatch(n) and len(v) >= _LEAST and not os.path.exists(v)}  # noqa: PTH110
    return sorted(values, key=len, reverse=True)
