"""Ctrl-C and SIGTERM: the first lets training save a checkpoint and stop, the second stops at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from medgraft import hardware
from medgraft.errors import Stopped

_NOTE = b"\nmedgraft: stopping after this step, with a checkpoint; once more stops at once.\n"


class Interruption:
    """Which signal asked the process to stop; 0 for none."""

    def __init__(self) -> None:
        self.signal = 0
        self._process = os.getpid()

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Take note of the first Ctrl-C or SIGTERM inside the block; the second raises Stopped.

        In other threads than the main one, which get no signals, and for signals that the process ignores, nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
        for number in before:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data loader's worker, which works on until this process ends it
            return
        if self.signal:
            raise Stopped(number)
        self.signal = number
        with contextlib.suppress(OSError):
            os.write(2, _NOTE if os.environ.get("RANK", "0") == "0" else b"")  # no Python stream may be entered twice

    def raise_if_asked(self) -> None:
        """Raise Stopped if a signal came."""
        if self.signal:
            raise Stopped(self.signal)


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise Stopped inside the block, so that it cleans up as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class SaveAndStop(TrainerCallback):
    """Stops training with a checkpoint if a signal asked for it, at the same step in all processes.

    Where an epoch or the training ends with a step, its checkpoint is written after the validation that follows, so that a
    training that goes on from it has that validation too.
    """

    def __init__(self, interruption: Interruption):
        self.interruption = interruption
        self._put_off = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        ends = state.epoch == int(state.epoch or 0) or state.global_step >= state.max_steps
        self.interruption.signal = hardware.largest(self.interruption.signal)
        if self.interruption.signal:
            control.should_training_stop = control.should_save = True
        self._put_off = control.should_save and ends
        control.should_save = control.should_save and not ends

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        control.should_save = control.should_save or self._put_off
        if self.interruption.signal and not self._put_off:  # within an epoch, with its checkpoint written
            control.should_save = control.should_evaluate = False
