"""What can go wrong by a user's hand or in a user's files. Every message says what was asked, what was found, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MedgraftError(Exception):
    """A mistake that its reader can mend; the command line prints it as one line and exits with 2."""


class ConfigError(MedgraftError):
    """A setting that does not exist or cannot have the value it was given."""


class UnknownNameError(MedgraftError):
    """A backbone, strategy, data set or metric that nobody provides."""


class PluginError(MedgraftError):
    """Two plugins claim one name, or a plugin's descriptor cannot be used."""


class BackboneError(MedgraftError):
    """Weights that are missing or are not of the backbone asked for."""


class StrategyError(MedgraftError):
    """A strategy that matches nothing in this backbone, or that its quantisation forbids."""


class DataError(MedgraftError):
    """A data set that is missing, empty or not in its format."""


class TrainingError(MedgraftError):
    """Training that cannot go on, such as a loss that is not a number."""


class AdapterError(MedgraftError):
    """An adapter package that is incomplete, altered, or made for another base."""


class ScoringError(MedgraftError):
    """Predictions and references that do not belong together."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x' or 'y'?` for the names closest to `name`, or the empty string."""
    close = difflib.get_close_matches(name.lower(), list(known), n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
