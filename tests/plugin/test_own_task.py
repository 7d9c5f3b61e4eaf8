"""The task of docs/tasks.md, by its plugin as it stands there: trained, scored, compared with baselines, and loaded again."""

import csv
import json
import re
import sys
from pathlib import Path

import pytest

from medgraft.cli.main import main
from medgraft.plugin import PluginManager
from medgraft.testing import check_dataset, check_metric

PAGE = (Path(__file__).parents[2] / "docs/tasks.md").read_text(encoding="utf-8")


@pytest.fixture
def grades(tmp_path, monkeypatch, phantoms_folder):
    """The plugin installed, and a CSV file of phantoms with grades."""
    (code,) = re.findall(r"^```py\n(.*?)^```", PAGE, re.M | re.S)
    assert len(code.splitlines()) < 60
    site = tmp_path / "site"
    info = site / "own_task-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "own_task.py").write_text(code, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-task\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[medgraft]\nown-task = own_task\n")
    monkeypatch.syspath_prepend(str(site))
    table = tmp_path / "knees.csv"
    images = sorted(phantoms_folder.glob("*/radiology/images/*.jpg"))[:20]
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "grade", "split"])
        rows.writerows((image, number % 5, "test" if number >= 14 else "train") for number, image in enumerate(images))
    yield table
    sys.modules.pop("own_task", None)


def test_a_task_by_a_plugin_goes_the_whole_way(grades, tiny_folder, tmp_path, capsys):
    manager = PluginManager()
    check_dataset(manager.get("dataset", "grades"), grades)
    check_metric(manager.get("metric", "grade"))
    backbone, out = ":".join(map(str, tiny_folder("blip"))), tmp_path / "run"
    command = ["train", "--backbone", backbone, "--strategy", "lora", "--data", f"grades:{grades}", "--out", str(out)]
    assert (
        main([*command, "--max-steps", "2", "--set", "forgetting.images=0", "--set", "generation.max_new_tokens=2", "--json"])
        == 0
    )
    record = json.loads(capsys.readouterr().out)
    assert set(record["metrics"]) == {"grade_error", "grade_exact"} and record["config"]["metrics"] == ["grade"]
    assert main(["report", str(out)]) == 0
    table = capsys.readouterr().out
    assert "grade_error↓" in table and all(name in table for name in ("most-frequent", "random", "question-only"))
    assert main(["evaluate", "--adapter", str(out), "--data", f"grades:{grades}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == record["metrics"]
