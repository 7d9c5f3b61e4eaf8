"""A run that was stopped, or whose disk was full, goes on and ends in the same adapter, or says in one line why it cannot."""

import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pytest
import torch

from medgraft.adapter import locate_adapter
from medgraft.benchmark import run
from medgraft.benchmark.run_folder import CHECKPOINTS
from medgraft.cli.main import main
from medgraft.training.trainer import CaptionTrainer

STEPS = 7  # three an epoch
SETTINGS = ("train.per_device_train_batch_size=2", "train.bf16=false", "train.save_steps=2", "train.save_total_limit=2")


@pytest.fixture(scope="module")
def words(blip_folder, phantoms_folder):
    """`words(out, *more)` is the command line of a short run."""

    def get(out, *more, strategy="lora", overrides=(), data=phantoms_folder, base=blip_folder):
        shown = chain.from_iterable(("--set", override) for override in (*SETTINGS, *overrides))
        return [
            "train", "--backbone", f"blip:{base}", "--strategy", strategy, "--data", f"roco:{data}", "--out", str(out),
            "--max-images", "6", "--max-steps", str(STEPS), "--no-eval", "-q", *shown, *more,
        ]  # fmt: skip

    return get


@contextmanager
def _signals(step, *numbers):
    """Send signals to this process while step `step` (from 0) is computed."""
    ordinary = CaptionTrainer.training_step

    def signalled(self, *args, **kwargs):
        if self.state.global_step == step:
            for number in numbers:
                signal.raise_signal(number)
        return ordinary(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(CaptionTrainer, "training_step", signalled)
        yield


def _content(out):
    """The adapter's files but for times, and the losses of its run."""
    folder, record = locate_adapter(out), json.loads((out / "record.json").read_text())
    weights = [folder / name for name in ("adapter_model.safetensors", "adapter_config.json")]
    return [path.read_bytes() for path in weights], *(record[name] for name in ("train_loss", "validation_loss", "chosen"))


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """The folder of the run, never stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(words(out)) == 0
    return out


@pytest.fixture(scope="module")
def stopped(words, tmp_path_factory):
    """The folder of the run, stopped after step 5, with checkpoints of steps 4 and 5."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    with _signals(4, signal.SIGINT):
        assert main(words(out)) == 130
    assert sorted(path.name for path in (out / CHECKPOINTS).iterdir()) == ["checkpoint-4", "checkpoint-5"]
    return out


@pytest.fixture
def out(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "step", "number", "overrides"),
    [
        ("lora", 4, signal.SIGINT, ()),
        ("lora", 5, signal.SIGINT, ("train.eval_during_training=true", "train.save_steps=3")),  # at an epoch's end
        ("lora", 6, signal.SIGTERM, ("train.eval_during_training=true",)),  # at the end
        ("lora", 4, signal.SIGTERM, ("train.best_by=rouge_l", "train.eval_steps=1", "generation.max_new_tokens=6")),
        ("peft:ADALORA", 5, signal.SIGTERM, ("strategy.init_r=4", "strategy.target_r=2")),
    ],
)
def test_the_command_that_is_named_goes_on_to_the_same_adapter(strategy, step, number, overrides, words, tmp_path, capsys):
    one, other = tmp_path / "one", tmp_path / "other one"
    assert main(words(one, strategy=strategy, overrides=overrides)) == 0
    with _signals(step, number):
        assert main(words(other, strategy=strategy, overrides=overrides)) == 128 + number
    program, *command = shlex.split(capsys.readouterr().err.rpartition("Go on with: ")[2])
    assert program == "medgraft"
    assert main(command) == 0
    assert _content(other) == _content(one)


def test_twice_stops_at_once(words, out, whole, capsys):
    with _signals(5, signal.SIGINT, signal.SIGINT):
        assert main(words(out, "--resume")) == 130
    assert sorted(path.name for path in (out / CHECKPOINTS).iterdir()) == ["checkpoint-4", "checkpoint-5"]
    assert main(["train", "--out", str(out), "--resume", "--no-eval"]) == 0  # with the checkpoint's own settings
    assert _content(out) == _content(whole)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def _change(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FILES = (
    "digests.json", "optimizer.pt", "progress.json", "rng_state.pth", "scheduler.pt", "trained.safetensors",
    "trainer_state.json",
)  # fmt: skip
WRONG = {"cut": _cut, "changed": _change, "emptied": lambda path: path.write_bytes(b""), "removed": lambda path: path.unlink()}


def test_every_file_of_a_checkpoint_is_known_here(stopped):
    assert {path.name for path in (stopped / CHECKPOINTS / "checkpoint-5").iterdir()} == {*FILES}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_told_by_its_file(name, wrong, out, words, capsys, tmp_path):
    for step in (4, 5):
        WRONG[wrong](out / CHECKPOINTS / f"checkpoint-{step}" / name)
    before = sorted(out.rglob("*"))
    assert main(words(out, "--resume", data=tmp_path / "none")) == 2  # before anything is loaded
    error = capsys.readouterr().err.splitlines()[-1]
    assert "checkpoint-5 cannot be resumed: " in error and "Train without --resume, with --overwrite" in error
    assert name in error or (name, wrong) == ("digests.json", "changed")  # then another file is named
    assert sorted(out.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize(("name", "wrong"), [("optimizer.pt", "removed"), ("trained.safetensors", "cut")])
def test_the_last_whole_checkpoint_is_used(name, wrong, words, out, whole, capsys):
    WRONG[wrong](out / CHECKPOINTS / "checkpoint-5" / name)
    assert main(words(out, "--resume")) == 0
    assert f"checkpoint-5 is not used: {name} " in (error := capsys.readouterr().err)
    assert "going on from" in error and "checkpoint-4, the newest whole checkpoint" in error
    assert _content(out) == _content(whole)


def _other_captions(folder):
    captions = folder / "train/radiology/captions.txt"
    captions.write_text(captions.read_text().replace("\t ", "\t a "))


def _other_images(folder):
    images = sorted((folder / "train/radiology/images").iterdir())
    images[0].write_bytes(images[1].read_bytes())


@pytest.mark.parametrize(
    ("change", "options", "told"),
    [
        (_other_captions, {}, "(other training captions)"),
        (_other_images, {}, "other training images"),
        (None, {"overrides": ["train.learning_rate=0.5"]}, "learning_rate 0.002, not 0.5"),
        (None, {"overrides": ["strategy.r=2"]}, "strategy.options"),
        (None, {"base": "other"}, "(another base)"),
    ],
)
def test_another_run_is_refused_with_what_differs(
    change, options, told, words, out, capsys, phantoms_folder, other_blip_folder, tmp_path
):
    data = shutil.copytree(phantoms_folder, tmp_path / "data")
    if change is not None:
        change(data)
    options = {**options, **({"base": other_blip_folder} if "base" in options else {})}
    before = sorted(out.rglob("*"))
    assert main(words(out, "--resume", data=data, **options)) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("medgraft:")]
    assert "checkpoint-5 was made with other settings or data (" in error and told in error
    assert sorted(out.rglob("*")) == before


@pytest.mark.slow
def test_another_place_and_other_decoding_are_the_same_run(words, out, whole, phantoms_folder, tmp_path):
    moved = shutil.copytree(phantoms_folder, tmp_path / "moved")
    assert main(words(out, "--resume", data=moved, overrides=["generation.num_beams=2", "train.save_steps=5"])) == 0
    assert _content(out) == _content(whole)


def test_no_command_removes_a_checkpoint_unless_told_to(words, out, capsys, tmp_path):
    before = sorted(out.rglob("*"))
    assert main(words(out)) == 2
    assert "checkpoint-5 of a run that was stopped. Add --resume to go on, or --overwrite" in capsys.readouterr().err
    assert main(words(tmp_path / "new", "--resume")) == 2
    assert main(words(tmp_path / "new", "--resume", "--overwrite")) == 2
    assert capsys.readouterr().err.count("holds no checkpoint to resume from") == 2
    assert sorted(out.rglob("*")) == before and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_run_begun_with_overwrite_goes_on_with_and_without_it(words, whole, tmp_path, capsys):
    for again in ([], ["--overwrite"]):
        out = shutil.copytree(whole, tmp_path / f"out{len(again)}")
        before = sorted(out.rglob("*"))
        assert main(words(out, "--resume", "--overwrite")) == 2
        assert "has trained 7 steps" in capsys.readouterr().err and sorted(out.rglob("*")) == before
        with _signals(STEPS - 1, signal.SIGINT):
            assert main(words(out, "--overwrite", overrides=["train.learning_rate=0.01"])) == 130
        assert main(words(out, "--resume", *again, overrides=["train.learning_rate=0.01"])) == 0
        assert _content(out)[0] != _content(whole)[0]


@pytest.fixture
def disk(tmp_path):
    """`disk(size)` gives a file system of its own; `disk(size)` again changes it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        again = ["-o", f"remount,{options}"] if os.path.ismount(folder) else ["-o", options]
        done = subprocess.run(["mount", "-t", "tmpfs", *again, "tmpfs", folder], capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip("no file system may be mounted here")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_finished(words, whole, disk, capsys):
    size = sum(path.stat().st_size for path in (whole / CHECKPOINTS / "checkpoint-7").iterdir())
    out = disk(f"size={int(1.6 * size)}") / "out"
    assert main(words(out)) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert "The checkpoint of step 4 cannot be written" in error and "checkpoint-2 is kept: make room" in error
    assert [path.name for path in (out / CHECKPOINTS).iterdir()] == ["checkpoint-2"]
    disk(f"size={10 * size}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "save_weights", lambda folder, *others: (folder / "x").write_bytes(b"0" * 10 * size))
        assert main(words(out, "--resume")) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert "The adapter cannot be written to" in error and "the disk is full" in error
    assert sorted(path.name for path in out.iterdir()) == [CHECKPOINTS]
    assert main(words(out, "--resume")) == 0
    assert _content(out) == _content(whole)


@pytest.mark.slow
def test_without_memory_a_line_says_so_and_the_run_goes_on(words, whole, tmp_path, capsys):
    out, ordinary = tmp_path / "out", CaptionTrainer.training_step

    def greedy(self, *args, **kwargs):
        if self.state.global_step == 3:
            torch.empty(10**15)
        return ordinary(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(CaptionTrainer, "training_step", greedy)
        assert main(words(out)) == 2
    assert "medgraft: there is not enough memory; smaller batches" in capsys.readouterr().err
    assert main(words(out, "--resume")) == 0
    assert _content(out) == _content(whole)


def test_a_folder_that_cannot_be_written_is_told_first(words, disk, capsys, tmp_path):
    out = disk("size=1m,ro") / "runs/out"
    assert main(words(out, data=tmp_path / "none")) == 2
    assert f"Nothing can be written to {out.parent.parent}: the file system is read-only." in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_files_follow_the_umask(umask, words, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDGRAFT_FEATURES", str(tmp_path / "features"))
    before = os.umask(umask)
    try:
        assert main(words(tmp_path / "out", strategy="lora-decoder")) == 0
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}
    assert {path.suffix for path in files} >= {".safetensors", ".json", ".pt"} and list(tmp_path.glob("features/*/*"))


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="it forks")
def test_killed_at_random_moments():
    """In a process of its own, since a process that has computed cannot be forked."""
    script = Path(__file__).with_name("chaos_training.py")
    done = subprocess.run([sys.executable, script, "--kills", "10"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
