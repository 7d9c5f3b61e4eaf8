"""`medgraft export` as a user types it: files as ImageCLEFmedical and R2Gen have them."""

import csv
import json

import pytest

from medgraft.cli.main import main
from medgraft.scoring import RunCaptions, write_captions

SAID = {"b": 'Clear, "normal" lungs.', "a": "", "c": "Größe, 5 mm"}
SEEN = {"a": ("No effusion.",), "b": ("Clear lungs.",), "c": ("Normal",)}


def _export(capsys, *words):
    code = main(["export", *map(str, words)])
    printed = capsys.readouterr()
    assert printed.err.count("\n") <= 1
    return code, printed.out or printed.err


def _rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def folder(tmp_path):
    write_captions(RunCaptions(SAID, SEEN, {}, {}), tmp_path / "run")
    (tmp_path / "p.json").write_text(json.dumps(SAID))
    (tmp_path / "r.json").write_text(json.dumps({**SEEN, "a": ["No effusion.", "Clear."]}))
    (tmp_path / "twice.csv").write_text("id,caption\n1,x\n1,y\n")
    return tmp_path


def test_a_runs_captions_become_a_submission_and_r2gens_files(folder, capsys):
    assert _export(capsys, "--predictions", folder / "run", "--layout", "imageclef", "--out", folder / "new/run.csv")[0] == 0
    assert _rows(folder / "new/run.csv") == [["ID", "Caption"], *map(list, SAID.items())]
    code, printed = _export(capsys, "--predictions", folder / "run", "--layout", "r2gen", "--out", folder / "r2gen", "--json")
    assert code == 0 and len(json.loads(printed)["written"]) == 3
    columns = {name: [row[0] for row in _rows(folder / f"r2gen/{name}.csv")] for name in ("ids", "res", "gts")}
    assert columns == {
        "ids": ["a", "b", "c"], "res": [SAID[key] for key in "abc"], "gts": [SEEN[key][0] for key in "abc"],
    }  # fmt: skip
    assert (folder / "r2gen/res.csv").read_text(encoding="utf-8").splitlines()[:2] == ['""', '"Clear, ""normal"" lungs."']


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("p.json", "r2gen", "o"), "holds predictions alone. Name the references: --references FILE"),
        (("p.json", "r2gen", "o", "r.json"), "1 ids, such as 'a', have several references; R2Gen's layout takes one"),
        (("run", "r2gen", "p.json"), "is a file. Layout r2gen writes several files: name a folder"),
        (("run", "imageclef", "o"), "should be a file that ends in .csv"),
        (("run", "imageclef", "o.csv", "r.json"), "Layout imageclef has no references. Leave them out."),
        (("twice.csv", "imageclef", "o.csv"), "1 of 1 ids, such as '1', has several predictions or none"),
    ],
)
def test_what_cannot_be_exported_is_one_line(folder, capsys, words, message):
    predictions, layout, out, *references = words
    more = ["--references", folder / references[0]] if references else []
    code, printed = _export(capsys, "--predictions", folder / predictions, "--layout", layout, "--out", folder / out, *more)
    assert code == 2 and message in printed
