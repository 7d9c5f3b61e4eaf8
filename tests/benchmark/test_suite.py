"""Suites: expanded purely, run in processes of their own, resumed, failures kept."""

import json
import multiprocessing
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread, main_thread

import psutil
import pytest
from safetensors.torch import load_file, save_file

from medgraft import hardware
from medgraft.adapter import locate_adapter
from medgraft.backbones.blip import BlipBackbone
from medgraft.benchmark import expand, read_records, run_suite
from medgraft.benchmark.plan import plan
from medgraft.benchmark.process import PROCESS_NAME
from medgraft.benchmark.recording import run_id
from medgraft.config import SuiteConfig, load_suite, run_config
from medgraft.data import data_fingerprint, load_data
from medgraft.errors import ConfigError, UnknownNameError
from medgraft.report import as_json, example_captions, markdown, rows, terminal
from medgraft.strategies import get_strategy

SUITES = sorted((Path(__file__).parent.parent.parent / "benchmarks/suites").glob("*.toml"))


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_suites_that_ship_are_valid(path, plugins):
    suite = load_suite(path)
    assert suite.name == path.stem
    for run in expand(suite):
        plugins.get("strategy", run.strategy)
        plugins.get("dataset", run.data.name)


def _suite(**changes):
    values = {
        "name": "mini", "backbones": ["blip-nano"], "strategies": ["zero-shot", "lora"], "data": ["phantoms"],
        "seeds": [0, 1], **changes,
    }  # fmt: skip
    return SuiteConfig.model_validate(values)


def test_expansion_is_the_grid_with_overrides():
    suite = _suite(train={"max_steps": 3}, overrides={"lora": {"train": {"learning_rate": 0.5}, "strategy": {"r": 2}}})
    runs = expand(suite)
    assert [(r.strategy, r.seed) for r in runs] == [("zero-shot", 0), ("lora", 0), ("zero-shot", 1), ("lora", 1)]
    assert runs[1].train.learning_rate == 0.5 and runs[1].train.max_steps == 3 and runs[1].strategy_options == {"r": 2}
    assert runs[0].train.learning_rate is None
    with pytest.raises(ConfigError, match=r"overrides for 'lorra', which is not one of its strategies. Did you mean 'lora'"):
        expand(_suite(overrides={"lorra": {"train": {}}}))


def test_suite_files_are_strict(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text('name = "x"\nbackbones = ["b"]\nstrategies = ["s"]\ndata = "phantoms"\nseedz = [1]\n[train]\nlr = 3\n')
    with pytest.raises(ConfigError, match=r"unknown key 'train.lr'.*unknown key 'seedz'. Did you mean 'seeds'"):
        load_suite(path)
    path.write_text("name = [")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_suite(path)
    path.write_text('name = "x"\nbackbones = ["b"]\nstrategies = ["s"]\ndata = { name = "roco" }\n')
    suite = load_suite(path, ["data.path=/r", "data.subset=all", "data.max_images=7", "train.max_steps=2"])
    assert (suite.data[0].path, suite.data[0].options, suite.data[0].max_images) == ("/r", {"subset": "all"}, 7)
    assert suite.train.max_steps == 2


@pytest.fixture(scope="module")
def finished(blip_folder, phantoms_folder, tmp_path_factory, logged):
    """A suite with a run that fails: zero-shot, LoRA, and a LoRA whose rank is impossible."""
    from medgraft.plugin import PluginManager

    suite = SuiteConfig.model_validate(
        {
            "name": "mini",
            "backbones": [f"blip:{blip_folder}"],
            "strategies": ["zero-shot", "lora", "ia3"],
            "data": [{"name": "roco", "path": str(phantoms_folder), "max_images": 6}],
            "train": {"max_steps": 2, "per_device_train_batch_size": 4},
            "generation": {"max_new_tokens": 5},
            "overrides": {"ia3": {"train": {"learning_rate": 1e30, "max_grad_norm": 1e30, "max_steps": 6}}},
        }
    )
    out = tmp_path_factory.mktemp("out")
    with logged() as lines:
        records = run_suite(suite, out, plugins=PluginManager())
    return suite, out, records, lines


@pytest.mark.slow
def test_runs_and_failures_have_records(finished):
    _, out, records, said = finished
    zero, lora, bad, *baselines = records
    assert [(record.backbone, record.strategy) for record in baselines] == [
        ("baseline", "most-frequent"), ("baseline", "random"),
    ]  # fmt: skip
    assert all(record.metrics["cider"] >= 0 and record.training_seconds is None for record in baselines)
    assert (zero.status, lora.status, bad.status) == ("ok", "ok", "failed")
    assert bad.error.startswith("TrainingError: The loss became")
    assert bad.metrics is None
    assert bad.traceback.startswith("Traceback") and bad.traceback.count("\n") > 5
    assert [path.parent.name for path in out.rglob("output.txt")] == [Path(bad.adapter).name]  # of what failed
    assert read_records(out / lora.adapter)[0].metrics == lora.metrics
    assert zero.training_seconds == 0 and zero.adapter_bytes == 0 and zero.steps == 0
    assert lora.training_seconds > 0 and lora.adapter_bytes > 0 and len(lora.train_loss) == 2
    assert {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "rouge_1", "finding_f1"} <= set(lora.metrics)
    assert all(lora.intervals[name][0] <= lora.intervals[name][1] for name in lora.metrics)
    assert lora.signatures["cider"].startswith("cider|D|n:4")
    assert "has no facts of its images" in lora.unavailable["facts"]
    assert {"distinct_share", "most_frequent_share", "shuffled_cider"} <= set(lora.collapse)
    assert lora.peak_memory_bytes > 2**27
    assert lora.images == {"train": 6, "validation": 5, "test": 6}
    assert (locate_adapter(out / lora.adapter) / "adapter_model.safetensors").is_file()
    assert any("failed: TrainingError" in line for line in said)
    assert len(list((out / "records").glob("*.json"))) == 5
    assert read_records(out) == tuple(sorted(records, key=lambda r: (r.backbone, r.strategy)))


@pytest.mark.slow
def test_a_suite_started_again_runs_only_what_is_missing(finished, plugins, logged):
    suite, out, records, _ = finished
    (out / "records" / f"{records[0].run_id}.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in (out / "records").iterdir()}
    with logged() as lines:
        again = run_suite(suite, out, plugins=plugins)
    assert [r.run_id for r in again] == [r.run_id for r in records]
    assert sum("done before" in line for line in lines) == 2
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())


@pytest.mark.parametrize("section", ['[data]\nname = "csv"\npath = "x.csv"\n{}', '[[data]]\nname = "csv"\npath = "x.csv"\n{}'])
def test_options_of_a_reader_are_keys_of_the_data_as_with_set(section, tmp_path):
    head = 'name = "s"\nbackbones = ["blip"]\nstrategies = ["lora"]\n'
    found = []
    for number, keys in enumerate(('group = "patient"\nmax_images = 7', 'options = { group = "patient" }\nmax_images = 7')):
        path = tmp_path / f"{number}.toml"
        path.write_text(head + section.format(keys))
        found.append(load_suite(path, ["data.id=name"]).data)
    assert found[0] == found[1] and found[0][0].options == {"group": "patient", "id": "name"} and found[0][0].max_images == 7


def test_data_that_are_no_table_are_refused(tmp_path):
    (tmp_path / "s.toml").write_text('name = "s"\nbackbones = ["blip"]\nstrategies = ["lora"]\ndata = 5\n')
    with pytest.raises(ConfigError, match="data"):
        load_suite(tmp_path / "s.toml")


def test_a_run_that_an_earlier_version_recorded_keeps_its_id(tiny_folder, phantoms_folder, plugins, tmp_path):
    """The fingerprint of earlier versions depended on the dtype in the files."""
    base = tmp_path / "base"
    shutil.copytree(tiny_folder("blip")[1], base)
    stored = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(stored, base / "model.safetensors", {"format": "pt"})
    config = run_config(backbone=f"blip:{base}", strategy="lora", data=f"roco:{phantoms_folder}")
    data = data_fingerprint(load_data(config.data, plugins=plugins).examples)
    lora, versions = get_strategy("lora", plugins=plugins), hardware.versions()
    own, former = (
        run_id(config, lora, data, digest(str(base)), versions)
        for digest in (BlipBackbone.fingerprint, BlipBackbone.former_fingerprint)
    )
    assert own != former
    for recorded, wanted in ((None, own), (tmp_path, own), (tmp_path, former)):
        assert plan([config], plugins=plugins, records=recorded).runs[0].run_id == wanted
        if recorded:
            (tmp_path / f"{former}.json").touch()


def _run_under_way():
    """The process of a run, once it has begun to train."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for process in multiprocessing.active_children():
            if process.name == PROCESS_NAME and process.pid and psutil.Process(process.pid).cpu_times().user > 1:
                return psutil.Process(process.pid)
        time.sleep(0.05)
    raise AssertionError("no run began")


@pytest.fixture
def long_suite(finished):
    suite, *_ = finished
    train = suite.train.model_copy(update={"max_steps": 10_000})
    return suite.model_copy(update={"strategies": ("lora",), "overrides": {}, "train": train})


@pytest.mark.slow
def test_a_killed_run_leaves_a_record_and_the_next_is_done(long_suite, plugins, tmp_path):
    two = long_suite.model_copy(update={"strategies": ("lora", "zero-shot")})
    killer = Thread(target=lambda: _run_under_way().kill())
    killer.start()
    killed, zero, *_ = run_suite(two, tmp_path, plugins=plugins)
    killer.join()
    assert killed.status == "failed"
    assert "the run's process was ended by SIGKILL (the system does so when memory runs out)" in killed.error
    assert zero.status == "ok"


@pytest.fixture
def interruptible():
    """Ctrl-C as at a terminal: a shell's background jobs are started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_whoever_leaves_a_suite_leaves_no_run_behind(long_suite, plugins, tmp_path):
    begun = []

    def interrupt():
        begun.append(_run_under_way())
        begun.append(time.monotonic())
        signal.pthread_kill(main_thread().ident, signal.SIGINT)  # wakes it while it waits for output

    Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_suite(long_suite, tmp_path, plugins=plugins)
    run, interrupted = begun
    assert time.monotonic() - interrupted < 30  # ten thousand steps take longer
    assert not run.is_running()
    assert not [process for process in multiprocessing.active_children() if process.name == PROCESS_NAME]
    assert not list((tmp_path / "records").glob("*"))


_SCRIPT = """
import sys
from pathlib import Path
from medgraft.benchmark import run_suite
from medgraft.config import SuiteConfig
from medgraft.plugin import PluginManager
from medgraft.progress import log_to_stderr

print("the script runs")
suite = SuiteConfig.model_validate_json(Path(sys.argv[1]).read_text())
with log_to_stderr():
    run_suite(suite, Path("out"), plugins=PluginManager())
"""


@pytest.fixture
def start_script(tmp_path):
    """Starts a script that runs a suite, in a folder of its own and as one without `if __name__ == "__main__"`."""

    def start(suite):
        (tmp_path / "script.py").write_text(_SCRIPT)
        (tmp_path / "suite.json").write_text(suite.model_dump_json())
        command = [sys.executable, "script.py", "suite.json"]
        return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


@pytest.mark.slow
def test_a_script_is_not_run_again_by_its_runs_and_passes_their_output_on(finished, start_script, tmp_path):
    suite, *_ = finished
    with start_script(suite.model_copy(update={"strategies": ("lora",), "overrides": {}})) as script:
        out, errors = script.communicate(timeout=240)
    assert script.returncode == 0, errors
    assert out == "the script runs\n"
    assert "  roco: 6 train" in errors and "  features: not reused" in errors
    assert "training: 100%" in errors and "captioning: 100%" in errors
    (record,) = [record for record in read_records(tmp_path / "out") if record.strategy == "lora"]
    assert record.status == "ok"


@pytest.mark.slow
def test_a_run_does_not_outlive_who_asked_for_it(long_suite, start_script):
    with start_script(long_suite) as script:
        assert any("training" in line for line in script.stderr)
        family = psutil.Process(script.pid).children(recursive=True)
        script.kill()
        gone, alive = psutil.wait_procs(family, timeout=30)
    assert len(gone) >= 2 and not alive


def test_misspelt_names_end_a_suite_before_its_first_run(finished, plugins, tmp_path):
    suite, *_ = finished
    with pytest.raises(UnknownNameError, match="'lorra'"):
        run_suite(suite.model_copy(update={"strategies": ("zero-shot", "lorra"), "overrides": {}}), tmp_path, plugins=plugins)
    assert not (tmp_path / "records").exists()


def test_tables(finished, plugins):
    _, out, records, _ = finished
    table = rows(records, plugins=plugins)
    assert table[-1].strategy == "ia3" and table[-1].failed == 1
    assert {row.strategy for row in table if row.backbone == "baseline"} == {"most-frequent", "random"}
    text = terminal(table)
    body = [line for line in text.splitlines() if line and not line.startswith("blip:")]
    assert max(map(len, body)) <= 80
    assert "Failed runs: ia3 (1 of 1); see `error` in their records." in text
    assert "| forget |" in markdown(table) and text.count("No better than captions that ignore the image") <= 1
    assert any(row["backbone"].startswith("blip:") for row in json.loads(as_json(table)))
    examples = example_captions(records, out)
    assert "zero-shot" in examples and "lora" in examples
