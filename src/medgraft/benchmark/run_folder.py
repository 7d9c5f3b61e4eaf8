"""The folder of a run: what may be written there, and what is removed of an earlier run.

It has the run's record, predictions and maps; what ships is in its subfolder `adapter`. Earlier versions wrote the package into
the run's folder itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from medgraft.adapter import IN_RUN, MANIFEST, Manifest, is_adapter, write_package
from medgraft.adapter.saving import package_files
from medgraft.adapter.whole_folder import standing
from medgraft.benchmark.record import RECORD, read_record
from medgraft.config import RunConfig
from medgraft.errors import AdapterError
from medgraft.saliency.packed import MAPS_FILE
from medgraft.scoring.run_captions import PREDICTIONS_FILE
from medgraft.training import Checkpoints, done_and_wanted, trainer_state

CHECKPOINTS = ".medgraft-checkpoints"


def check_out(out: Path, config: RunConfig, *, trains: bool, resume: bool, overwrite: bool) -> None:
    """Raise AdapterError if a run in `out` would change files that nobody asked it to change, or has nothing to resume."""
    if out.exists() and not out.is_dir():
        raise AdapterError(f"{out} is a file; --out names a folder.")
    packaged = has_package(out)
    if packaged and not trains:
        raise AdapterError(f"{out} already holds an adapter, and this strategy trains none. Name another folder.")
    if overwrite:
        return
    if resume:
        _check_resumable(out, config, trains)
    elif packaged:
        raise AdapterError(
            f"{out} already holds an adapter. Name another folder, or add --overwrite to replace it, "
            "or --resume and more --epochs to train it further."
        )
    if trains and out.is_dir() and any(out.iterdir()) and not (out / CHECKPOINTS).is_dir():
        raise AdapterError(f"{out} is not empty and was not made by medgraft train. Name a new folder, or add --overwrite.")


def _check_resumable(out: Path, config: RunConfig, trains: bool) -> None:
    finished, newest = (out / RECORD).is_file(), Checkpoints(out / CHECKPOINTS).newest()
    if trains and finished and newest is None:
        raise AdapterError(
            f"{out} is finished, and its optimiser state was not kept (train.save_final_state). "
            f"To train it further, start from its weights: --from {out} --out NEW."
        )
    if not (out / CHECKPOINTS).is_dir():
        raise AdapterError(f"{out} holds no checkpoint to resume from. Train without --resume.")
    if newest is None:
        return
    done, wanted = done_and_wanted(newest, config.train)
    if done > wanted or (finished and done == wanted):
        state = trainer_state(newest)
        raise AdapterError(
            f"{out} has trained {state['global_step']} steps ({state['epoch']:g} epochs), which is all that was asked for. "
            "Ask for more with --epochs or --max-steps."
        )


def config_in(out: Path) -> RunConfig:
    """The settings of the finished run in `out`; AdapterError if there is none."""
    if not (out / RECORD).is_file():
        raise AdapterError(
            f"{out} holds no finished run whose settings could be used. Repeat the command that started it, with --resume."
        )
    return read_record(out / RECORD).config


def has_package(out: Path) -> bool:
    """Whether a run left a package in `out`, in this version's place or in that of earlier ones."""
    return is_adapter(standing(out / IN_RUN)) or (out / MANIFEST).is_file()


def remove_results(out: Path) -> None:
    """Remove record, predictions and maps of an earlier run in `out`, before its package is replaced."""
    if has_package(out) or _is_record(out / RECORD):
        for name in (RECORD, PREDICTIONS_FILE, MAPS_FILE):
            (out / name).unlink(missing_ok=True)


def replace_package(out: Path, manifest: Manifest, write_files: Callable[[Path], Iterable[str]]) -> Manifest:
    """Write the package of the run in `out` by `write_package`, and remove one that an earlier version left in `out` itself."""
    manifest = write_package(out / IN_RUN, manifest, write_files)
    if (out / MANIFEST).is_file():
        for name in sorted(package_files(out), key=lambda name: name == MANIFEST):  # last, as it says what else to remove
            if Path(name).name == name:
                (out / name).unlink(missing_ok=True)
    return manifest


def _is_record(path: Path) -> bool:
    try:
        return "run_id" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False
