"""Watching a few steps of training from inside transformers' loop: their time, what makes the host wait, and a profile."""

from __future__ import annotations

import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_SHOWN = 12  # kernels and operators that the record lists
_NOTHING_DONE = ("Synchronize", "cudaEventQuery", "cudaStreamWaitEvent")  # while the host is in these, it waits
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel")


class Watch(TrainerCallback):
    """After `warm` steps, `timed` ones are timed, `waiting` ones looked at for host syncs, and `profiled` ones profiled."""

    def __init__(self, warm: int, timed: int, waiting: int, profiled: int):
        self.timed, self.waiting, self.profiled = timed, waiting, profiled
        self.from_timed = warm
        self.from_waiting = warm + timed
        self.from_profiled = warm + timed + waiting
        self.steps = warm + timed + waiting + profiled
        self.cuda = torch.cuda.is_available()
        self.found: dict[str, Any] = {}
        self._waits: Counter[tuple[str, ...]] = Counter()
        self._stack = ExitStack()
        self._start = 0.0
        self._profile: profile | None = None

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """See TrainerCallback; `state.global_step` steps are done."""
        if state.global_step == self.from_timed:
            self._start = self._now()
        if state.global_step == self.from_waiting:
            self.found["seconds_per_step"] = (self._now() - self._start) / self.timed
            self._stack.enter_context(self._counting_waits())
        if state.global_step == self.from_profiled:
            self._stack.close()
            self.found["syncs_per_step"] = sum(self._waits.values()) / self.waiting
            self.found["syncs"] = [{"count": n, "stack": list(where)} for where, n in self._waits.most_common()]
            self._profile = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])])
            self._start = self._now()
            self._profile.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """See TrainerCallback."""
        if state.global_step == self.steps and self._profile is not None:
            wall = (self._now() - self._start) / self.profiled
            self._profile.stop()
            self.found["profile"] = {"wall_seconds_per_step": wall, **_summary(self._profile, self.profiled)}

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def _counting_waits(self) -> Iterator[None]:
        """Count what makes the host wait for the device, by the lines that ask for it."""
        if not self.cuda:
            yield
            return
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = self._keep
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")

    def _keep(self, message: Warning | str, *args: Any, **kwargs: Any) -> None:
        if "synchronizing CUDA operation" not in str(message):
            return
        frames = [frame for frame in traceback.extract_stack()[:-1] if not frame.filename.endswith(("warnings.py", "watch.py"))]
        ours = [frame for frame in frames if "medgraft" in frame.filename and "benchmarks" not in frame.filename]
        shown = [*ours[-2:], *frames[-2:]]
        where = dict.fromkeys(f"{'/'.join(Path(f.filename).parts[-3:])}:{f.lineno} {f.name}: {f.line}" for f in shown)
        self._waits[tuple(where)] += 1


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Have every Trainer that trains inside the block call `watch`."""
    train = Trainer.train

    def and_watch(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        self.add_callback(watch)
        return train(self, *args, **kwargs)

    with mock.patch.object(Trainer, "train", and_watch):
        yield


def _summary(seen: profile, steps: int) -> dict[str, Any]:
    """Milliseconds and counts a step."""
    entries = list(seen.key_averages())
    marks = [e for e in entries if getattr(e, "is_user_annotation", False)]
    device = [e for e in entries if e.device_type == DeviceType.CUDA and e not in marks]
    host = [e for e in entries if e.device_type == DeviceType.CPU and e not in marks]
    working = [e for e in host if not any(word in e.key for word in _NOTHING_DONE)]
    kernels = sorted(device, key=lambda e: -e.self_device_time_total)[:_SHOWN]
    operators = sorted(working, key=lambda e: -e.self_cpu_time_total)[:_SHOWN]
    return {
        "gpu_busy_ms": _ms(sum(e.self_device_time_total for e in device), steps),
        "host_ms": _ms(sum(e.self_cpu_time_total for e in working), steps),
        "host_waiting_ms": _ms(sum(e.self_cpu_time_total for e in host if e not in working), steps),
        "kernel_launches": sum(e.count for e in host if e.key.startswith(_LAUNCHES)) / steps,
        "kernels": [[e.key[:90], _ms(e.self_device_time_total, steps), e.count / steps] for e in kernels],
        "operators": [[e.key[:60], _ms(e.self_cpu_time_total, steps), e.count / steps] for e in operators],
    }


def _ms(microseconds: float, steps: int) -> float:
    return round(microseconds / 1e3 / steps, 3)
