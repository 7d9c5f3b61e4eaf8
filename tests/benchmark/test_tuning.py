"""Learning rates by equal budgets, and steps timed over and over: chosen, recorded, resumed, shown."""

import json
from pathlib import Path

import pytest

from medgraft.benchmark import Record, read_records, run_suite, step_time, write_record
from medgraft.benchmark.tuning import choose, trials
from medgraft.config import RunConfig, SuiteConfig, TuningConfig, load_suite
from medgraft.errors import ConfigError
from medgraft.plugin import KnownScores
from medgraft.report import peft_results, read_results, rows, terminal, write_peft_results
from medgraft.strategies import get_strategy

CONFIG = RunConfig.model_validate(
    {"backbone": "b", "strategy": "lora", "data": {"name": "csv"}, "train": {"learning_rate": 0.01}, "seed": 2}
)


def _record(run_id="r", **changes):
    values = {
        "run_id": run_id, "backbone": "b", "strategy": "lora", "data": "csv", "seed": 0, "status": "ok",
        "config": CONFIG.model_dump(mode="json"), "versions": {"peft": "1"}, "hardware": {"cpu": "x", "threads": 2},
    }  # fmt: skip
    return Record(**values | changes)


def _tried(rate, score, seconds=1.0):
    config = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"learning_rate": rate})})
    metrics = None if score is None else {"cider": score, "deletion": score}
    status = "failed" if score is None else "ok"
    return _record(config=config.model_dump(mode="json"), metrics=metrics, training_seconds=seconds, status=status)


def test_every_strategy_gets_the_same_tries(plugins):
    tuning = TuningConfig(factors=(0.5, 1, 2), num_train_epochs=1)
    tried = trials(CONFIG, get_strategy("lora", plugins=plugins), tuning)
    assert [run.train.learning_rate for run in tried] == [0.005, 0.01, 0.02]
    assert {(run.eval_split, run.seed, run.train.num_train_epochs) for run in tried} == {("validation", 1000, 1)}
    assert "localization" not in tried[0].metrics
    own = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"learning_rate": None})})
    strategy = get_strategy("lora", plugins=plugins)
    assert [run.train.learning_rate for run in trials(own, strategy, TuningConfig(factors=(2,)))] == [
        2 * strategy.learning_rate
    ]
    assert trials(CONFIG, get_strategy("zero-shot", plugins=plugins), tuning) == ()


def test_the_best_rate_is_chosen_the_lower_of_equals(plugins):
    scores = KnownScores(plugins)
    chosen = choose([_tried(0.1, 0.5), _tried(0.01, 0.7), _tried(0.03, 0.7), _tried(1.0, None)], TuningConfig(), scores)
    assert chosen.chosen == 0.01
    assert chosen.tried[-1] == (1.0, None, 1.0)
    assert chosen.seconds == 4.0
    assert choose([_tried(0.1, 0.2), _tried(0.2, 0.1)], TuningConfig(score="deletion"), scores).chosen == 0.2
    assert choose([_tried(0.1, None)], TuningConfig(), scores) is None


@pytest.mark.parametrize(
    ("tried", "edge"),
    [
        (((0.1, 0.7), (0.2, 0.5), (0.4, 0.1)), "lowest"), (((0.1, 0.1), (0.2, 0.5)), "highest"),
        (((0.1, 0.1), (0.2, 0.5), (0.4, 0.1)), None), (((0.1, 0.1), (0.2, 0.5), (0.4, None)), None), (((0.1, 0.1),), None),
    ],
)  # fmt: skip
def test_a_rate_at_the_edge_of_those_tried_is_told(tried, edge, plugins):
    tuning = choose([_tried(*each) for each in tried], TuningConfig(), KnownScores(plugins))
    assert tuning.at_edge == edge
    text = terminal(rows([_record("a", trainable_parameters=1, metrics={"cider": 0.5}, tuning=tuning)], plugins=plugins))
    assert ("at the edge of those tried" in text) == (edge is not None) and (edge or "") in text


def test_a_score_that_tries_do_not_have_is_told(plugins):
    scores = KnownScores(plugins)
    with pytest.raises(ConfigError, match=r"tuning\.score is 'pointing_finding'.*Available: cider, deletion"):
        choose([_tried(0.1, 0.5)], TuningConfig(score="pointing_finding"), scores)
    with pytest.raises(ConfigError, match="no validation images"):
        choose([_tried(0.1, 0.5).model_copy(update={"metrics": None})], TuningConfig(), scores)
    with pytest.raises(ConfigError, match="'words', for which no installed metric says whether more or less is better"):
        choose([], TuningConfig(score="words"), scores)


def test_rates_are_not_chosen_on_the_images_that_are_reported(tmp_path):
    suite = tmp_path / "s.toml"
    suite.write_text(
        'name="s"\nbackbones=["blip-nano"]\nstrategies=["lora"]\ndata="phantoms"\neval_split="validation"\n[tuning]\n'
    )
    with pytest.raises(ConfigError, match="eval_split cannot be validation"):
        load_suite(suite)


@pytest.mark.parametrize("factors", [[0, 1], [-1], [1, 1], []])
def test_impossible_factors_are_refused(factors, tmp_path):
    suite = tmp_path / "s.toml"
    suite.write_text('name="s"\nbackbones=["blip-nano"]\nstrategies=["lora"]\ndata="phantoms"\n')
    with pytest.raises(ConfigError, match=r"tuning\.factors"):
        load_suite(suite, [f"tuning.factors={json.dumps(factors)}"])


@pytest.fixture(scope="module")
def suite(blip_folder, phantoms_folder):
    return SuiteConfig.model_validate(
        {
            "name": "tuned",
            "backbones": [f"blip:{blip_folder}"],
            "strategies": ["zero-shot", "encoder-frozen"],
            "seeds": [0, 1],
            "data": {"name": "phantoms", "path": str(phantoms_folder), "max_images": 6},
            "train": {"max_steps": 2, "per_device_train_batch_size": 3},
            "generation": {"max_new_tokens": 4},
            "metrics": ["cider"],
            "saliency": {"maps": 0},
            "tuning": {"factors": [1, 4]},
            "timing": {"repeats": 2, "steps": 8},
        }
    )


@pytest.fixture(scope="module")
def done(suite, tmp_path_factory, logged):
    from medgraft.plugin import PluginManager

    out = tmp_path_factory.mktemp("tuned") / "out"
    with logged() as lines:
        return out, run_suite(suite, out, plugins=PluginManager()), lines


@pytest.mark.slow
def test_a_tuned_suite_uses_what_it_chose_for_every_seed(done):
    out, records, said = done
    trained = [record for record in records if record.strategy == "encoder-frozen"]
    assert len(trained) == 2 and all(record.status == "ok" for record in trained)
    (chosen,) = {record.tuning.chosen for record in trained}
    assert {record.config.train.learning_rate for record in trained} == {chosen}
    assert len(trained[0].tuning.tried) == 2 and trained[0].tuning.seconds > 0
    assert next(record for record in records if record.strategy == "zero-shot").tuning is None
    assert any("learning rate" in line and "by cider" in line for line in said)
    assert len(list((out / "tuning/records").glob("*.json"))) == 2


@pytest.mark.slow
def test_timing_repeats_are_interleaved_and_kept_apart(done):
    out, records, said = done
    first = next(record for record in records if record.strategy == "encoder-frozen")
    timed = [line.split("]")[0] for line in said if line.startswith("[timing")]
    assert timed == ["[timing 1/2, 1/1", "[timing 2/2, 1/1"]
    step = step_time(first, out)
    assert step.repeats == 2 and 0 < step.low <= step.median <= step.high
    assert first.step_quartiles is None  # two steps are too few for quartiles of their own
    assert {record.run_id for record in read_records(out)} == {record.run_id for record in records}


def test_a_suite_started_again_does_nothing_twice(done, suite, plugins, logged):
    out, records, _ = done
    with logged() as lines:
        again = run_suite(suite, out, plugins=plugins)
    assert [record.run_id for record in again] == [record.run_id for record in records]
    assert all("done before" in line or "by cider" in line for line in lines), lines


def test_tables_tell_of_tuning_and_timing(done, plugins):
    out, records, _ = done
    table = rows(records, read_results(out, plugins=plugins), plugins=plugins)
    row = next(row for row in table if row.strategy == "encoder-frozen")
    assert row.tuning_seconds > 0 and row.step[0] <= row.step[1] <= row.step[2] and row.disturbed in (True, False)
    assert "Choosing learning rates on validation images" in terminal(table)


def test_the_quickstart_uses_the_rates_that_its_tuned_twin_chose():
    root = Path(__file__).parents[2]
    chosen = {
        record.strategy: record.tuning.chosen
        for record in read_records(root / "benchmarks/results/quickstart")
        if record.tuning
    }
    suite = load_suite(root / "benchmarks/suites/quickstart.toml")
    assert chosen == {name: changes["train"]["learning_rate"] for name, changes in suite.overrides.items()}
    twin = load_suite(root / "benchmarks/suites/quickstart-tuned.toml")
    assert (twin.strategies, twin.data, twin.train, twin.generation) == (
        suite.strategies,
        suite.data,
        suite.train,
        suite.generation,
    )


def test_disturbed_steps_are_marked(tmp_path):
    calm, wild = _record("a", step_quartiles=(0.95, 1.0, 1.05)), _record("b", step_quartiles=(0.8, 1.0, 1.4))
    assert not step_time(calm, tmp_path).disturbed and step_time(wild, tmp_path).disturbed
    assert step_time(_record("c"), tmp_path) is None
    for number, seconds in enumerate((1.0, 1.02, 1.3)):
        repeat = _record(f"a.{number}", step_quartiles=(seconds, seconds, seconds))
        write_record(repeat, tmp_path / "timing/records")
    step = step_time(calm, tmp_path)
    assert step.median == 1.02 and step.repeats == 3 and step.disturbed


def test_results_in_pefts_layout_have_the_fields_that_its_processing_reads(tmp_path, plugins):
    """The names are those that PEFT's method_comparison/processing.py looks up."""
    done = _record(
        metrics={"cider": 0.5}, training_seconds=3.0, steps=4, train_loss=(2.0, 1.0), trainable_parameters=10,
        total_parameters=100, peak_memory_bytes=5, adapter_bytes=7, finished="2026-01-01T00:00:00+00:00",
        phase_seconds={"train": 3.0, "load": 1.0},
    )  # fmt: skip
    failed = _record("f", status="failed", error="no memory", strategy="full")
    shot = _record("z", strategy="zero-shot", trainable_parameters=0)
    own_rate = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"learning_rate": None})})
    held = _record("q", strategy="qlora", trainable_parameters=10, config=own_rate.model_dump(mode="json"))
    found = peft_results([done, failed, shot, held], plugins=plugins)
    assert len(found) == 3
    quantised = next(c["run_info"] for name, c in found.items() if name.startswith("qlora"))
    assert quantised["peft_config"]["peft_type"] == "LORA"
    rate = get_strategy("qlora", plugins=plugins).learning_rate
    assert quantised["train_config"]["optimizer_kwargs"]["lr"] == rate
    found = peft_results([done, failed], plugins=plugins)
    content = next(c for c in found.values() if c["train_info"]["status"] == "success")
    run, train, meta = content["run_info"], content["train_info"], content["meta_info"]
    assert {"experiment_name", "total_time", "peft_branch", "created_at", "train_config", "peft_config"} <= set(run)
    assert run["total_time"] == 4.0 and run["train_config"]["model_id"] == "b" and run["peft_config"]["peft_type"] == "LORA"
    assert {"accelerator_memory_reserved_avg", "accelerator_memory_max", "accelerator_memory_reserved_99th"} <= set(train)
    assert (train["train_time"], train["file_size"]) == (3.0, 7)
    assert train["metrics"][-1]["test accuracy"] == 0.5 and train["metrics"][-1]["train loss"] == 1.0
    assert {"train samples", "train total tokens"} <= set(train["metrics"][-1])
    assert {f"{p}-version" for p in ("peft", "transformers", "datasets", "torch", "bitsandbytes")} <= set(meta["package_info"])
    other = next(c for c in found.values() if c is not content)
    assert other["run_info"]["peft_config"] is None and other["run_info"]["error_msg"] == "no memory"
    assert write_peft_results([done, failed], tmp_path / "p", plugins=plugins) == 2
    assert all(json.loads(path.read_text()) for path in (tmp_path / "p").glob("*.json"))
