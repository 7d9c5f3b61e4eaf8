"""Suites done by workers of submitit and Ray, which are lost on the way."""

import json
import os
import re
import signal
import sys
import time
from threading import Thread

import psutil
import pytest

from medgraft.benchmark import expand, read_records, run_suite
from medgraft.benchmark.plan import PlannedRun
from medgraft.benchmark.sent_work import Call
from medgraft.benchmark.work import Task
from medgraft.config import SuiteConfig
from medgraft.errors import ConfigError
from medgraft.executor_config import ExecutorConfig
from medgraft.executors import open_executor

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's and submitit's own


@pytest.fixture
def suite(blip_folder, phantoms_folder):
    """A suite of tiny runs with these settings of the executor."""

    def make(strategies=("zero-shot", "lora"), seeds=(0,), steps=4, **executor):
        return SuiteConfig.model_validate({
            "name": "tiny", "backbones": [f"blip:{blip_folder}"], "strategies": strategies, "seeds": seeds, "metrics": ["bleu"],
            "data": {"name": "roco", "path": str(phantoms_folder), "max_images": 6}, "saliency": {"maps": 0},
            "train": {"max_steps": steps, "per_device_train_batch_size": 2}, "generation": {"max_new_tokens": 4},
            "forgetting": {"images": 0}, "executor": executor,
        })  # fmt: skip

    return make


def _kill_first(records, kill):
    """Call `kill` with the worker's process id once the first training run has begun; the thread that does so."""

    def wait():
        while True:
            for path in records.glob("*.lease"):
                lines = [json.loads(line) for line in path.read_text().splitlines()]
                if len(lines) > 1:  # the second names the run's process
                    kill(lines[0]["pid"])
                    return
            time.sleep(0.02)

    thread = Thread(target=wait, daemon=True)
    thread.start()
    return thread


def _check(records, out, plugins, planned):
    """Each run has one record, its output in its folder, and no lease or process is left."""
    models = [record for record in records if record.backbone != "baseline"]
    assert [record.status for record in models] == ["ok"] * planned
    assert len({record.run_id for record in models}) == planned
    assert {record.run_id for record in read_records(out)} == {record.run_id for record in records}
    assert all((out / record.adapter / "output.txt").read_text().count("\n") > 1 for record in models)
    assert not [*(out / "records").glob("*.lease"), *(out / "records").glob("*.tmp")]
    mine = [p for p in psutil.Process().children(recursive=True) if str(out) in " ".join(p.cmdline())]
    assert not mine


@pytest.mark.slow
def test_records_are_those_of_a_local_suite(suite, plugins, tmp_path, logged):
    """submitit's debug executor does the runs in this process."""
    out = tmp_path / "out"
    sent = run_suite(suite(name="submitit", cluster="debug"), out, plugins=plugins)
    _check(sent, out, plugins, 2)
    local = run_suite(suite(), tmp_path / "local", plugins=plugins)
    assert [_result(record) for record in sent] == [_result(record) for record in local]
    with logged() as lines:  # all are done: nothing is sent
        assert run_suite(suite(name="submitit", cluster="debug"), out, plugins=plugins) == sent
    assert not [line for line in lines if "sent" in line]


def _result(record):
    return record.run_id, record.metrics, record.train_loss, record.steps


@pytest.mark.exhaustive
def test_submitit_begins_a_run_again_whose_worker_is_killed(suite, plugins, tmp_path, logged):
    out = tmp_path / "out"
    thread = _kill_first(out / "records", lambda pid: os.kill(pid, signal.SIGKILL))
    with logged() as lines:
        records = run_suite(suite(["lora"], name="submitit", cluster="local", workers=1), out, plugins=plugins)
    thread.join(10)
    assert not thread.is_alive() and any("its worker is lost" in line for line in lines), lines
    _check(records, out, plugins, 1)
    (output,) = out.glob("runs/blip*/output.txt")
    assert re.findall(r"try (\d), by submitit \(local\)", output.read_text()) == ["1", "2"]


@pytest.mark.slow
def test_ray_begins_the_runs_of_a_lost_node_again(suite, plugins, tmp_path, logged, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")
    for name in ("agent_register_timeout_ms", "worker_register_timeout_seconds", "raylet_start_wait_time_s"):
        monkeypatch.setenv(f"RAY_{name}", "300000" if name.endswith("ms") else "300")  # other tests may keep the cores busy
    from ray.cluster_utils import Cluster

    out = tmp_path / "out"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

    def lose_node(worker):
        raylet = psutil.Process(worker).ppid()
        (lost,) = (node for node in nodes if raylet in [process.process.pid for process in node.all_processes["raylet"]])
        cluster.remove_node(lost, allow_graceful=False)

    try:
        thread = _kill_first(out / "records", lose_node)
        with logged() as lines:
            records = run_suite(suite(seeds=[0, 1], name="ray", address=cluster.address), out, plugins=plugins)
        thread.join(30)
    finally:
        cluster.shutdown()
    assert not thread.is_alive() and any("its worker is lost" in line for line in lines), lines
    assert sum(": done by process" in line for line in lines) == 4, lines
    assert any("uses the same feature store" in line for line in lines)
    _check(records, out, plugins, 4)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"name": "ray", "address": "127.0.0.1:1"}, "Ray cannot use executor.address=127.0.0.1:1: "),
        ({"name": "submitit"}, "submitit cannot use slurm: "),
        ({"name": "submitit", "cluster": "local", "options": {"slurm_partitionn": "gpu"}}, "submitit cannot use local: "),
        ({"name": "submitit", "cluster": "debug", "gpus": 0.5}, "executor.gpus=0.5: submitit gives a run whole GPUs"),
        ({"name": "local", "workers": 2}, "the executor local does one run at a time"),
    ],
)
def test_executors_that_cannot_be_used_are_one_line(settings, told, suite, plugins, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(told)) as error:
        run_suite(suite(["zero-shot"], **settings), tmp_path, plugins=plugins)
    assert "\n" not in str(error.value)


def test_settings_that_an_executor_does_not_use_and_missing_packages_are_errors(suite, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="address is for ray, and the executor is submitit"):
        suite(name="submitit", address="auto")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "medgraft.executors.ray", raising=False)
    with pytest.raises(
        ConfigError, match=r"^executor.name=ray needs ray, which is not installed: pip install 'medgraft\[ray\]'$"
    ):
        open_executor(ExecutorConfig(name="ray"), tmp_path)


def test_a_worker_that_sees_other_results_says_so(suite, plugins, tmp_path):
    (config,) = expand(suite(["zero-shot"]))
    task = Task(PlannedRun(config, "0" * 16), "[1/1]")
    call = Call(task, tmp_path, "", False, None, tmp_path, {}, 20, "sent", tmp_path / "mark")
    report = call()
    assert f"does not see the results in {tmp_path}" in report.error and not report.shares_features
