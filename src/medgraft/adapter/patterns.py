"""Match the regular expressions in an adapter's settings in a process that can be stopped: some never end.

PEFT matches them with `re` against the name of every module. Whether that ends cannot be seen from the expression.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medgraft.adapter.files import shown
from medgraft.errors import AdapterError

_CPU_SECONDS, _SECONDS = 0.5, 20
_PLAIN = re.compile(r"[\w.^$\\-]*")  # nothing that repeats
# the forms in which PEFT matches them (tuners_utils.check_target_module_exists, utils.other.get_pattern_key)
_MATCH = """
import json, re, signal, sys
if hasattr(signal, "setitimer"):
    signal.setitimer(signal.ITIMER_VIRTUAL, float(sys.argv[1]))
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    forms = [pattern, rf"(^|.*\\.){pattern}($|\\..*)", rf"(.*\\.)?({pattern})$", rf"(?:^|.*?\\.){pattern}\\.(?P<idx>\\d+)\\."]
    try:
        forms = [re.compile(form) for form in forms]
    except (re.error, OverflowError, RecursionError) as error:
        sys.exit(f"is no regular expression: {error}")
    for name in names:
        [form.match(name) or form.fullmatch(name) for form in forms]
"""


def check_patterns(path: Path, settings: Mapping[str, Any], modules: Sequence[str]) -> None:
    """AdapterError if an expression in `settings`, read from `path`, is none or takes too long on the names `modules`."""
    patterns = sorted({text for text in _patterns(settings) if not _PLAIN.fullmatch(text)})
    if not patterns:
        return
    command = [sys.executable, "-I", "-S", "-c", _MATCH, str(_CPU_SECONDS)]
    try:
        done = subprocess.run(
            command, input=json.dumps([patterns, list(modules)]), capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        problem = "takes too long to match"
    except OSError as error:
        problem = f"cannot be checked, because no process can be started: {error.strerror}"
    else:
        if done.returncode == 0:
            return
        problem = (done.stderr.strip().splitlines() or ["takes too long to match"])[-1]
    raise AdapterError(f"{path}: {' or '.join(map(shown, patterns))} {problem}. Write names of modules instead.")


def _patterns(settings: Mapping[str, Any]) -> Iterator[str]:
    for key in ("target_modules", "exclude_modules", "feedforward_modules"):  # lists are not expressions
        if isinstance(settings.get(key), str):
            yield settings[key]
    for key in ("layers_pattern", "modules_to_save"):
        value = settings.get(key) or []
        yield from [value] if isinstance(value, str) else value
    for key, value in settings.items():
        if key.endswith("_pattern") and isinstance(value, dict):
            yield from value
