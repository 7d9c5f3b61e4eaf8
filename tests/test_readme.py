"""What the README says is done here, as it says it."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.M | re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


def test_shell_commands_work_in_order(place):
    (block,) = _blocks("bash")
    for line in block.splitlines():
        command, *words = shlex.split(line)
        assert command == "medgraft"
        done = subprocess.run([sys.executable, "-m", "medgraft.cli.main", *words], cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout.strip()


def test_python_works_after_them(place):
    (block,) = _blocks("python")
    done = subprocess.run([sys.executable, "-c", block], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    caption, cider = done.stdout.splitlines()
    assert caption.startswith("['") and float(cider) >= 0


def test_the_plugin_is_the_one_that_a_test_builds():
    source = (ROOT / "tests/plugin/test_wheel.py").read_text(encoding="utf-8")
    for block in _blocks("py"):
        assert block.strip() in source
    (toml,) = _blocks("toml")
    assert toml.strip() in source


def test_the_table_is_generated_from_records():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from readme_table import filled

    assert filled(TEXT) == TEXT


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "benchmarks/README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), target


def test_every_strategy_data_set_and_command_in_text_exists(plugins):
    for name in re.findall(r"--strategy ([\w-]+)", TEXT):
        plugins.get("strategy", name)
    for name in re.findall(r"^\| `(\w[\w-]*):", TEXT, re.M):
        plugins.get("dataset", name)
