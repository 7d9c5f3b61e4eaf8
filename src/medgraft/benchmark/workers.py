"""The process that does runs, as seen from the one that wants them done; `medgraft.worker` is its other side."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from medgraft.heap import with_tcmalloc

END = "\0"  # in the output: the run is over, and its exit code follows on this line


class Worker:
    """Does one run after the other, each in a process of its own; `with Worker() as worker` ends them all."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Worker:
        self._running()  # it imports what runs need while the caller plans them
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None:
            with self._process as process:  # which waits for its end
                process.terminate()

    def do(self, job: Path) -> tuple[int, str]:
        """Do the run of a job file, its output passed on as it comes, progress bars included; its exit code and last words."""
        process = self._running()
        assert process.stdin is not None and process.stderr is not None
        with suppress(BrokenPipeError):  # it has just died: there is no output to come, and its exit code says why
            process.stdin.write(os.fsencode(job.resolve()) + b"\n")
        output = io.TextIOWrapper(process.stderr, encoding="utf-8", errors="replace", newline="")
        recent: deque[str] = deque(maxlen=400)
        code = None
        while code is None:
            said = output.read(1)
            if said == END:
                said = output.readline()
                code = int(said) if re.fullmatch(r"-?\d+\n", said) else None
            elif not said:
                code = process.wait()
            if code is None:
                recent.extend(said)
                sys.stderr.write(said)
                if said[-1:] in ("\r", "\n"):
                    sys.stderr.flush()
        output.detach()  # at the end of a line, with nothing read ahead
        return code, " ".join("".join(recent).split())[-300:]

    def _running(self) -> subprocess.Popen[bytes]:
        """The process, started if there is none."""
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", "medgraft.worker"]
            environment = with_tcmalloc(os.environ)
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, env=environment)
        return self._process
