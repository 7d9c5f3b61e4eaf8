"""`bench --dry-run`, suites whose backbones have strategies of their own, and every backbone side by side."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from medgraft.benchmark import dry_run_suite, expand
from medgraft.benchmark.estimate import measured_flops
from medgraft.config import SuiteConfig, load_suite
from medgraft.errors import UnknownNameError
from medgraft.machine import Hardware
from medgraft.report import dry_run_text

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "benchmarks/suites/medblip-paper.toml"


@pytest.fixture
def no_keys(monkeypatch):
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY", "MEDGRAFT_API_SEND_IMAGES"):
        monkeypatch.delenv(name, raising=False)


def _suite(**changes) -> SuiteConfig:
    values = {"name": "s", "backbones": ("blip-nano",), "strategies": ("zero-shot",), "data": "phantoms"}
    return SuiteConfig.model_validate({**values, **changes})


def test_a_backbone_may_have_its_own_strategies():
    suite = _suite(
        backbones=("blip-nano", {"backbone": "vit-gpt2:x", "strategies": ("lora",)}), strategies=("zero-shot", "full"),
        seeds=(0, 1), overrides={"lora": {"train": {"max_steps": 3}}},
    )  # fmt: skip
    runs = [(run.backbone, run.strategy, run.seed) for run in expand(suite)]
    blip = [("blip-nano", strategy, seed) for seed in (0, 1) for strategy in ("zero-shot", "full")]
    assert runs == [*blip, ("vit-gpt2:x", "lora", 0), ("vit-gpt2:x", "lora", 1)]
    assert expand(suite)[-1].train.max_steps == 3


@pytest.mark.slow
def test_the_papers_plan_without_data_hub_or_key(no_keys, plugins):
    plan = dry_run_suite(load_suite(PAPER), plugins=plugins)
    assert [(run.backbone.partition(":")[0], run.strategy) for run in plan.runs] == [
        *(("blip", strategy) for strategy in ("zero-shot", "full", "encoder-frozen", "decoder-frozen")),
        *((name, "zero-shot") for name in ("blip2", "instructblip", "vit-gpt2", "gemini")),
    ]
    assert {weights.where for weights in plan.weights} == {"hub", "api"}
    sizes = {weights.backbone.rpartition("/")[2]: weights.bytes / 1e9 for weights in plan.weights if weights.bytes}
    assert sizes["blip2-opt-2.7b"] == pytest.approx(15.0, abs=0.1)  # 3.74 B parameters in fp32
    full = next(run for run in plan.runs if run.strategy == "full")
    assert full.trainable_parameters == 223_971_644
    assert full.training_seconds is None
    said = " ".join(plan.missing)
    assert "There is no data/roco" in said
    assert "The hub does not answer" in said
    assert "MEDGRAFT_API_SEND_IMAGES" in said
    text = dry_run_text(plan)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "to download, 15.0 GB" in text


def test_what_is_larger_than_the_machine_is_said(phantoms_folder, plugins, monkeypatch):
    suite = _suite(data=f"roco:{phantoms_folder}", strategies=("full", "zero-shot"), train={"dtype": "fp32"})
    machine = Hardware(memory_bytes=740_000_000, cpu="small", threads=1)
    monkeypatch.setattr("medgraft.hardware.describe", lambda: machine)
    plan = dry_run_suite(suite, plugins=plugins)
    (said,) = plan.missing
    full, zero = plan.runs
    assert zero.memory_bytes < machine.memory_bytes < full.memory_bytes
    assert said.startswith("full on blip-nano: the run needs 1.0 GB") and "and this machine has 0.7" in said
    assert "Missing" in dry_run_text(plan)


def test_16_bits_and_the_files_pages_count(phantoms_folder, plugins):
    found = {
        dtype: dry_run_suite(_suite(data=f"roco:{phantoms_folder}", train={"dtype": dtype}), plugins=plugins).runs[0]
        for dtype in ("fp32", "bf16")
    }
    process, weights = 700_000_000, 6_159_252
    assert found["fp32"].loading_bytes == process + 4 * weights  # stored in fp16, so copied: the files' pages are let go
    assert process + 2 * weights < found["bf16"].memory_bytes


def test_estimates_are_of_the_right_size(phantoms_folder, plugins):
    suite = _suite(
        data=f"roco:{phantoms_folder}", strategies=("zero-shot", "full", "encoder-frozen", "lora-decoder"),
        train={"num_train_epochs": 2},
    )  # fmt: skip
    plan = dry_run_suite(suite, plugins=plugins)
    zero, full, frozen, lora = plan.runs
    images = plan.images[f"roco:{phantoms_folder}"]["train"]
    assert full.trainable_parameters == 6_159_252
    # vision: 65 tokens x 2.65 M weights in linear layers; text: 40 tokens x 3.3 M, head included; three passes of each
    by_hand = 3 * 2 * (65 * 2.65e6 + 40 * 3.3e6) * 2 * images / plan.flops_per_second / 0.3
    assert full.training_seconds == pytest.approx(by_hand, rel=0.15)
    assert zero.training_seconds == 0 < lora.training_seconds < frozen.training_seconds < full.training_seconds
    assert zero.memory_bytes < lora.memory_bytes < frozen.memory_bytes < full.memory_bytes
    assert not plan.missing


def test_a_plan_prices_apis_and_leaves_out_what_cannot_be(phantoms_folder, plugins, no_keys, monkeypatch):
    monkeypatch.setenv("MEDGRAFT_API_USD_PER_MILLION_TOKENS", "1,2")
    suite = _suite(backbones=("openai:m",), strategies=("zero-shot", "lora"), data=f"roco:{phantoms_folder}")
    plan = dry_run_suite(suite, plugins=plugins)
    (run,) = plan.runs
    assert run.usage.requests == plan.images[f"roco:{phantoms_folder}"]["test"]
    assert run.usage.usd == pytest.approx((run.usage.input_tokens + 2 * run.usage.output_tokens) / 1e6)
    assert plan.left_out == {"lora on openai:m": "A model behind an API cannot be trained here."}


def test_the_plan_counts_tries_and_timings(phantoms_folder, plugins):
    data = {"name": "phantoms", "path": str(phantoms_folder)}
    suite = _suite(strategies=("zero-shot", "lora"), seeds=(0, 1), data=data, tuning={}, timing={"repeats": 4})
    plan = dry_run_suite(suite, plugins=plugins)
    assert (plan.trials, plan.timings) == (3, 4)
    assert "Not counted: 3 trials of learning rates and 4 timings of steps." in dry_run_text(plan)


def test_the_plan_tells_what_captions_are_truncated_and_unknown(blip_folder, tmp_path, plugins):
    rows = ["a.png,a mass.,train", f"a.png,{'mass ' * 40},train", "a.png,肺炎。,train"]
    rows.append("b.png,a mass in the left lung.,test")
    (tmp_path / "t.csv").write_text("\n".join(["image,caption,split", *rows]), encoding="utf-8")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "b.png")
    name, data = f"blip:{blip_folder}", f"csv:{tmp_path / 't.csv'}"
    suite = _suite(
        backbones=(name,), strategies=("zero-shot", "lora"), data=data, train={"max_text_tokens": 20},
        generation={"max_new_tokens": 6},
    )  # fmt: skip
    plan = dry_run_suite(suite, plugins=plugins)
    (lines,) = plan.text.values()
    assert list(plan.text) == [f"{name} on {data}"]
    assert lines[0].startswith("1 of 3 training captions are longer than 20 tokens (train.max_text_tokens) and are truncated")
    assert "unknown to the tokenizer" in lines[1] and "肺 (1)" in lines[1]
    assert lines[2] == "100% of the references are longer than 6 tokens (generation.max_new_tokens), the median is 7."
    assert "1 of 3 training captions are longer" in " ".join(dry_run_text(plan).split())


@pytest.mark.parametrize(("changes", "told"), [({"strategies": ("lorra",)}, "'lora'"), ({"metrics": ("cidr",)}, "'cider'")])
def test_misspelt_names_end_the_plan_before_data_are_read(changes, told, plugins):
    with pytest.raises(UnknownNameError, match=f"Did you mean {told}"):
        dry_run_suite(_suite(**changes, data="roco:/nowhere"), plugins=plugins)


def test_the_machine_is_measured():
    assert 1e9 < measured_flops(0.1) < 1e16


@pytest.mark.slow
def test_the_command_prints_the_plan(tmp_path):
    command = [sys.executable, "-m", "medgraft", "bench", str(ROOT / "benchmarks/suites/quickstart.toml")]
    words = ["--set", "data.count=60", "--dry-run", "--json"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["missing"] == [] and len(plan["runs"]) == 7
    assert not list(tmp_path.iterdir())  # nothing was run or written


@pytest.mark.exhaustive
def test_every_backbone_side_by_side(tmp_path):
    """The suite of all models, zero-shot, as its script runs it (every strategy goes through the conformance kit)."""
    script = ROOT / "benchmarks/all_models.py"
    suite = (ROOT / "benchmarks/suites/all-models.toml").read_text()
    short = tmp_path / "suite.toml"
    start = suite.index("strategies = [")
    short.write_text(suite[:start] + 'strategies = ["zero-shot"]\n' + suite[suite.index("[data]") :])
    done = subprocess.run(
        [sys.executable, str(script), "--suite", str(short), "--out", "out", "--json"],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    records = json.loads(done.stdout)
    assert [record["status"] for record in records] == ["ok"] * 11
    assert {record["backbone"] for record in records} == set(load_suite(ROOT / "benchmarks/suites/all-models.toml").backbones)
    assert [r["usage"]["requests"] for r in records if r["usage"]] == [7, 7]


def test_the_plan_tells_leaks_and_does_not_ask_for_another_folder(tmp_path, plugins):
    for name in ("a", "b"):
        Image.linear_gradient("L").save(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text("image,caption,split\na.png,one,train\nb.png,two,test\ngone.png,three,test\n")
    data = {"name": "csv", "path": str(tmp_path / "t.csv"), "options": {"split": "split"}}
    text = " ".join(dry_run_text(dry_run_suite(_suite(data=[data]), plugins=plugins)).split())
    assert "Overlap: 1 image of test with a byte-equal image in train (such as 'b.png' and 'a.png')." in text
    assert "Left out: 1 missing, such as" in text
    plan = dry_run_suite(_suite(data=[data | {"on_leak": "error"}]), plugins=plugins)
    (line,) = [line for line in plan.missing if "the splits overlap" in line]
    assert line.endswith("or set data.on_leak=drop to leave them out of training.")


def test_a_probe_measures_what_the_estimate_says(blip_folder, phantoms_folder, plugins):
    train = {"per_device_train_batch_size": 2, "num_train_epochs": 2.0, "max_text_tokens": 40, "dtype": "fp32"}
    suite = _suite(
        backbones=(f"blip:{blip_folder}", "vit-gpt2:none/of-this-name"), strategies=("lora", "zero-shot"), seeds=(0, 1),
        data=[f"phantoms:{phantoms_folder}", {"name": "phantom-vqa", "options": {"count": 30}}], train=train,
        generation={"max_new_tokens": 4},
    )  # fmt: skip
    plan = dry_run_suite(suite, plugins=plugins, probes=True)
    by_data = {data: [run for run in plan.runs if run.data == data and run.probed] for data in {run.data for run in plan.runs}}
    captions, questions = by_data[f"phantoms:{phantoms_folder}"], by_data["phantom-vqa"]
    assert [run.strategy for run in questions] == [run.strategy for run in captions]
    assert {run.captioned_images for run in captions}.isdisjoint(run.captioned_images for run in questions)
    probed = {(run.strategy, run.seed): run for run in captions}
    assert set(probed) == {(strategy, seed) for strategy in ("lora", "zero-shot") for seed in (0, 1)}
    assert probed["zero-shot", 0].training_seconds == 0 < probed["lora", 0].training_seconds
    assert probed["lora", 1].training_seconds == probed["lora", 0].training_seconds  # one probe for all seeds
    assert all(run.captioning_seconds > 0 and run.memory_bytes > 1e8 for run in probed.values())
    text = dry_run_text(plan)
    assert "lora*" in text and "* measured by a probe" in text and " on phantom-vqa\n" in text


def test_steps_are_counted_as_the_trainer_does(blip_folder, phantoms_folder, tmp_path, plugins):
    from medgraft.benchmark import execute
    from medgraft.benchmark.probe import steps_of
    from medgraft.data import load_data

    sizes = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "num_train_epochs": 1.5}
    suite = _suite(
        backbones=(f"blip:{blip_folder}",), strategies=("lora-decoder",), data=f"phantoms:{phantoms_folder}", train=sizes
    )
    (config,) = expand(suite)
    training = load_data(config.data, plugins=plugins).split("train")
    assert execute(config, tmp_path, plugins=plugins, evaluate=False).record.steps == steps_of(config, training)
