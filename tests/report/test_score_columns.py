"""Scores of plugins in every form of a report, what is marked, comparisons of any two results, and results read together."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from test_results import _reference, _write

import medgraft
from medgraft.benchmark import read_records, write_record
from medgraft.benchmark.baseline_captions import STRATEGIES
from medgraft.benchmark.evaluation import evaluated
from medgraft.benchmark.record import BASELINE, BASELINES
from medgraft.cli.main import main
from medgraft.config import METRICS
from medgraft.plugin import KnownScores
from medgraft.report import html_report, markdown, read_results, rows, terminal
from medgraft.scoring import read_captions

NOTE = "Wrong words are for <short> captions."
OWN = """
from dataclasses import replace

import medgraft
from medgraft.plugin_api import CaptionMetric, means

@medgraft.hookimpl
def medgraft_metrics():
    wrong = medgraft.ScoreSpec("wrong_words", "words that are in no <reference>", "lower", label="wrong|words")
    yield medgraft.MetricSpec("wrong-words", "wrong words", "own_metrics:WrongWords", (wrong,))
    yield medgraft.MetricSpec("length", "mean words", "own_metrics:Length")
    yield medgraft.MetricSpec("fails", "always", "own_metrics:Fails")

class WrongWords(CaptionMetric):
    def measure(self, captions):
        pairs = zip(captions.predictions, captions.references)
        found = means({"wrong_words": [len(set(text.split()) - set(texts[0].split())) for text, texts in pairs]})
        return replace(found, notes=("Wrong words are for <short> captions.",))

import datasets, evaluate

class Length(evaluate.Metric):
    def _info(self):
        features = {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=datasets.Features(features))

    def _compute(self, predictions, references):
        words = [len(text.split()) for text in predictions]
        return {"length": sum(words) / len(words), "each": words, "how": "split"}

class Fails(Length):
    def _compute(self, predictions, references):
        raise KeyError("no key")
"""


@pytest.fixture
def own(tmp_path_factory, monkeypatch):
    """A plugin with three metrics: one with a declared score, one without, and one that fails."""
    folder = tmp_path_factory.mktemp("site")
    monkeypatch.syspath_prepend(str(folder))
    (folder / "own_metrics.py").write_text(OWN)
    info = folder / "own_metrics-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-metrics\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[medgraft]\nown-metrics = own_metrics\n")
    yield
    sys.modules.pop("own_metrics", None)


def _run(out, strategy, right, *, seed=0, backbone="b", metrics=METRICS[:3], **values):
    """A run of `_write` with the scores in its record that its captions have."""
    record = _write(out, strategy, right, seed)
    scores = medgraft.score(out / record.adapter, metrics=metrics).scores
    config = record.config.model_copy(update={"metrics": tuple(metrics), "backbone": backbone})
    scored = {"metrics": dict(scores.values), "notes": scores.notes}
    record = record.model_copy(update={**scored, "config": config, "backbone": backbone, **values})
    write_record(record, out / "records")
    return record


@pytest.fixture
def results(tmp_path, own):
    """Captions that ignore the image, and runs that are better than they, worse, and not to be told apart from them."""
    out, metrics = tmp_path / "results", ("cider", "bleu", "wrong-words", "length", "fails")
    _run(out, "random", 12, backbone=BASELINE, metrics=metrics, trainable_parameters=0)
    _run(out, "good", 36, metrics=metrics, training_seconds=90.0)
    _run(out, "near", 14, metrics=metrics, training_seconds=50.0)
    _run(out, "poor", 5, metrics=metrics, training_seconds=1.0)
    return out


def test_scores_of_plugins_are_in_every_form(results, plugins, capsys):
    shown = {}
    for form in ("text", "md", "csv", "json", "html"):
        place = results.parent / f"table.{form}"
        assert main(["report", str(results), "--format", form, "--out", str(place)]) == 0
        shown[form] = place.read_text(encoding="utf-8")
    assert "wrong|words\u2193" in shown["text"] and "wrong\\|words\u2193" in shown["md"] and "length" in shown["text"]
    assert max(map(len, shown["text"].splitlines())) <= 80
    escaped = NOTE.replace("<", "&lt;").replace(">", "&gt;")
    assert shown["text"].count(NOTE) == shown["html"].count(escaped) == shown["md"].count(escaped) == 1
    explained = "words that are in no <reference>; lower is better"
    assert explained in shown["text"] and "length: mean words; neither direction counts as better" in shown["text"]
    assert "&lt;reference&gt;; lower is better" in shown["md"] and "in no &lt;reference&gt;; lower is better." in shown["html"]
    lines = {line["strategy"]: line for line in csv.DictReader(shown["csv"].splitlines())}
    assert float(lines["good"]["wrong_words"]) < float(lines["poor"]["wrong_words_low"]) and lines["good"]["length"] == "8.0"
    scores = {row["strategy"]: row["scores"] for row in json.loads(shown["json"])}
    assert scores["good"]["wrong_words"]["better"] == "lower" and scores["good"]["wrong_words"]["best"]
    assert scores["good"]["length"]["better"] is None and scores["good"]["length"]["interval"] is None
    assert not any(each["length"]["best"] or each["wrong_words"]["best"] for name, each in scores.items() if name != "good")


def test_what_a_metric_says_of_its_scores_stands_beside_them(results, plugins, capsys):
    run = results / "runs/good-0"
    assert main(["score", "--predictions", str(run), "--metrics", "wrong-words,length"]) == 0
    assert capsys.readouterr().out.splitlines().count(NOTE) == 1
    found = evaluated(read_captions(run), metrics=("wrong-words", "length"), plugins=plugins)
    assert found.warnings() == [NOTE] and found.for_record()["notes"] == (NOTE,)


def test_only_what_beats_captions_without_an_image_is_marked(results, plugins):
    records = read_records(results)
    table = rows(records, read_results(results, plugins=plugins, records=records), plugins=plugins)
    assert {row.strategy: row.standing for row in table} == {
        "good": "better", "near": "undecided", "poor": "no better", "random": None,
    }  # fmt: skip
    marks = {row.strategy: ({name for name, cell in row.scores.items() if cell.best}, row.best_costs) for row in table}
    assert marks.pop("good") == ({"cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "wrong_words"}, {
        "training_seconds", "trainable_parameters",
    })  # fmt: skip
    assert set(map(str, marks.values())) == {str((set(), frozenset()))}  # although `poor` trained in the shortest time
    notes = (
        r"No better than captions that ignore the image \(random: CIDEr \d.\d+\): poor\.",
        r"Not shown to be better .*: near\.",
    )
    for text in (terminal(table), markdown(table).replace("\\", "")):
        first = " ".join(text.split("strategy")[0].split())
        assert all(re.search(note, first) for note in notes)
    page = html_report("t", records, read_results(results, plugins=plugins), results, plugins=plugins)
    assert page.index("No better than captions that ignore") < page.index("<table")


def test_rows_without_captions_are_shown_and_marked_by_their_values(results, plugins, capsys):
    shutil.rmtree(results / "runs")
    assert main(["report", str(results)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "No better than captions that ignore the image" in text and "by values alone, without captions to test" in text
    assert main(["report", str(results), "--format", "html"]) == 0
    page = (results / "report.html").read_text(encoding="utf-8")
    assert "words that are in no" in page and page.count("<tr>") >= 5 and "no tests and no examples: b good seed 0" in page


def test_several_folders_are_one_report(results, tmp_path, plugins, capsys):
    other = tmp_path / "other"
    _run(other, "further", 30, metrics=("cider", "bleu"))
    _run(other, "random", 12, backbone=BASELINE, metrics=("cider", "bleu", "wrong-words", "length", "fails"))
    _run(other, "elsewhere", 30, metrics=("cider",), images={"test": 9})
    again = _run(other, "good", 20, metrics=("cider", "bleu", "wrong-words", "length", "fails"), run_id="again")
    assert main(["report", str(results), str(other), "--format", "csv"]) == 0
    lines = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert sorted(line["strategy"] for line in lines) == [
        "elsewhere", "further", "good", "good (2)", "near", "poor", "random",
    ]  # fmt: skip
    assert {line["seeds"] for line in lines} == {"1"}  # a run made again is no further seed
    assert float(next(line for line in lines if line["strategy"] == "good (2)")["cider"]) == again.metrics["cider"]
    assert main(["report", str(results), str(other), "--format", "html"]) == 2
    assert "Several folders have no common place for a report. Name one: --out" in capsys.readouterr().err
    assert main(["report", str(results), str(other), "--format", "html", "--out", str(tmp_path / "both.html")]) == 0
    assert "further" in (tmp_path / "both.html").read_text(encoding="utf-8")
    assert main(["report", str(results), str(results)]) == 0
    assert "as an earlier folder has the same run: b good seed 0" in capsys.readouterr().err


def test_compare_takes_any_mix_and_names_both_sides(results, tmp_path, capsys):
    said = tmp_path / "said.json"
    said.write_text(json.dumps({f"image-{i:02d}": _reference(i) if i < 33 else "mass" for i in range(40)}))
    run = results / "runs/poor-0"
    for before, after, code, lines in (
        (run, said, 0, ["better    poor-0 ->", "said.json"]),
        (said, run, 1, ["worse     said.json ->"]),
        (results, said, 0, ["better    b poor on csv ->", "better    b near on csv ->"]),
        (said, results / "runs/good-0", 0, ["undecided said.json ->"]),
    ):
        assert main(["compare", str(before), str(after)]) == code
        out = capsys.readouterr().out
        assert out.startswith(f"before: {before}\nafter:  {after}\n") and all(line in out for line in lines), out
        assert "baseline" not in out and "higher is better" in out and max(map(len, out.splitlines()[3:])) <= 80
    assert main(["compare", str(said), str(said)]) == 2
    assert "hold captions alone. Name what they are scored against: --references FILE" in capsys.readouterr().err
    (tmp_path / "r.json").write_text(json.dumps({f"image-{i:02d}": [_reference(i)] for i in range(40)}))
    assert main(["compare", str(said), str(said), "--references", str(tmp_path / "r.json"), "--score", "bleu_4"]) == 0
    capsys.readouterr()
    said.write_text(json.dumps({f"image-{i:02d}": "mass" for i in range(9)}))
    assert main(["compare", str(run), str(said)]) == 2
    assert "different images or references (40 and 9 images)" in capsys.readouterr().err


def test_compare_knows_the_direction_of_a_plugins_score(results, capsys):
    good, poor = results / "runs/good-0", results / "runs/poor-0"
    words = ["--score", "wrong_words", "--score", "length", "--json"]
    assert main(["compare", str(good), str(poor), *words]) == 1
    found = {change["score"]: change for change in json.loads(capsys.readouterr().out)}
    assert found["wrong_words"]["verdict"] == "worse" and found["wrong_words"]["difference"]["value"] > 0
    assert found["length"]["verdict"] == "undecided" and not found["length"]["tested"]
    assert main(["compare", str(good), str(poor), "--score", "fails"]) == 2
    assert "No run has a score named fails (it failed: 'no key')" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", ["train --backbone blip-nano --strategy lora --data phantoms --out O", "score --predictions P --references P",
              "evaluate --backbone blip-nano --data phantoms", "bench S --out O"],
)  # fmt: skip
def test_an_unknown_metric_is_told_with_what_there_is(words, tmp_path, capsys):
    (tmp_path / "p.json").write_text('{"a": "mass", "b": "cyst"}')
    (tmp_path / "s.toml").write_text('name = "s"\nbackbones = ["blip-nano"]\nstrategies = ["bitfit"]\ndata = "phantoms"\n')
    places = {"O": tmp_path / "o", "P": tmp_path / "p.json", "S": tmp_path / "s.toml"}
    assert main([*(str(places.get(word, word)) for word in words.split()), "--metric", "ciderr"]) == 2
    printed = capsys.readouterr()
    assert "Unknown metric 'ciderr'. Did you mean 'cider'" in printed.err and "Known: bertscore, bleu, c" in printed.err
    assert not (tmp_path / "o/records").exists() and printed.err.count("\n") == 1


def test_a_metric_is_added_to_the_usual_ones(own, tmp_path, capsys):
    (tmp_path / "p.json").write_text('{"a": "mass", "b": "cyst"}')
    words = ["score", "--predictions", str(tmp_path / "p.json"), "--references", str(tmp_path / "p.json")]
    assert main([*words, "--metric", "wrong-words", "--metric", "fails", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"cider", "bleu_4", "wrong_words"} <= set(found["metrics"]) and found["unavailable"][
        "fails"
    ] == "it failed: 'no key'"


def test_every_score_of_the_built_in_metrics_is_declared(plugins):
    folder = Path(__file__).parents[2] / "benchmarks/results/quickstart"
    known, names = KnownScores(plugins), {name for record in read_records(folder) for name in record.metrics or {}}
    undeclared = [name for name in known.shown(names) if known[name].summary.startswith("declared by no")]
    assert len(names) > 30 and not undeclared and known.shown(names)[0] == "cider"


@pytest.mark.slow
def test_train_and_evaluate_show_captions_that_ignore_the_image(tiny_folder, phantoms_folder, tmp_path, capsys):
    backbone, folder = tiny_folder("blip")
    out = tmp_path / "run"
    common = ["--data", f"roco:{phantoms_folder}", "--max-images", "6", "--set", "generation.max_new_tokens=4"]
    words = ["train", "--backbone", f"{backbone}:{folder}", "--strategy", "bitfit", "--out", str(out), "--max-steps", "1"]
    assert main([*words, *common, "--set", "forgetting.images=0"]) == 0
    printed = capsys.readouterr().out
    assert "captions that ignore the image" in " ".join(printed.split()) and all(name in printed for name in STRATEGIES)
    assert {p.name for p in (out / BASELINES).iterdir()} == {"records", "runs"}
    assert main(["report", str(out), "--format", "json"]) == 0
    table = {row["strategy"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(table) == {"bitfit", *STRATEGIES} and table["bitfit"]["standing"] in ("no better", "undecided")
    assert main(["evaluate", "--adapter", str(out), *common[:4], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in STRATEGIES:
        assert found["baselines"][name]["rouge_l"] == pytest.approx(table[name]["scores"]["rouge_l"]["value"])
    shutil.rmtree(out / BASELINES)
    assert main(["report", str(out), "--format", "html"]) == 0
