"""The folder of a run: what may be written there, and what is removed of an earlier run.

It has the run's record, predictions and maps; what ships is in its subfolder `adapter`. Earlier versions wrote the package into
the run's folder itself.
"""

from __future__ import annotations

import contextlib
import json
import operator
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from medgraft.adapter import IN_RUN, MANIFEST, Manifest, is_adapter, write_package
from medgraft.adapter.saving import package_files
from medgraft.adapter.whole_folder import standing
from medgraft.benchmark.record import BASELINES, RECORD, read_record
from medgraft.config import RunConfig
from medgraft.disk import unwritable
from medgraft.errors import AdapterError
from medgraft.saliency.packed import MAPS_FILE
from medgraft.scoring.run_captions import PREDICTIONS_FILE
from medgraft.training import Checkpoints, damage, done_and_wanted, progress_of, trainer_state

CHECKPOINTS = ".medgraft-checkpoints"
Resume = bool | Literal["auto"]


def check_out(out: Path, config: RunConfig, *, trains: bool, resume: Resume, overwrite: bool) -> tuple[Path, ...]:
    """The checkpoints in `out` that the run may go on from, the newest first; none without `resume`.

    AdapterError if a run in `out` would change files that nobody asked it to change, has nothing to resume, or cannot write.
    """
    if out.exists() and not out.is_dir():
        raise AdapterError(f"{out} is a file; --out names a folder.")
    for folder in (out, out / CHECKPOINTS, out / IN_RUN):
        if problem := unwritable(folder):
            raise AdapterError(f"{problem} Name another folder with --out, or mend this one.")
    packaged, checkpoints = has_package(out), Checkpoints(out / CHECKPOINTS)
    if packaged and not trains:
        raise AdapterError(f"{out} already holds an adapter, and this strategy trains none. Name another folder.")
    if resume == "auto":
        return tuple(path for path in checkpoints.verified() if operator.le(*done_and_wanted(path, config.train)))
    if resume:
        return _resumable(out, config, checkpoints)
    if overwrite:
        return ()
    if packaged:
        raise AdapterError(
            f"{out} already holds an adapter. Name another folder, or add --overwrite to replace it, "
            "or --resume and more --epochs to train it further."
        )
    if trains and (stopped := checkpoints.all()):
        raise AdapterError(
            f"{out} holds {stopped[0].name} of a run that was stopped. Add --resume to go on, or --overwrite to begin anew."
        )
    if trains and out.is_dir() and any(out.iterdir()) and not (out / CHECKPOINTS).is_dir():
        raise AdapterError(f"{out} is not empty and was not made by medgraft train. Name a new folder, or add --overwrite.")
    return ()


def _resumable(out: Path, config: RunConfig, checkpoints: Checkpoints) -> tuple[Path, ...]:
    whole, every = checkpoints.verified(), checkpoints.all()
    if not every and has_package(out) and (out / RECORD).is_file() and not checkpoints.folder.is_dir():
        raise AdapterError(
            f"{out} is finished, and its optimiser state was not kept (train.save_final_state). "
            f"To train it further, start from its weights: --from {out} --out NEW."
        )
    if not every:
        raise AdapterError(f"{out} holds no checkpoint to resume from. Train without --resume.")
    if not whole:
        raise AdapterError(
            f"{every[0]} cannot be resumed: {damage(every[0])}. Train without --resume, with --overwrite, to begin anew."
        )
    done, wanted = done_and_wanted(whole[0], config.train)
    if done > wanted or (checkpoints.finished and done == wanted):
        state = trainer_state(whole[0])
        raise AdapterError(
            f"{out} has trained {state['global_step']} steps ({state['epoch']:g} epochs), which is all that was asked for. "
            "Ask for more with --epochs or --max-steps."
        )
    return whole


def config_in(out: Path) -> RunConfig:
    """The settings of the run in `out`, stopped or finished; AdapterError if there is none."""
    for checkpoint in Checkpoints(out / CHECKPOINTS).all():
        with contextlib.suppress(OSError, ValueError, LookupError):  # a damaged one
            return RunConfig.model_validate(progress_of(checkpoint)["config"])
    if not (out / RECORD).is_file():
        raise AdapterError(
            f"{out} holds no run whose settings could be used. Repeat the command that started it, with --resume."
        )
    return read_record(out / RECORD).config


def has_package(out: Path) -> bool:
    """Whether a run left a package in `out`, in this version's place or in that of earlier ones."""
    return is_adapter(standing(out / IN_RUN)) or (out / MANIFEST).is_file()


def remove_results(out: Path) -> None:
    """Remove record, predictions, maps and baselines of an earlier run in `out`, before its package is replaced."""
    if has_package(out) or _is_record(out / RECORD):
        shutil.rmtree(out / BASELINES, ignore_errors=True)
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
