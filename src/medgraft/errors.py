"""Errors in a user's settings or files. Every message states what was asked, what was found and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MedgraftError(Exception):
    """An error that the user can correct; the command line prints it as one line and exits with 2."""


class ConfigError(MedgraftError):
    """A setting that does not exist or has an invalid value."""


class UnknownNameError(MedgraftError):
    """A backbone, strategy, data set or metric that no plugin provides."""


class PluginError(MedgraftError):
    """Two plugins claim one name, or a plugin's descriptor cannot be used."""


class BackboneError(MedgraftError):
    """Weights that are missing or are not of the backbone asked for."""


class StrategyError(MedgraftError):
    """A strategy that matches nothing in this backbone, or that does not work with its quantisation."""


class DataError(MedgraftError):
    """A data set that is missing, empty or not in its format."""


class TrainingError(MedgraftError):
    """Training that cannot continue, such as after a NaN loss."""


class Stopped(KeyboardInterrupt):
    """A signal asked the process to stop: SIGINT (Ctrl-C) or SIGTERM."""

    def __init__(self, signal: int):
        super().__init__(signal)
        self.signal = signal


class AdapterError(MedgraftError):
    """An adapter package that is incomplete, altered, or made for another base."""


class OutputError(MedgraftError):
    """A folder that cannot be written, or a disk that is full."""


class ScoringError(MedgraftError):
    """Predictions and references that do not match."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x' or 'y'?` for the known names closest to `name`, or the empty string."""
    close = difflib.get_close_matches(name.lower(), list(known), n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
