"""Text from elsewhere does not act where it is shown: terminal, Markdown, spreadsheet, page."""

import csv
import io
import json

import pytest

from medgraft.benchmark import Record, read_records, write_record
from medgraft.cli import list_names
from medgraft.cli.main import main
from medgraft.config import RunConfig
from medgraft.errors import DataError
from medgraft.escaping import markdown_text, one_line, printable, spreadsheet_cell
from medgraft.progress import log_to_stderr
from medgraft.report import as_csv, html_report, markdown, rows, terminal

EVIL = "\x1b]0;owned\x07\x9b31m a\r\nb \u202egpj.exe \ud800 | `rm` <img src=x onerror=alert(1)> **bold** [x](y)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("axial CT, 3 × 4 mm\n\tÄ 漢字 🩻", "axial CT, 3 × 4 mm\n\tÄ 漢字 🩻"),
        ("\x1b[2J", "\\u001b[2J"),
        ("\x00\x7f\x85\x9b\r", "\\u0000\\u007f\\u0085\\u009b\\u000d"),
        ("\u2028\u202e\u2066\ud800", "\\u2028\\u202e\\u2066\\ud800"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown
    dumped = json.dumps(text, ensure_ascii=False)
    assert json.loads(printable(dumped)) == text


def test_markdown_and_cells():
    assert markdown_text("a|b\n`c` <i>&\\") == "a\\|b \\`c\\` &lt;i&gt;&amp;\\\\"
    assert markdown_text("blip:org/some_model-1.2 (x)") == "blip:org/some_model-1.2 (x)"
    assert [spreadsheet_cell(v) for v in ("=1+1", "@x", "lora", -1.5, None, "")] == ["'=1+1", "'@x", "lora", -1.5, None, ""]


@pytest.fixture
def record(tmp_path):
    """The record of a run whose names are hostile, as it is read from a folder."""
    config = RunConfig.model_validate({"backbone": f"=cmd|{EVIL}", "strategy": f"=cmd{EVIL}", "data": {"name": EVIL}})
    made = Record(
        run_id="x", backbone=config.backbone, strategy=config.strategy, data=EVIL, seed=0, status="ok",
        trainable_parameters=1, metrics={"cider": 1.0}, config=config, versions={}, hardware={"cpu": "x", "threads": 2},
    )  # fmt: skip
    surrogate = made.model_dump(mode="json") | {"config": made.config.model_dump(mode="json")}
    text = json.dumps(surrogate).replace("\\ud800", "")
    write_record(Record.model_validate_json(text), tmp_path / "records")
    return read_records(tmp_path)[0], tmp_path


def test_tables(record, plugins):
    one, _ = record
    table = rows([one], plugins=plugins)
    lines = terminal(table).splitlines()
    assert len([line for line in lines if "owned" in line]) == 2 and not any("\x1b" in line for line in lines)
    page = markdown(table)
    (row,) = [line for line in page.splitlines() if line.startswith("| =cmd")]
    plain = rows([one.model_copy(update={"strategy": "lora", "backbone": "b", "data": "d"})], plugins=plugins)
    cells = len(next(line for line in markdown(plain).splitlines() if line.startswith("| lora")).split("|"))
    assert len(row.replace("\\|", "").split("|")) == cells  # no cell more than without the name's pipe
    assert "<img" not in page and "`rm`" not in page.replace("\\`", "") and "\x1b" not in page
    (cell,) = csv.DictReader(io.StringIO(as_csv(table)))
    assert cell["strategy"].startswith("'=cmd") and cell["backbone"].startswith("'=cmd") and cell["cider"] == "1.0"


@pytest.mark.parametrize("form", ["text", "md", "csv", "json"])
def test_no_command_prints_control_characters(form, record, capsys):
    assert main(["report", str(record[1]), "--format", form]) == 0
    printed = capsys.readouterr().out
    assert "owned" in printed and not [c for c in printed if (ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0]
    if form == "json":
        assert json.loads(printed)[0]["strategy"] == record[0].strategy


def test_the_page(record, plugins):
    failed = record[0].model_copy(update={"status": "failed", "error": EVIL, "traceback": EVIL})
    page = html_report(EVIL, [failed], (), record[1], plugins=plugins)
    assert "owned" in page and "<img src=x" not in page


def test_the_page_in_a_browser(record, plugins, browser):
    evil = EVIL.replace("\ud800", "") + "</script><script>said.push('ran yes')</script><b id=evil>"
    failed = record[0].model_copy(update={"status": "failed", "error": evil, "traceback": evil, "strategy": evil})
    look = "said.push('made ' + document.querySelectorAll('img[src=x], #evil').length);"
    look += "said.push('shown ' + document.body.textContent.includes('onerror=alert(1)'));"
    said = browser(html_report(evil, [failed], (), record[1], plugins=plugins), look)
    assert said == {"made": "0", "shown": "true"}


def test_error_and_log_lines(monkeypatch, capsys):
    def fails(arguments):
        print(EVIL)
        raise DataError(f"There is no {EVIL}.")

    monkeypatch.setattr(list_names, "run", fails)
    assert main(["list"]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"medgraft: {one_line(f'There is no {EVIL}.')}\n" and printed.out == printable(EVIL) + "\n"
    with log_to_stderr():
        import logging

        logged = EVIL.replace("\ud800", "")  # pytest's own record of it could not be sent to another process
        logging.getLogger("medgraft").warning("%s", logged)
    assert capsys.readouterr().err == printable(logged) + "\n"
