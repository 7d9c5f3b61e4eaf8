"""The checkpoints of a run: where they are, which is the newest, how far it got, and what is left of them at the end."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medgraft import hardware
from medgraft.train_config import TrainConfig

_STATE = "trainer_state.json"  # the Trainer writes it last
_SMALL_BYTES = 200_000_000


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoint folder of a run.

    `resume` continues from the newest checkpoint, `written` enables writing. `keep` leaves the newest one after the run
    ("auto": if it takes at most 200 MB). `data` is the fingerprint of the run's data; a checkpoint of other data is refused.
    """

    folder: Path
    resume: bool = False
    written: bool = True
    keep: bool | Literal["auto"] = False
    data: str = ""

    def newest(self) -> Path | None:
        """The newest complete checkpoint."""
        complete = [path for path in self.folder.glob("checkpoint-*") if (path / _STATE).is_file()]
        return max(complete, key=lambda path: int(path.name.rpartition("-")[2])) if complete else None

    def remove(self) -> None:
        """Remove all checkpoints, once no process is writing any."""
        self._remove(None)

    def finish(self) -> None:
        """Remove the checkpoints of a finished run, but for the newest if `keep` says so."""
        newest = self.newest() if self.written else None
        keeps = newest is not None and (_bytes(newest) <= _SMALL_BYTES if self.keep == "auto" else self.keep)
        self._remove(newest if keeps else None)

    def _remove(self, spared: Path | None) -> None:
        hardware.wait_for_everyone()
        if hardware.is_main_process():
            for folder in [self.folder] if spared is None else set(self.folder.glob("checkpoint-*")) - {spared}:
                shutil.rmtree(folder, ignore_errors=True)
        hardware.wait_for_everyone()


def trainer_state(checkpoint: Path) -> dict[str, Any]:
    """The Trainer's state in a checkpoint."""
    state: dict[str, Any] = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    return state


def done_and_wanted(checkpoint: Path, train: TrainConfig) -> tuple[float, float]:
    """How far a checkpoint got and how far `train` goes, both in steps or both in epochs."""
    state = trainer_state(checkpoint)
    if train.max_steps > 0:
        return state["global_step"], train.max_steps
    return state["epoch"], train.num_train_epochs


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
