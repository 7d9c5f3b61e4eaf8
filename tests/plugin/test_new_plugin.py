"""Plugins written by following plugins/README.md word for word, and by `medgraft new-plugin`, in an empty environment."""

import json
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from medgraft.errors import PluginError
from medgraft.plugin import KINDS
from medgraft.scaffold import contents, new_plugin

PAGE = (Path(__file__).parents[2] / "plugins/README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """`run(words, folder)` in an environment of its own, which sees what medgraft needs but no plugin is installed in."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")

    def run(line: str, where: Path) -> subprocess.CompletedProcess[str]:
        program, *words = shlex.split(line)
        module = {"medgraft": "medgraft", "pip": "pip", "pytest": "pytest"}[program]
        if program == "pip":  # offline, with what is there
            words += ["-q", "--no-deps", "--no-index", "--no-build-isolation"]
        return subprocess.run([folder / "bin/python", "-m", module, *words], cwd=where, capture_output=True, text=True)

    return run


def _files() -> dict[str, str]:
    """The files of the page: a block of code after a line that ends with its path."""
    return dict(re.findall(r"`(medgraft-llava/\S+)`:\n\n```\w+\n(.*?)^```", PAGE, re.M | re.S))


@pytest.mark.slow
def test_the_page_works_word_for_word(environment, tmp_path):
    files = _files()
    assert len(files) == 4
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    (commands,) = re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)
    for line in commands.splitlines():
        done = environment(line, tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        if "check-plugin" in line:
            assert re.search(r"^\d\d+ checks, 0 failed$", done.stdout, re.M)
    assert json.loads((tmp_path / "my-adapter/adapter/medgraft.json").read_text())["backbone"] == "llava:./llava"


def test_the_page_shows_what_new_plugin_writes():
    written = {f"medgraft-llava/{path}": text for path, text in contents("medgraft-llava", "backbone").items()}
    assert _files().items() <= written.items()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "backbone"])  # which is the page's
def test_new_plugins_pass_their_own_tests(kind, environment, tmp_path):
    name = f"medgraft-own-{kind}"
    done = environment(f"medgraft new-plugin {name} --kind {kind}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"pip install -e {name}" in done.stdout
    environment(f"pip install -e {name}", tmp_path)
    listed = json.loads(environment("medgraft plugins --json", tmp_path).stdout)["plugins"]
    own = next(plugin for plugin in listed if plugin["distribution"] == name)
    assert own["provides"][kind] == [f"own-{kind}"]
    tests = environment("pytest -q tests", tmp_path / name)
    assert tests.returncode == 0, tests.stdout


@pytest.mark.parametrize("name", ["Medgraft-X", "a b", "../up", ""])
def test_names_that_are_no_packages(name, tmp_path):
    with pytest.raises(PluginError, match="is not a package name"):
        new_plugin(name, "metric", tmp_path)


def test_nothing_is_overwritten(tmp_path):
    folder = new_plugin("medgraft-x", "metric", tmp_path)
    (folder / "pyproject.toml").write_text("mine")
    with pytest.raises(PluginError, match="exists already"):
        new_plugin("medgraft-x", "metric", tmp_path)
    assert (folder / "pyproject.toml").read_text() == "mine"


@pytest.mark.slow
def test_checking_a_plugin_that_is_not_there():
    done = subprocess.run([sys.executable, "-m", "medgraft", "check-plugin", "blip-nanoo"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("medgraft: No plugin 'blip-nanoo' is installed. Did you mean 'blip-nano'")
