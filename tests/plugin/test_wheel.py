"""A plugin as strangers ship it: a wheel, built and installed into an environment of its own."""

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "medgraft-stranger"
version = "3.1"
[project.entry-points.medgraft]
stranger = "medgraft_stranger"
[tool.hatch.build.targets.wheel]
packages = ["medgraft_stranger"]
"""
MODULE = """
import medgraft


@medgraft.hookimpl
def medgraft_backbones():
    yield medgraft.BackboneSpec("blip-stranger", "BLIP by a stranger", "medgraft.plugin_api:BlipBackbone")


@medgraft.hookimpl
def medgraft_strategies():
    yield medgraft.StrategySpec("cross-only", "cross-attention only", "medgraft_stranger.strategy:CROSS_ONLY")
"""
STRATEGY = """
from medgraft.plugin_api import PartPlan, Strategy

CROSS_ONLY = Strategy(text=PartPlan(mode="full", roles=("cross",)))
"""
BROKEN = PYPROJECT.replace("stranger", "broken")


def _wheel(folder: Path, pyproject: str, name: str, modules: dict[str, str]) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / "pyproject.toml").write_text(pyproject)
    for file, code in modules.items():
        (folder / name / file).write_text(code)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return next((folder / "dist").glob("*.whl"))


@pytest.mark.slow
def test_wheels_in_a_fresh_environment(tmp_path):
    good = _wheel(tmp_path / "good", PYPROJECT, "medgraft_stranger", {"__init__.py": MODULE, "strategy.py": STRATEGY})
    bad = _wheel(tmp_path / "bad", BROKEN, "medgraft_broken", {"__init__.py": "import a_package_that_is_not_there"})
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    # what medgraft itself needs is taken from the environment of this test instead of being installed again
    site = next((tmp_path / "env/lib").glob("python*/site-packages"))
    # addsitedir, so that editable installs over there count as well
    (site / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", good, bad], check=True, capture_output=True
    )

    def medgraft(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([python, "-m", "medgraft", *words], capture_output=True, text=True)

    listed = json.loads(medgraft("list", "--json").stdout)
    assert {"name": "blip-stranger", "summary": "BLIP by a stranger", "distribution": "medgraft-stranger"} in listed[
        "backbones"
    ]
    assert "cross-only" in [entry["name"] for entry in listed["strategies"]]
    shown = medgraft("plugins")
    assert shown.returncode == 0
    assert "stranger (medgraft-stranger 3.1, " in shown.stdout
    assert "FAILED broken (medgraft-broken): ModuleNotFoundError: No module named 'a_package_that_is_not_there'" in shown.stdout
