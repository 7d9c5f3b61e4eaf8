"""Measures seconds of training steps on the device that runs them."""

from __future__ import annotations

import time

import torch


class StepTimer:
    """Measures the time between the ends of steps.

    An NVIDIA GPU runs steps asynchronously, and the host finishes launching a step long before it ends. So each end is an event
    on the CUDA stream, and times are read only when asked for.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._seconds: list[float] = []
        self._ends: list[torch.cuda.Event] = []
        self._last = 0.0

    def start(self) -> None:
        """Start timing the first step."""
        self._last = time.perf_counter()
        if self._on_gpu:
            self._ends = [self._event()]

    def lap(self) -> None:
        """End a step and begin the next, at this point of the device's queue."""
        now = time.perf_counter()
        if self._on_gpu:
            self._ends.append(self._event())
        else:
            self._seconds.append(now - self._last)
        self._last = now

    def seconds(self) -> tuple[float, ...]:
        """Seconds of every step; waits for the last one."""
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
