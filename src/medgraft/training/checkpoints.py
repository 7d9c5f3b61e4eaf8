"""The checkpoints of a run: written whole or not at all, verified before they are used, and removed at the end.

A checkpoint is what transformers' Trainer saves, with the trained tensors alone, `progress.json` with the losses so far and
what the checkpoint belongs to, and `digests.json` with the digests of all other files. It is written to a temporary folder,
flushed to the disk and renamed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from medgraft import hardware
from medgraft.disk import flush, follow_umask, lack
from medgraft.errors import TrainingError, first_line
from medgraft.redaction import redacted
from medgraft.train_config import TrainConfig
from medgraft.training.best import Best
from medgraft.training.identity import differences

_logger = logging.getLogger(__name__)

_STATE, _PROGRESS, _DIGESTS, _FINISHED = "trainer_state.json", "progress.json", "digests.json", "finished"
_NEW = ".new-"  # before the name of a checkpoint that is being written
_SMALL_BYTES = 200_000_000


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoint folder of a run.

    Training goes on from the first of `whole`, verified checkpoints with the newest first, that belongs to the run of
    `identity`; if none does it begins anew if `or_anew`, and is refused otherwise. `written` enables writing, `limit` is how
    many checkpoints stay on disk. `keep` leaves the newest one after the run ("auto": if it takes at most 200 MB). `best` keeps
    the best weights, which are in each checkpoint too.
    """

    folder: Path
    whole: tuple[Path, ...] = ()
    or_anew: bool = False
    written: bool = True
    limit: int = 1
    keep: bool | Literal["auto"] = False
    identity: Mapping[str, Any] = field(default_factory=dict)
    best: Best | None = None

    def all(self) -> list[Path]:
        """The folders of all checkpoints, damaged ones included, the newest first."""
        found = [path for path in self.folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
        return sorted(found, key=_step, reverse=True)

    def verified(self) -> tuple[Path, ...]:
        """The whole checkpoints, the newest first; logs what is wrong with the others."""
        wrong = {path: damage(path) for path in self.all()}
        for path, reason in wrong.items():
            if reason is not None and hardware.is_main_process():
                _logger.warning("%s is not used: %s", path, reason)
        return tuple(path for path, reason in wrong.items() if reason is None)

    def start(self) -> Path | None:
        """The checkpoint that training goes on from, None if it begins anew; then those of an earlier run are removed.

        TrainingError, with what differs, if no checkpoint belongs to this run.
        """
        others: list[str] = []
        for path in self.whole:
            different = differences(progress_of(path)["identity"], self.identity)
            if not different:
                break
            others.append(f"{path} was made with other settings or data ({different})")
        else:
            if others and not self.or_anew:
                raise TrainingError(f"{others[0]}. Go on with those, or train without --resume, with --overwrite.")
            if others and hardware.is_main_process():
                _logger.warning("%s; training begins anew", others[0])
            self._remove(None)
            return None
        for other in others if hardware.is_main_process() else ():
            _logger.warning("%s; going on from %s", other, path)
        if path != self.all()[0] and not others:
            _logger.warning("going on from %s, the newest whole checkpoint", path)
        (self.folder / _FINISHED).unlink(missing_ok=True)
        return path

    def stopped_early(self, checkpoint: Path) -> bool:
        """Whether training ended with this checkpoint, as validation did not get better."""
        if self.best is None:
            return False
        self.best.load(checkpoint, progress_of(checkpoint)["best"])
        return self.best.exhausted

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """A folder; what the block writes to `checkpoint-STEP` in it becomes a checkpoint, and older ones are removed.

        All processes have to call this. TrainingError if it cannot be written.
        """
        new = self.folder / f"{_NEW}{step}"
        main = hardware.is_main_process()
        try:
            if main:
                self._clean_up()
                new.mkdir(parents=True)
            hardware.wait_for_everyone()
            yield new
            hardware.wait_for_everyone()
            if main:
                self._put_in_place(new / f"checkpoint-{step}")
            hardware.wait_for_everyone()
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # which writes files for torch.save
                raise
            raise TrainingError(self._unwritten(step, error)) from error
        finally:
            if main:
                self._clean_up()

    def finish(self) -> None:
        """Remove the checkpoints of a finished run, but for the newest if `keep` says so."""
        newest = next(iter(self.all()), None) if self.written else None
        keeps = newest is not None and (_bytes(newest) <= _SMALL_BYTES if self.keep == "auto" else self.keep)
        self._remove(newest if keeps else None)
        if keeps and hardware.is_main_process():
            (self.folder / _FINISHED).touch()

    @property
    def finished(self) -> bool:
        """Whether the newest checkpoint is of a run that ended, and not of one that was stopped."""
        return (self.folder / _FINISHED).is_file()

    def _put_in_place(self, made: Path) -> None:
        follow_umask(made)
        files = {path: path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
        digests = {name: _digest(path) for path, name in sorted(files.items())}
        (made / _DIGESTS).write_text(json.dumps(digests, indent=1), encoding="utf-8")
        for path in (*made.rglob("*"), made):
            flush(path)
        final = self.folder / made.name
        shutil.rmtree(final, ignore_errors=True)  # a damaged one: training went on from an older checkpoint
        made.rename(final)
        flush(self.folder)
        older = [path for path in self.all() if _step(path) < _step(final)]
        for path in {*self.all()} - {final, *older[: self.limit - 1]}:
            shutil.rmtree(path, ignore_errors=True)

    def _unwritten(self, step: int, error: Exception) -> str:
        free = f"{first_line(error)}, with {shutil.disk_usage(self.folder).free:,} bytes free on its disk"
        kept = next((path.name for path in self.all() if damage(path) is None), None)
        advice = f"{kept} is kept: make room, and go on with --resume." if kept else "Make room, and start again."
        return f"The checkpoint of step {step} cannot be written to {self.folder}: {lack(error) or free}. {advice}"

    def _clean_up(self) -> None:
        """Remove what a killed process left, and what could not be written."""
        for path in self.folder.glob(f"{_NEW}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _remove(self, spared: Path | None) -> None:
        hardware.wait_for_everyone()
        if hardware.is_main_process():
            for folder in [self.folder] if spared is None else set(self.all()) - {spared}:
                shutil.rmtree(folder, ignore_errors=True)
        hardware.wait_for_everyone()


def damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None if they are as they were written."""
    try:
        digests = json.loads((checkpoint / _DIGESTS).read_text(encoding="utf-8"))
        missing = {_STATE, _PROGRESS, *digests} - {name for name in digests if (checkpoint / name).is_file()}
        if missing:
            return f"{min(missing)} is missing"
        altered = [name for name, digest in digests.items() if _digest(checkpoint / name) != digest]
    except FileNotFoundError:
        return f"{_DIGESTS} is missing; without it, it is of an earlier version of medgraft or not whole"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{_DIGESTS} cannot be read ({first_line(error)})"
    return f"{altered[0]} was altered or cut off" if altered else None


def write_progress(checkpoint: Path, progress: Mapping[str, Any]) -> None:
    """Write what a checkpoint holds beside tensors and the Trainer's state: `identity`, `config`, `losses` and `seconds`.

    With `best`, what it needs to go on. Secrets in the config are left out.
    """
    (checkpoint / _PROGRESS).write_text(json.dumps({**progress, "config": redacted(progress["config"])}), encoding="utf-8")


def progress_of(checkpoint: Path) -> dict[str, Any]:
    """What `write_progress` wrote."""
    progress: dict[str, Any] = json.loads((checkpoint / _PROGRESS).read_text(encoding="utf-8"))
    return progress


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


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
