"""`medgraft score` as a user types it, on files as other tools write them."""

import csv
import json
from pathlib import Path

import pytest
from captions import perturbed, roco_captions

import medgraft
from medgraft.cli.main import main
from medgraft.errors import ConfigError, ScoringError
from medgraft.scoring import RunCaptions, write_captions

GOLDEN = json.loads((Path(__file__).parent.parent / "golden/coco_scores.json").read_text())

PREDICTED = {"1": "a nodule in the left lung", "2": "normal", "30": "Größe, 5 mm"}
TRUE = {"1": ["a nodule in the left lung", "nodule"], "2": ["no lesion"], "30": ["Größe, 5 mm"]}
PAIRS = [(int(key), text) for key, texts in TRUE.items() for text in texts]
COCO = {
    "info": {},
    "images": [{"id": int(key), "file_name": f"scan-{key}.png"} for key in TRUE],
    "annotations": [{"id": 100 + i, "image_id": key, "caption": text} for i, (key, text) in enumerate(PAIRS)],
}
RESULTS = [{"image_id": int(key), "caption": text} for key, text in PREDICTED.items()]


def _table(rows, header, delimiter=","):
    lines = [header, *rows]
    return "\n".join(delimiter.join('"' + str(cell).replace('"', '""') + '"' for cell in row) for row in lines) + "\n"


def _lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture
def write(tmp_path):
    def to(name, content):
        path = tmp_path / name
        raw = content if isinstance(content, bytes | str) else json.dumps(content, ensure_ascii=False)
        path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
        return path

    return to


def _score(capsys, predictions, references=None, *words):
    """The exit code, and the JSON or the line on stderr."""
    words_of_references = ["--references", references] if references else []
    code = main(["score", "--predictions", str(predictions), *map(str, words_of_references), *map(str, words), "--json"])
    printed = capsys.readouterr()
    if code:
        assert printed.out == "" and printed.err.startswith("medgraft: ") and printed.err.count("\n") == 1
    return code, json.loads(printed.out) if code == 0 else printed.err


def _refused(capsys, predictions, references=None, *words):
    code, message = _score(capsys, predictions, references, *words)
    assert code == 2, message
    return message


PREDICTIONS = {
    "p.json": PREDICTED,
    "coco.json": RESULTS,
    "coco-with-text-ids.json": [{**row, "image_id": str(row["image_id"])} for row in RESULTS],
    "pycocoevalcap.json": {key: [{"image_id": key, "caption": text}] for key, text in PREDICTED.items()},
    "lists.json": {key: [text] for key, text in PREDICTED.items()},
    "blip.json": [{"image": f"/data/images/scan-{key}.png", "caption": text} for key, text in PREDICTED.items()],
    "lavis.json": [{"caption": text, "image_id": float(key)} for key, text in PREDICTED.items()],
    "lines.jsonl": _lines(RESULTS),
    "lines.json": _lines(RESULTS),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(RESULTS).encode(),
    "utf-16.json": json.dumps(RESULTS, ensure_ascii=False).encode("utf-16"),
    "excel.csv": _table(PREDICTED.items(), ("ID", "Caption"), ";").encode("utf-8-sig"),
    "unicode text.txt": _table(PREDICTED.items(), ("image id", "caption"), "\t").encode("utf-16"),
    "floats.csv": _table([(f"{key}.0", text) for key, text in PREDICTED.items()], ("image_id", "prediction")),
    "windows.csv": _table([(f"C:\\scans\\scan-{key}.png", text) for key, text in PREDICTED.items()], ("image", "text")),
    "cp1252.csv": _table(PREDICTED.items(), ("id", "caption")).encode("cp1252"),
    "crlf.tsv": _table(PREDICTED.items(), ("id", "caption"), "\t").replace("\n", "\r\n"),
}
REFERENCES = {
    "r.json": TRUE,
    "annotations.json": COCO,
    "ids-of-two-kinds.json": {**COCO, "images": [{**image, "id": str(image["id"])} for image in COCO["images"]]},
    "lavis.json": [{"image": f"scan-{key}.png", "caption": texts, "image_id": key} for key, texts in TRUE.items()],
    "lines.jsonl": _lines([{"id": key, "references": texts, "image": f"scan-{key}.png"} for key, texts in TRUE.items()]),
    "rows.csv": _table([(key, text, f"x/scan-{key}.png") for key, text in PAIRS], ("id", "caption", "image")),
    "lists.csv": _table([(f"scan-{key}.png", key, texts) for key, texts in TRUE.items()], ("image", "id", "caption")),
    "both.csv": _table(
        [(key, "z", text, f"scan-{key}.png") for key, text in PAIRS], ("id", "prediction", "reference", "image")
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def wanted():
    return medgraft.score(PREDICTED, TRUE).metrics


@pytest.mark.parametrize("name", PREDICTIONS)
def test_predictions_of_any_form(name, write, capsys, wanted):
    code, found = _score(capsys, write(name, PREDICTIONS[name]), write("coco-references.json", COCO))
    assert code == 0, found
    assert found["images"] == 3 and found["metrics"] == pytest.approx(wanted)
    assert ("cp1252" in " ".join(found["notes"])) == (name == "cp1252.csv")
    assert ("file name" in " ".join(found["notes"])) == (name in ("blip.json", "windows.csv"))


@pytest.mark.parametrize(
    ("name", "predictions"),
    [*((name, "coco.json") for name in REFERENCES), *((name, "blip.json") for name in list(REFERENCES)[1:])],
)
def test_references_of_any_form(name, predictions, write, capsys, wanted):
    code, found = _score(capsys, write(f"p-{predictions}", PREDICTIONS[predictions]), write(name, REFERENCES[name]))
    assert code == 0, found
    assert found["images"] == 3 and found["metrics"] == pytest.approx(wanted)


def test_coco_files_score_as_in_pycocoevalcap(shared_data, write, capsys):
    _, captions = roco_captions(shared_data)
    changed, starts = perturbed(captions), range(0, len(captions) - 3, 3)
    rows = [{"image_id": 10**6 + i, "caption": captions[i + k]} for i in starts for k in range(3)]
    references = write("captions_val.json", {"images": [{"id": 10**6 + i} for i in starts], "annotations": rows})
    results = write("results.json", [{"image_id": 10**6 + i, "caption": changed[i]} for i in starts])
    _, found = _score(capsys, results, references)
    assert found["metrics"] == pytest.approx(GOLDEN["three_references"], abs=1e-6)
    assert found["intervals"]["cider"][0] < found["metrics"]["cider"] < found["intervals"]["cider"][1]


LESS = {key: text for key, text in PREDICTED.items() if key != "2"}
MORE = {**PREDICTED, "x": "surplus"}


@pytest.mark.parametrize(
    ("predictions", "references", "message", "scored"),
    [
        (LESS, TRUE, "1 of 3 ids, such as '2', has no prediction", 2),
        (MORE, TRUE, "1 of 4 ids, such as 'x', has no reference", 3),
        ({**PREDICTED, "2": None}, TRUE, "1 of 3 ids, such as '2', has null as prediction", 2),
        ([{**row, "caption": float("nan")} for row in RESULTS[:2]] + RESULTS[2:], TRUE, "2 of 3 ids, such as", 1),
        ("id,caption\n1,nan\n2,normal\n30,x\n", TRUE, "1 of 3 ids, such as '1', has null as prediction", 2),
        ({**PREDICTED, "2": []}, TRUE, "1 of 3 ids, such as '2', has null as prediction", 2),
        (PREDICTED, {**TRUE, "2": [None, " "]}, "1 of 3 ids, such as '2', has no text as reference", 2),
        (PREDICTED, {**TRUE, "2": []}, "1 of 3 ids, such as '2', has no text as reference", 2),
    ],
)  # fmt: skip
def test_ids_without_one_side_are_refused_or_left_out_and_listed(predictions, references, message, scored, write, capsys):
    p, r = write("p.csv" if isinstance(predictions, str) else "p.json", predictions), write("r.json", references)
    refused = _refused(capsys, p, r)
    assert message in refused and f"score only the {scored} ids that have both: --allow-missing" in refused
    code, found = _score(capsys, p, r, "--allow-missing")
    assert code == 0 and found["images"] == scored
    assert any(note.startswith("Left out: ") and message in note for note in found["notes"])


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([*RESULTS, RESULTS[0]], TRUE, "1 of 3 ids, such as '1', has several predictions. Keep one for each id"),
        ('{"1": "a", "2": "b", "1": "c"}', TRUE, "has the key '1' twice"),
        ({**PREDICTED, "2": ["a", "b"]}, TRUE, "1 of 3 ids, such as '2', has several predictions"),
        ({"7": "a", "8": "b"}, TRUE, "have no id in common: their ids are such as '7' and '1'"),
        ({**PREDICTED, "2": 5}, TRUE, "id '2': the caption is the value 5; it must be a text or a list of texts"),
        ({**PREDICTED, "2": True}, TRUE, "the caption is the value true"),
        ({**PREDICTED, "2": {"text": "x"}}, TRUE, "the caption is an object"),
        ([{"image_id": 1, "caption": "x"}, {"caption": "y"}], TRUE, "1 of 2 rows have no image_id, such as entry 2"),
        ([{"image": ["a.png", "b.png"], "caption": "x"}], TRUE, "1 of 1 rows have no image, such as entry 1"),
        (["a", "b"], TRUE, "entry 1 is 'a', not an object with an id and a caption"),
        ("[]", TRUE, "holds no captions"),
        ("{}", TRUE, "holds no captions"),
        ("", TRUE, "is not JSON"),
        ('{"1": "a", "2": "\\ud83d"}', TRUE, "half of a letter"),
        ("3", TRUE, "is the value 3, not captions by id"),
        ('{"1": "a"', TRUE, "line 1 is not JSON: Expecting ',' delimiter"),
        (b"PK\x03\x04\x00\x00\x99\x8f", TRUE, "is no text, since it is a workbook"),
        (PREDICTED, {"annotations": [3]}, "entry 1 is the value 3, not an object"),
    ],
)
def test_what_cannot_be_read_is_refused(predictions, references, message, write, capsys):
    assert message in _refused(capsys, write("p.json", predictions), write("r.json", references), "--allow-missing")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id,caption\n1,Chest, PA, normal\n", "row 2: 4 cells where the header has 2, the last 'normal'"),
        ("id,caption\n1\n", "row 2: 1 cells where the header has 2"),
        ('id,caption\n1,"a 5 cm mass\n2,b\n', "row 2: a quote opens here and is never closed"),
        ("id\tcaption\n1\ta\tb\n", "row 2: 3 cells where the header has 2"),
        ("id,caption,caption\n1,a,b\n", "has several columns 'caption'"),
        ("number,words\n1,a\n", "has no column of ids and captions: it has number, words. Name the columns image_id and pred"),
        ("id,words\n1,a\n", "has no column of captions"),
        ("id,caption\n,a\n2,b\n", "1 of 2 rows have no id, such as row 2"),
    ],
)
def test_a_broken_table_is_refused(table, message, write, capsys):
    assert message in _refused(capsys, write("p.csv", table), write("r.json", TRUE))


@pytest.mark.parametrize("line", ['{"id": 1, "caption": "a"', "[1]", '{"id": 1, "id": 2}'])
def test_a_broken_line_is_refused(line, write, capsys):
    assert "p.jsonl, line 2 is not" in _refused(capsys, write("p.jsonl", _lines(RESULTS[:1]) + line), write("r.json", TRUE))


def test_empty_predictions_are_captions_and_counted(write, capsys):
    _, found = _score(capsys, write("p.csv", "id,caption\n1,\n2,no lesion\n30,\n"), write("r.json", TRUE))
    assert found["images"] == 3 and found["metrics"]["rouge_l"] == pytest.approx(1 / 3)
    assert any("2 of 3 ids, such as '1', have an empty prediction" in note for note in found["notes"])
    _, found = _score(capsys, write("p.json", PREDICTED), write("r.json", {**TRUE, "1": ["nodule", "", None]}))
    assert any("2 references are empty and were left out" in note for note in found["notes"])


def test_one_image_has_no_cider_but_the_reason(write, capsys):
    p, r = write("p.json", RESULTS[:1]), write("r.json", {"1": TRUE["1"]})
    _, found = _score(capsys, p, r)
    assert "there is only one image" in found["unavailable"]["cider"]
    assert "cider" not in found["metrics"] and found["intervals"] == {}
    assert main(["score", "--predictions", str(p), "--references", str(r)]) == 0
    text = capsys.readouterr().out
    assert "not computed: cider (all its weights are 0, as there is only one image" in text and "In brackets" not in text
    assert "cider: all its weights are 0" in _refused(capsys, p, r, "--metrics", "cider")


def test_metrics_are_chosen(write, capsys):
    p, r = write("p.json", PREDICTED), write("r.json", TRUE)
    assert set(_score(capsys, p, r, "--metrics", "rouge_1, cider,cider")[1]["metrics"]) == {"rouge_1", "cider"}
    _, found = _score(capsys, p, r, "--metrics", "rouge_l,bertscore,facts")
    assert set(found["metrics"]) == {"rouge_l"} and "write bertscore:HUB_ID" in found["unavailable"]["bertscore"]
    assert set(found["signatures"]) == {"rouge_l"}
    assert "Unknown metric 'sider'. Did you mean 'cider'" in _refused(capsys, p, r, "--metrics", "bleu,sider")
    assert "'rouge_1' takes no model or file. Write rouge_1" in _refused(capsys, p, r, "--metrics", "rouge_1:4")
    assert "names no metric" in _refused(capsys, p, r, "--metrics", ",")


def test_text_is_split_at_spaces_if_asked_for(write, capsys):
    p, r = write("p.json", {"1": "Clear lungs.", "2": "normal"}), write("r.json", {"1": "clear lungs .", "2": "normal"})
    _, found = _score(capsys, p, r, "--metrics", "rouge_l,clinical", "--tokenizer", "whitespace")
    assert found["metrics"]["rouge_l"] == 0.5
    assert found["signatures"]["rouge_l:whitespace"] == "rouge_l|beta:1.2|tok:whitespace"
    assert _score(capsys, p, r, "--metrics", "rouge_l")[1]["metrics"]["rouge_l"] == 1.0


def test_scores_of_each_image_are_written(write, capsys, tmp_path):
    p, r = write("p.json", PREDICTED), write("r.json", TRUE)
    _, found = _score(capsys, p, r, "--metrics", "rouge_l,clinical", "--out", tmp_path / "new/each.csv")
    with (tmp_path / "new/each.csv").open(encoding="utf-8") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert {key: row["prediction"] for key, row in rows.items()} == PREDICTED
    assert float(rows["1"]["rouge_l"]) == 1.0 and rows["2"]["modality_accuracy"] == ""
    assert sum(float(row["rouge_l"]) for row in rows.values()) / 3 == pytest.approx(found["metrics"]["rouge_l"])
    assert _score(capsys, p, r, "--metrics", "rouge_l,clinical", "--out", tmp_path / "each.jsonl")[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "each.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["rouge_l"] == 1.0 and lines[1]["modality_accuracy"] is None
    assert "ends in .csv or .jsonl" in _refused(capsys, p, r, "--out", tmp_path / "each.txt")
    assert _score(capsys, tmp_path / "each.jsonl", r)[1]["images"] == 3  # what was written is read


def test_the_captions_of_a_run_have_their_references_and_groups(tmp_path, write, capsys, wanted):
    run = RunCaptions(PREDICTED, {key: tuple(texts) for key, texts in TRUE.items()}, {"1": "p", "2": "p", "30": "q"}, {})
    write_captions(run, tmp_path / "results/runs/one")
    _, found = _score(capsys, tmp_path / "results/runs/one")
    assert found["metrics"] == pytest.approx(wanted) and found["notes"] == []
    _, alone = _score(capsys, write("p.json", PREDICTED), write("r.json", TRUE))
    _, other = _score(capsys, write("p.json", PREDICTED), tmp_path / "results/runs/one/predictions.json")
    assert other["intervals"] == found["intervals"] != alone["intervals"]  # of two groups, not of three images
    assert "holds the captions of 1 runs. Name the folder of one" in _refused(capsys, tmp_path / "results")
    (tmp_path / "empty").mkdir()
    assert "is a folder without predictions.json" in _refused(capsys, tmp_path / "empty")
    assert "holds predictions alone. Name the references" in _refused(capsys, write("p.json", PREDICTED))


def test_the_function_takes_dictionaries_and_files(write):
    found = medgraft.score({1: "a mass", 2: "normal"}, write("r.json", {"1": "a mass", "2": ["a cyst"]}), metrics=["rouge_l"])
    assert found.metrics == {"rouge_l": 0.5} and found.per_image["rouge_l"].tolist() == [1.0, 0.0]
    with pytest.raises(ScoringError, match="predictions: 1 of 2 ids, such as 'b', has no reference"):
        medgraft.score({"a": "x", "b": "y"}, {"a": ["x"]})
    assert medgraft.score({"a": "x", "b": "y"}, {"a": ["x"]}, allow_missing=True).captions.ids == ("a",)
    with pytest.raises(ConfigError, match="takes no model or file"):
        medgraft.score({"a": "x"}, {"a": "x"}, metrics=["rouge_1:x"])
