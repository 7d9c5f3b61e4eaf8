"""Seconds of training steps, by the clock of the device that does them."""

from __future__ import annotations

import time

import torch


class StepTimer:
    """The time between the ends of steps.

    Steps run asynchronously on an NVIDIA GPU: the host is done with one long before the device is. There an event in the
    device's queue stands for each end, and the times are read when they are asked for.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._seconds: list[float] = []
        self._ends: list[torch.cuda.Event] = []
        self._last = 0.0

    def start(self) -> None:
        """The first step begins now."""
        self._last = time.perf_counter()
        if self._on_gpu:
            self._ends = [self._event()]

    def lap(self) -> None:
        """A step ends, and the next one begins, with what has been asked of the device so far."""
        now = time.perf_counter()
        if self._on_gpu:
            self._ends.append(self._event())
        else:
            self._seconds.append(now - self._last)
        self._last = now

    def seconds(self) -> tuple[float, ...]:
        """The time of every step; waits for the last one."""
        if len(self._ends) > 1:
            self._ends[-1].synchronize()
            pairs = zip(self._ends, self._ends[1:], strict=False)
            self._seconds += [begin.elapsed_time(end) / 1e3 for begin, end in pairs]
            self._ends = self._ends[-1:]
        return tuple(self._seconds)

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
