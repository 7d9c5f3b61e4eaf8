"""Results read from disk: intervals, ties, comparisons, and the page."""

import base64
import csv
import html
import itertools
import json
import re
from dataclasses import replace

import pytest

from medgraft.benchmark import Record, RunCaptions, read_records, write_record
from medgraft.benchmark.record import LeftOut
from medgraft.cli.main import main
from medgraft.config import RunConfig
from medgraft.report import compare, html_report, markdown, read_results, rows, terminal
from medgraft.report.charts import quality_against_time
from medgraft.report.image_scores import image_scores
from medgraft.report.subgroups import subgroup_scores, subgroups
from medgraft.scoring import collapse, score, shuffled, write_captions
from medgraft.text_statistics import GenerationStatistics, TextStatistics
from medgraft.types import Leak

WORDS = "chest ct mri of the brain showing a mass nodule effusion in left right lung kidney lobe with no bone".split()  # noqa: SIM905


def _reference(i):
    return " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 9))


def _write(out, strategy, right, seed=0, seconds=10.0, images=40):
    """A run whose captions are right for the first `right` of every 40 images."""
    ids = [f"image-{i:02d}" for i in range(images)]
    references = {key: (_reference(i),) for i, key in enumerate(ids)}
    said = {key: _reference(i) if (i + seed) % 40 < right else _reference(i + 7) for i, key in enumerate(ids)}
    captions = RunCaptions(said, references, {key: f"p{i // 2}" for i, key in enumerate(ids)}, {})
    config = RunConfig.model_validate({"backbone": "b", "strategy": strategy, "data": {"name": "csv"}, "seed": seed})
    record = Record(
        run_id=f"{strategy}-{seed}", backbone="b", strategy=strategy, data="csv", seed=seed, status="ok",
        training_seconds=seconds, trainable_parameters=10, total_parameters=100, adapter=f"runs/{strategy}-{seed}",
        metrics={"cider": right / 40}, phase_seconds={"train": seconds}, train_loss=(3.0, 2.0, 1.0),
        config=config.model_dump(mode="json"), versions={}, hardware={"cpu": "x", "threads": 2}, collapse=collapse(captions),
    )  # fmt: skip
    write_record(record, out / "records")
    write_captions(captions, out / record.adapter)
    return record


@pytest.fixture
def results(tmp_path):
    """Two strategies that nothing parts but three images, and one that is plainly worse."""
    out = tmp_path / "results"
    return out, [_write(out, "one", 36, seconds=30), _write(out, "two", 35, seconds=20), _write(out, "poor", 5, seconds=25)]


def test_names_of_like_points_lie_below_each_other(tmp_path, plugins):
    for number, strategy in enumerate(("one", "two", "three", "four")):
        _write(tmp_path, strategy, 36 - number, seconds=20 + number)
    _write(tmp_path, "poor", 5, seconds=21)
    (group,) = read_results(tmp_path, plugins=plugins)
    chart = quality_against_time(group, "cider")
    points = next(iter(chart["datasets"].values())) if "datasets" in chart else chart["data"]["values"]
    heights = sorted(point["label"] for point in points)
    whole = max(point["high"] for point in points) - min(point["low"] for point in points)
    assert len(points) == 5 and min(b - a for a, b in itertools.pairwise(heights)) > 0.05 * whole
    assert max(points, key=lambda point: point["score"])["label"] == max(point["score"] for point in points)


def test_ties_and_the_frontier(results, plugins):
    out, records = results
    (group,) = read_results(out, plugins=plugins)
    assert group.resampling.groups == 20
    assert group.ties("cider") == {"one", "two"}
    shares = group.frontier("cider")
    assert shares["two"] == 1.0 and shares["poor"] == 0.0 and 0.5 < shares["one"] < 1.0
    found = {frozenset(pair): p for pair, (_, p) in group.differences("cider").items()}
    assert found[frozenset(("one", "two"))] > 0.05 > found[frozenset(("one", "poor"))]
    text = terminal(rows(records, [group], plugins=plugins))
    assert len(re.findall(r"\d\*? ", text)) and max(map(len, text.splitlines())) <= 80
    marked = {row.strategy: row.scores["cider"].best for row in rows(records, [group], plugins=plugins)}
    assert marked == {"one": True, "two": True, "poor": False}


def test_intervals_of_several_seeds(results, plugins, tmp_path):
    out, _ = results
    _write(out, "one", 36, seed=3)
    (group,) = read_results(out, plugins=plugins)
    entry = next(entry for entry in group.entries if entry.strategy == "one")
    assert len(entry.records) == 2
    interval = group.interval(entry, "cider")
    assert interval.low < sum(entry.values("cider")) / 2 < interval.high


def test_shuffled_captions_are_all_elsewhere(results, plugins):
    out, _ = results
    (group,) = read_results(out, plugins=plugins)
    captions = group.entries[0].captions[0]
    moved = shuffled(captions)
    assert sorted(moved.predictions.values()) == sorted(captions.predictions.values())
    assert collapse(captions)["distinct_share"] <= 1.0
    said = {key: key for key in captions.predictions}
    apart = shuffled(RunCaptions(said, captions.references, {}, {})).predictions
    assert all(key != value for key, value in apart.items())


def test_compare_tells_better_worse_and_undecided(results, tmp_path, plugins, capsys):
    out, _ = results
    later = tmp_path / "later"
    _write(later, "one", 8)
    _write(later, "two", 36)
    _write(later, "poor", 34)
    changes = {change.entry.split()[1]: change.verdict for change in compare(out, later, scores=["cider"], plugins=plugins)}
    assert changes == {"one": "worse", "two": "undecided", "poor": "better"}
    assert main(["compare", str(out), str(later)]) == 1
    assert "worse     b one on csv" in capsys.readouterr().out
    assert main(["compare", str(out), str(out), "--json"]) == 0
    assert {change["verdict"] for change in json.loads(capsys.readouterr().out)} == {"undecided"}
    assert main(["compare", str(out / "runs" / "poor-0"), str(out / "runs" / "one-0")]) == 0  # two runs


def test_compare_refuses_other_images(results, tmp_path, capsys):
    out, _ = results
    _write(tmp_path / "fewer", "one", 30, images=30)
    assert main(["compare", str(out), str(tmp_path / "fewer")]) == 2
    assert "scored on different images" in capsys.readouterr().err
    _write(tmp_path / "other", "three", 30)
    assert main(["compare", str(out), str(tmp_path / "other")]) == 2
    assert "have no run in common" in capsys.readouterr().err
    assert main(["compare", str(out), str(out), "--score", "ciderr"]) == 2
    assert "No run has a score named ciderr. Did you mean 'cider'" in capsys.readouterr().err
    assert main(["compare", str(out), str(out), "--score", "cider", "--score", "rouge"]) == 2
    assert "No run has a score named rouge." in capsys.readouterr().err


def test_broken_records_and_captions_are_listed_and_the_others_shown(results, capsys, tmp_path):
    out, records = results
    newer = json.loads(records[0].model_dump_json()) | {"schema_version": 99, "run_id": "newer"}
    (out / "records/newer.json").write_text(json.dumps(newer))
    (out / "records/cut.json").write_text('{"run_id": "x", ')
    (out / "records/utf16.json").write_bytes("{}".encode("utf-16"))
    (out / "runs/poor-0/predictions.json").write_text('{"predictions": {"a": "b"}}')
    assert main(["report", str(out)]) == 0
    printed = capsys.readouterr()
    assert "one" in printed.out and "two" in printed.out
    lines = printed.err.splitlines()
    assert len(lines) == 4 and all(line.startswith("left out: ") for line in lines)
    for name, reason in (
        ("newer.json", "schema version 99, this medgraft reads up to 2; install a newer"), ("cut.json", "Invalid JSON"),
        ("utf16.json", "is not a medgraft record"), ("predictions.json", "does not hold the captions of a run"),
    ):  # fmt: skip
        assert [line for line in lines if name in line and reason in line], name
    assert main(["report", str(out), "--format", "html", "-q"]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "schema version 99" in page and "no tests and no examples: b poor seed 0" in page
    capsys.readouterr()
    _write(tmp_path / "later", "one", 8)
    assert main(["compare", str(out), str(tmp_path / "later")]) == 1
    printed = capsys.readouterr()
    assert "worse     b one on csv" in printed.out
    assert f"only in {out}: b two on csv" in printed.err and printed.err.count("left out") == 4


@pytest.mark.parametrize("command", ["report DIR", "compare DIR DIR"])
def test_what_holds_no_results_is_one_clear_line(command, tmp_path, capsys):
    made = {name: tmp_path / name for name in ("empty", "broken", "run", "file.json")}
    (made["empty"] / "records").mkdir(parents=True)
    (made["broken"] / "records").mkdir(parents=True)
    (made["broken"] / "records/a.json").write_text("[]")
    (made["run"]).mkdir()
    (made["run"] / "record.json").write_text('{"schema_version": "3", "config": {}}')
    made["file.json"].write_text("{}")
    for name, message in (
        ("empty", "holds no records. `medgraft bench SUITE"), ("broken", "a.json is not a medgraft record: "),
        ("run", "schema version 3, this medgraft reads up to 2"),
        ("file.json", "is a file. Name the folder" if "report" in command else "holds no captions"),
        ("nowhere", "There is no folder"),
    ):  # fmt: skip
        assert main([word.replace("DIR", str(tmp_path / name)) for word in command.split()]) == 2
        printed = capsys.readouterr()
        assert message in printed.err and printed.err.count("\n") == 1 and printed.out == "", name


def test_one_image_is_reported_without_cider_and_not_compared(tmp_path, capsys):
    _write(tmp_path, "one", 1, images=1)
    for form in ("text", "html", "json"):
        assert main(["report", str(tmp_path), "--format", form]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path), str(tmp_path), "--score", "rouge_l"]) == 2
    assert "all test images are of one group" in capsys.readouterr().err
    assert collapse(RunCaptions({"a": "b"}, {"a": ("b",)}, {}, {})) == {}


def test_the_page_needs_nothing_else(results, plugins):
    out, records = results
    page = html_report("mine </script>", records, read_results(out, plugins=plugins), out, plugins=plugins)
    assert "<title>mine &lt;/script&gt;</title>" in page
    body = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", body)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert len(data["examples"][0]["items"]) == 40
    assert set(data["charts"]) == {"quality-0", "time-0", "curves-0"}
    assert "one seed only" in page and "only 20 independent groups" in page
    assert page.count("<h2") == page.count("</h2>")


_ACTIONS = """
  const first = (row) => row.children[0].textContent.trim().split("\\n")[0];
  const column = () => [...document.querySelectorAll(".sortable tbody tr")].map(first);
  const heads = [...document.querySelectorAll(".sortable thead button")];
  const cider = heads.findIndex((head) => head.textContent.startsWith("CIDEr"));
  heads[cider].click(); said.push("descending " + column().join(","));
  heads[cider].click(); said.push("ascending " + column().join(","));
  said.push("sort " + heads[cider].parentElement.getAttribute("aria-sort"));
  const search = document.querySelector("input[type=search]");
  said.push("before " + document.querySelector("output").textContent);
  search.value = "image-07"; search.dispatchEvent(new Event("input"));
  said.push("after " + document.querySelector("output").textContent);
  search.value = ""; search.dispatchEvent(new Event("input"));
  const fields = [...document.querySelectorAll(".field[data-field]")];
  said.push("fields " + fields.map((field) => field.dataset.field));
  fields[1].value = "nodule"; fields[1].dispatchEvent(new Event("change"));
  said.push("nodules " + document.querySelector("output").textContent.split(", ")[1]);
  said.push("legend " + document.querySelector(".legend").textContent.trim().split(" ")[0]);
  said.push("charts " + document.querySelectorAll(".chart svg").length);
  said.push("words " + document.querySelectorAll(".word").length);
"""


def test_the_page_works_in_a_browser(results, plugins, browser):
    out, records = results
    said = browser(html_report("results", records, read_results(out, plugins=plugins), out, plugins=plugins), _ACTIONS)
    assert said["descending"].split(",")[-1] == said["ascending"].split(",")[0] == "poor"
    assert said["sort"] == "ascending"
    assert said["before"] == "page 1 of 4, 40 images"
    assert said["after"] == "page 1 of 1, 1 images"
    nodules = sum("nodule" in _reference(i) for i in range(40))
    assert said["fields"] == "modality,finding" and 0 < nodules < 40 and said["nodules"] == f"{nodules} images"
    assert said["legend"] == "marked"
    assert said["charts"] == "3"
    assert said["words"] == "0"  # there are no maps


def test_subgroups_have_the_scores_and_intervals_of_their_images_alone(results, plugins):
    (group,) = read_results(results[0], plugins=plugins)
    captions = group.entries[0].captions[0]
    parts = subgroups(captions)
    nodules = next(part for part in parts if part.value == "nodule")
    assert nodules.images == tuple(i for i in range(40) if "nodule" in _reference(i))
    found = subgroup_scores(group, parts, ["cider", "bleu_4"])["tables"]
    assert [row["value"] for row in found["cider"][""]] == ["all images"]
    row = next(row for row in found["cider"]["finding"] if row["value"] == "nodule")
    for entry, cell in zip(group.entries, row["cells"], strict=True):
        each = entry.measured[0]["cider"].per_image["cider"][list(nodules.images)]
        assert cell["value"] == pytest.approx(each.mean()) and cell["low"] <= cell["value"] <= cell["high"]
    assert row["images"] == len(nodules.images) and row["few"]
    bleu = next(row for row in found["bleu_4"]["finding"] if row["value"] == "nodule")["cells"][0]["value"]
    alone = [f"image-{i:02d}" for i in nodules.images]
    predictions, references = ({key: of[key] for key in alone} for of in (captions.predictions, captions.references))
    assert bleu == pytest.approx(score(predictions, references, metrics=["bleu"]).metrics["bleu_4"])


def test_subgroups_by_hand():
    references = {
        "a": ("CT of a mass", "MRI, no fracture"), "b": ("chest x-ray without effusion " * 3,), "c": ("a mass and a cyst",),
    }  # fmt: skip
    found = subgroups(RunCaptions(dict.fromkeys(references, ""), references, {}, {}))
    assert [(part.field, part.value, part.images) for part in found] == [
        ("modality", "computed tomography", (0,)), ("modality", "magnetic resonance", (0,)), ("modality", "radiograph", (1,)),
        ("modality", "none named", (2,)), ("finding", "mass", (0, 2)), ("finding", "cyst", (2,)),
        ("finding", "none named", (1,)),
        ("length", "up to 4 words", (0,)), ("length", "5 words", (2,)), ("length", "6 words or more", (1,)),
    ]  # fmt: skip


def test_the_page_has_the_scores_of_each_image_and_run(results, plugins):
    (group,) = read_results(results[0], plugins=plugins)
    first = group.entries[0]
    said = {**first.captions[0].predictions, "image-03": "=cmd <script>, “quoted”"}
    changed = replace(first, captions=(replace(first.captions[0], predictions=said),))
    made = image_scores([changed, *group.entries[1:]], subgroups(first.captions[0]))
    content = base64.b64decode(made["uri"].split("base64,")[1]).decode()
    lines = list(csv.DictReader(content.splitlines()))
    assert len(lines) == made["rows"] == 120 and made["lacks"] == ""
    line = next(line for line in lines if line["id"] == "image-03" and line["strategy"] == first.name)
    assert line["prediction"] == "'=cmd <script>, “quoted”" and line["reference"] == _reference(3) and line["group"] == "p1"
    place = first.captions[0].ids.index("image-03")
    assert float(line["cider"]) == pytest.approx(first.measured[0]["cider"].per_image["cider"][place], abs=1e-4)
    assert {"modality", "finding", "seed", "rouge_l"} <= line.keys()


def test_truncated_unknown_and_cut_off_captions_stand_below_the_table_and_in_the_page(results, plugins):
    out, records = results
    text = TextStatistics(
        captions=600, longer=12, max_text_tokens=128, max_positions=512, percentiles={50: 26, 99: 140, 100: 603},
        unknown_share=0.25, unknown={"肺": 3},
    )  # fmt: skip
    for record, cut_off in zip(records, (0, 10, 20), strict=True):
        generated = GenerationStatistics(
            captions=40, cut_off=cut_off, max_new_tokens=96, references_longer=0.3, references_median=80
        )
        write_record(record.model_copy(update={"text": text, "generated": generated}), out / "records")
    records, groups = read_records(out), read_results(out, plugins=plugins)
    table = rows(records, groups, plugins=plugins)
    notes = [
        "12 of 600 training captions are longer than 128 tokens (train.max_text_tokens) and are truncated; the median is 26, "
        "the 99th percentile 140, the longest 603 tokens.",
        "unknown to the tokenizer: the model can neither learn nor write them; the most frequent: 肺 (3).",
        "30% of the references are longer than 96 tokens (generation.max_new_tokens), the median is 80.",
    ]
    page = html.unescape(html_report("results", records, groups, out, plugins=plugins))
    for shown in (" ".join(terminal(table).split()), markdown(table), page):
        assert [shown.count(note) for note in notes] == [1, 1, 1]
        for share in ("two 25%", "poor 50%"):
            assert share in shown.split("cut off at generation.max_new_tokens: ")[1].split(".")[0]
        assert "one 0%" not in shown
    assert {row.strategy: row.cut_off for row in table} == {"one": 0.0, "two": 0.25, "poor": 0.5}


def test_report_writes_the_page_and_the_table(results, capsys):
    out, _ = results
    assert main(["report", str(out), "--format", "html"]) == 0
    assert (out / "report.html").is_file()
    assert main(["report", str(out), "--format", "md", "--out", str(out / "t.md")]) == 0
    assert "| strategy | CIDEr\u2191 | 95% |" in (out / "t.md").read_text()
    capsys.readouterr()
    assert main(["report", str(out), "--format", "csv"]) == 0
    lines = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {line["strategy"] for line in lines} == {"one", "two", "poor"} and float(lines[0]["cider"]) == 0.9


def test_leaks_are_shown_in_every_form(tmp_path, plugins):
    _write(tmp_path, "plain", 36)
    record = _write(tmp_path, "one", 36)
    leaks = (Leak("near_duplicate", "test", "train", 3), Leak("group", "test", "train", 1))
    record = record.model_copy(update={"leaks": leaks, "data_report": LeftOut(leaking=5)})
    write_record(record, tmp_path / "records")
    assert read_records(tmp_path)[0].leaks == leaks
    note = "The splits overlap: 3 images of test with a near-duplicate in train; 1 image of test with an image of their group"
    groups = read_results(tmp_path, plugins=plugins)
    assert note in html_report("t", read_records(tmp_path), groups, tmp_path, plugins=plugins)
    table = rows(read_records(tmp_path), groups, plugins=plugins)
    assert note in markdown(table) and "(5 images were left out for it)" in markdown(table)
    assert [bool(row.leaks) for row in table if row.strategy == "one"] == [True]
