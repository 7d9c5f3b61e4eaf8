"""What the environment says: keys and switches are read here and nowhere else, and never written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from medgraft.plugin_api import BackboneError

SWITCH = "MEDGRAFT_API_SEND_IMAGES"
_PRICE = "MEDGRAFT_API_USD_PER_MILLION_TOKENS"


@dataclass(frozen=True)
class Settings:
    """How to ask. `price` is USD for a million input tokens and for a million output tokens."""

    requests_per_minute: float
    concurrency: int
    attempts: int
    price: tuple[float, float] | None
    cache: Path


def read_settings() -> Settings:
    """The settings; BackboneError if one of them is no number."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Settings(
        requests_per_minute=_number("MEDGRAFT_API_REQUESTS_PER_MINUTE", 60),
        concurrency=max(int(_number("MEDGRAFT_API_CONCURRENCY", 4)), 1),
        attempts=max(int(_number("MEDGRAFT_API_ATTEMPTS", 6)), 1),
        price=_price(),
        cache=cache / "medgraft" / "api",
    )


def key(*names: str) -> str:
    """The first of these variables that is set; BackboneError if none is, or if images may not be sent."""
    if os.environ.get(SWITCH) != "1":
        raise BackboneError(f"Captioning by API sends every image to another machine. Set {SWITCH}=1 if your data may be sent.")
    for name in names:
        if value := os.environ.get(name):
            return value
    raise BackboneError(f"No API key: set {' or '.join(names)} in the environment.")


def without_password(server: str) -> str:
    """The URL of a server without `user:password@`."""
    parts = urlsplit(server)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _number(name: str, default: float) -> float:
    try:
        value = float(os.environ.get(name) or default)
    except ValueError:
        raise BackboneError(f"{name}={os.environ[name]!r} is not a number.") from None
    if value <= 0:
        raise BackboneError(f"{name}={os.environ[name]!r} must be above 0.")
    return value


def _price() -> tuple[float, float] | None:
    text = os.environ.get(_PRICE)
    if not text:
        return None
    try:
        for_input, for_output = map(float, text.split(","))
    except ValueError:
        raise BackboneError(f"{_PRICE}={text!r} is not two numbers, such as 0.30,2.50.") from None
    return for_input, for_output
