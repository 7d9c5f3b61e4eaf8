"""The scorers of the package `radeval`: loaded once in a process, whose global settings they do not change."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import multiprocessing
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from typing import Any

from medgraft.plugin_api import UnavailableError

INSTALL = "pip install 'medgraft-radeval[radeval]'"
_HUB = {
    "radgraph": "radgraph-xl.tar.gz of StanfordAIMI/RRG_scorers and the BERT that it names",
    "ratescore": "Angelakeke/RaTE-NER-Deberta and FremyCompany/BioLORD-2023-C",
    "chexbert": "chexbert.pth of StanfordAIMI/RRG_scorers and bert-base-uncased",
    "green": "StanfordAIMI/GREEN-radllama2-7b",
}


def scorer(name: str) -> Any:
    """The scorer of the metric `name`; UnavailableError with the reason if it cannot be loaded."""
    found = _loaded(name)
    if isinstance(found, UnavailableError):
        raise UnavailableError(str(found))
    return found


@cache
def _loaded(name: str) -> Any:
    """The scorer, or the error that says why there is none, so that the hub is not asked again for every set of captions."""
    if importlib.util.find_spec("radeval") is None:
        return UnavailableError(f"radeval is not installed: {INSTALL}")
    try:
        with contained():
            return _LOADERS[name]()
    except ImportError as error:
        return UnavailableError(f"radeval cannot be imported ({_first_line(error)}): {INSTALL}")
    except Exception as error:  # a file that is missing is a plain Exception there
        why = f"its models cannot be loaded: {_first_line(error)}"
        return UnavailableError(f"{why} On first use radeval fetches {_HUB[name]} from the hub.")


@contextmanager
def contained() -> Iterator[None]:
    """Undoes what radeval changes for the whole process; what it prints goes to stderr, where it spoils no output."""
    start_method = multiprocessing.get_start_method(allow_none=True)
    logs = [logging.getLogger(), logging.getLogger("transformers")]
    levels, handlers = [log.level for log in logs], list(logs[0].handlers)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")  # as radeval does for good
            yield
    finally:
        multiprocessing.set_start_method(start_method, force=True)  # GREEN's module sets "spawn"
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
        logs[0].handlers[:] = handlers  # else each message of medgraft's is printed twice


def _radgraph() -> Any:
    # radeval 2.2.1 imports these modules as RadEval, a package that it does not install
    if "RadEval" not in sys.modules and importlib.util.find_spec("RadEval") is None:
        sys.modules["RadEval"] = importlib.import_module("radeval")
    from radeval.metrics.radgraph import F1RadGraph

    return F1RadGraph(reward_level="all", model_type="radgraph-xl")


def _ratescore() -> Any:
    from radeval.metrics.RaTEScore import RaTEScore

    return RaTEScore()


def _chexbert() -> Any:
    import torch
    from radeval.metrics.f1chexbert.f1chexbert import F1CheXbert

    return F1CheXbert(device="cuda" if torch.cuda.is_available() else "cpu")


def _green() -> Any:
    from radeval.metrics.green_score import GREEN

    return GREEN(_HUB["green"], output_dir=".", num_gpus=1)


_LOADERS = {"radgraph": _radgraph, "ratescore": _ratescore, "chexbert": _chexbert, "green": _green}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
