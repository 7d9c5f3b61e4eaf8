"""What the README and the pages under docs/ say is done here, as they say it."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from medgraft.benchmark import Record, run
from medgraft.cli.main import _parser

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "plugins/README.md", ROOT / "benchmarks/README.md",
    ROOT / "adapters/README.md",
]  # fmt: skip
TEXT = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "docs"), str(ROOT / "tests/adapter")]

from hub_server import WRITES, hub_server  # noqa: E402


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT[page], re.M | re.S)


def _run_commands(block: str, place: Path, env: dict[str, str] | None = None) -> None:
    for line in block.splitlines():
        command, *words = shlex.split(line)
        assert command == "medgraft"
        done = subprocess.run([sys.executable, "-m", "medgraft", *words], cwd=place, capture_output=True, text=True, env=env)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout.strip()


def _run_python(block: str, place: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-c", block], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_shell_commands_work_in_order_and_python_after_them(tmp_path):
    first, second = _blocks("README.md", "bash")
    _run_commands(first, tmp_path)
    with hub_server() as hub:
        local = {"HF_ENDPOINT": hub.url, "HF_TOKEN": WRITES, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        _run_commands(second, tmp_path, {**os.environ, **local, "HF_HOME": str(tmp_path / "hub")})
    assert list(hub.repos) == ["USER/REPO"] and hub.repos["USER/REPO"].private
    (block,) = _blocks("README.md", "python")
    caption, cider = _run_python(block, tmp_path)
    assert caption.startswith("['")
    assert float(cider) >= 0
    (block,) = _blocks("docs/adapters.md", "python")
    one, several, _ = _run_python(block, tmp_path)
    assert one[1:-1] in several
    (block,) = _blocks("docs/reading-results.md", "python")
    _run_python(block, tmp_path)
    assert (tmp_path / "first-word.png").stat().st_size > 0
    (block,) = _blocks("docs/python.md", "python")
    said = _run_python(block, tmp_path)
    assert (tmp_path / "run/record.json").is_file() and len(said) > 12


@pytest.mark.slow
def test_tiny_models_can_be_trained_as_the_page_of_models_does(tmp_path):
    (block,) = _blocks("docs/models.md", "bash")
    _run_commands(block, tmp_path)
    assert (tmp_path / "my-adapter/adapter/medgraft.json").is_file()


def test_every_language_of_a_block_has_a_test():
    tested = {
        "README.md": {"", "bash", "python", "py"}, "docs/models.md": {"", "bash"}, "docs/design.md": {""},
        "docs/adapters.md": {"", "python"}, "docs/python.md": {"python"}, "docs/plugins.md": {"py", "toml"},
        "docs/reading-results.md": {"python"}, "docs/tasks.md": {"", "py"}, "plugins/README.md": {"bash", "py", "toml"},
    }  # fmt: skip
    for page, text in TEXT.items():
        assert set(re.findall(r"^```(\w*)\n(?:.*?)^```$", text, re.M | re.S)) <= tested.get(page, {""}), page


def test_the_model_is_the_one_that_a_test_installs_and_trains():
    (block,) = _blocks("README.md", "py")
    assert block in _blocks("plugins/README.md", "py")


def test_the_entry_point_is_the_one_that_a_test_installs():
    (block,) = _blocks("docs/plugins.md", "toml")
    assert block.strip() in TEXT["plugins/README.md"]


def _command_lines() -> list[str]:
    blocks = [block for page in TEXT for block in _blocks(page, "")]
    return [line for block in blocks for line in block.splitlines() if line.startswith("medgraft ") and "..." not in line]


@pytest.mark.parametrize("line", _command_lines())
def test_commands_that_are_too_large_to_run_are_understood(line):
    assert callable(_parser().parse_args(shlex.split(line, comments=True)[1:]).run)


def test_commands_in_sentences_exist():
    choices = next(a.choices for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    for page, text in TEXT.items():
        for command, rest in re.findall(r"`medgraft ([a-z][a-z-]*)([^`]*)`", text):
            assert command in choices, f"{page}: medgraft {command}"
            known = {option for action in choices[command]._actions for option in action.option_strings}
            assert set(re.findall(r"--[a-z-]+", rest)) <= known, f"{page}: medgraft {command}{rest}"


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/models.md"])
def test_tables_are_generated_from_records(page):
    from readme_table import filled

    assert "<!-- table:" in TEXT[page]
    assert filled(TEXT[page]) == TEXT[page]


def test_the_page_of_settings_is_generated_from_the_models():
    import make_settings

    assert make_settings.page() == TEXT["docs/settings.md"], "out of date: run python docs/make_settings.py"
    assert not re.findall(r"^\|.*\|  \|$", TEXT["docs/settings.md"], re.M), "a setting has no description"


def test_settings_in_sentences_exist():
    keys = set(re.findall(r"^\| `(\w+\.[\w.]+)` \|", TEXT["docs/settings.md"], re.M))
    sections = {key.partition(".")[0] for key in keys} - {"strategy"}  # whose other keys are PEFT's
    others = {"data.annotations"}  # an example's own
    for page, text in TEXT.items():
        for key in re.findall(rf"\b((?:{'|'.join(sections)})\.[a-z_]+)=", text):
            assert key in keys | others, f"{page}: {key}"


def test_environment_variables_are_on_the_page_of_settings():
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    in_code = set(re.findall(r"\bMEDGRAFT_[A-Z_]+", code))
    assert in_code == set(re.findall(r"^\| `(MEDGRAFT_\w+)`", TEXT["docs/settings.md"], re.M))


def test_the_functions_of_a_run_are_those_of_the_design_page():
    (block,) = _blocks("docs/design.md", "")
    named = re.findall(r"^    (_\w+)", block, re.M)
    assert len(named) > 5 and [name for name in named if not hasattr(run, name)] == []


def test_every_field_of_a_record_is_explained():
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", TEXT["docs/reading-results.md"].split("\n## Records\n")[1], re.M)
    explained = {name for row in rows for name in re.findall(r"\w+", row)}
    assert set(Record.model_fields) <= explained


def _anchors(text: str) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            if target.startswith("http"):
                continue
            path, _, anchor = target.partition("#")
            other = (page.parent / path).resolve() if path else page
            assert other.exists(), f"{page}: {target}"
            assert not anchor or anchor in _anchors(other.read_text(encoding="utf-8")), f"{page}: {target}"


def test_every_strategy_and_data_set_in_text_exists(plugins):
    for text in TEXT.values():
        for name in re.findall(r"--strategy ([a-z][\w-]*)", text):
            plugins.get("strategy", name)
    for name in re.findall(r"^\| `(\w[\w-]*):", TEXT["README.md"], re.M):
        plugins.get("dataset", name)


def test_the_readme_is_one_page():
    assert len(TEXT["README.md"].splitlines()) <= 172
