"""Silence for what libraries print at import, at loading and at every step; our own progress bars say what is going on."""

from __future__ import annotations

import logging
import pickle
import sys
import warnings


def quiet_libraries() -> None:
    """Turn the chatter off, in this process. Called by the command line and the process of a run, never by the library.

    May be called before transformers is imported (which stays unimported) and again after.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # would ask for an optional kernel that it downloads
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")  # at every layer and step
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing. is deprecated")  # PEFT's, not ours to mend
    if transformers := sys.modules.get("transformers"):
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()


def call_quietly(call: bytes) -> None:
    """Make a pickled call, (function, arguments), silenced before what it needs is imported."""
    quiet_libraries()
    function, arguments = pickle.loads(call)
    quiet_libraries()
    function(*arguments)
