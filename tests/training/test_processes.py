"""Two processes train, caption and stop as one; the record says that there were two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trained_together import IMAGES, train_all

from medgraft.adapter import locate_adapter
from medgraft.benchmark import read_record

SCRIPT = Path(__file__).with_name("trained_together.py")
FSDP = Path(__file__).parents[2] / "docs" / "fsdp.yaml"


@pytest.fixture(scope="module")
def one(blip_folder, phantoms_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("one")
    train_all(blip_folder, phantoms_folder, out)
    return out


@pytest.fixture(scope="module")
def two(blip_folder, phantoms_folder, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """One launch for all tests, since each takes the time of importing twice."""
    out = tmp_path_factory.mktemp("two")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT]
    done = subprocess.run(
        [sys.executable, *map(str, (*launch, blip_folder, phantoms_folder, out, FSDP))], capture_output=True, text=True,
        timeout=900, env={**os.environ, "MEDGRAFT_FEATURES": str(out / "features"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    return out, done


def _weights(run: Path) -> dict[str, torch.Tensor]:
    files = [file for file in locate_adapter(run).glob("*.safetensors") if file.name != "trained_on.safetensors"]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _assert_equal(found: Path, expected: Path, **tolerance) -> None:
    found, expected = _weights(found), _weights(expected)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **({"rtol": 1e-4, "atol": 1e-6} | tolerance), msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["full", "encoder-frozen", "lora"])
def test_two_processes_train_the_weights_of_one(one, two, strategy):
    _assert_equal(two[0] / strategy, one / strategy)
    alone, together = (read_record(folder / strategy / "record.json") for folder in (one, two[0]))
    assert (alone.processes, together.processes, together.steps) == (1, 2, 3)
    assert together.train_loss == pytest.approx(alone.train_loss, rel=1e-6)
    assert together.run_id != alone.run_id and together.settings != alone.settings


@pytest.mark.slow
def test_two_processes_validate_caption_and_score_as_one(one, two):
    alone, together = (read_record(folder / "encoder-frozen" / "record.json") for folder in (one, two[0]))
    assert [step for step, _ in together.validation_loss] == [3]
    assert together.validation_loss[0][1] == pytest.approx(alone.validation_loss[0][1], rel=1e-6)
    assert (together.metrics, together.collapse, together.chosen) == (alone.metrics, alone.collapse, alone.chosen)
    assert [score for _, score in together.chosen.scores] == [pytest.approx(together.chosen.value)]
    predictions = [json.loads((folder / "encoder-frozen/predictions.json").read_text()) for folder in (one, two[0])]
    assert predictions[0] == predictions[1]
    assert together.features.built == len(list(_features(two[0]))) >= 2 * IMAGES, "each is built once, by one of the two"


def _features(out: Path):
    for shard in (out / "features").glob("*/*.safetensors"):
        yield from load_file(shard)


@pytest.mark.slow
def test_the_first_process_writes_baselines_and_logs(one, two):
    scores = []
    for folder in (one / "encoder-frozen", two[0] / "encoder-frozen"):
        written = [read_record(path) for path in (folder / "baselines/records").glob("*.json")]
        scores.append({record.strategy: (record.metrics, record.collapse) for record in written})
        (log,) = (folder / "logs").iterdir()
        logged = EventAccumulator(str(log)).Reload()
        (loss,) = logged.Scalars("eval/loss")
        assert loss.value == pytest.approx(read_record(folder / "record.json").validation_loss[0][1])
    assert scores[0] == scores[1] and scores[0].keys() == {"most-frequent", "random"}


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on_exactly(two):
    assert sorted(line for line in two[1].stdout.splitlines() if "Stopped" in line) == ["0: Stopped 2", "1: Stopped 2"]
    _assert_equal(two[0] / "stopped", two[0] / "lora", rtol=0, atol=0)


@pytest.mark.slow
def test_both_processes_see_a_loss_that_is_nan_in_one(two):
    lines = [line for line in two[1].stdout.splitlines() if "TrainingError" in line]
    assert [line[:46] for line in sorted(lines)] == [f"{n}: TrainingError The loss became nan near step" for n in (0, 1)]
    assert not (two[0] / "nan/record.json").exists()


@pytest.mark.slow
def test_a_device_map_is_refused_before_data_are_read(two):
    refused = "ConfigError model.device_map spreads a model over the GPUs of one process, and there are several processes here."
    assert sum(refused in line for line in two[1].stdout.splitlines()) == 2
    assert not (two[0] / "spread").exists()


@pytest.mark.slow
def test_the_first_process_prints(two):
    out, done = two
    assert done.stdout.count("\ncider ") == 1
    assert sorted(line for line in done.stdout.splitlines() if "exit code" in line) == [
        f"{n}: exit code 0, then 2" for n in (0, 1)
    ]
    captions = json.loads((out / "encoder-frozen/predictions.json").read_text())["predictions"]
    assert json.loads((out / "captions.json").read_text()) == captions
    refused = "Several processes can train, evaluate and caption."
    assert f"medgraft: {refused}" in done.stderr and f"medgraft (process 1): {refused}" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["lora", "full"])
def test_sharded_weights_are_trained_and_packaged_as_whole_ones(one, two, strategy):
    _assert_equal(two[0] / f"sharded-{strategy}", one / strategy)


@pytest.mark.slow
@pytest.mark.parametrize("said", ["accelerate shards over several GPUs", "add --no-eval", "leave train.save_steps out"])
def test_what_fsdp_cannot_do_is_refused(two, said):
    assert sum(said in line for line in two[1].stdout.splitlines() if "refused FSDP: " in line) == 2
