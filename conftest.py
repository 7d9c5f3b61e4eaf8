"""What many tests share: small real models, small data, nothing from a network."""

from __future__ import annotations

import html
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MEDGRAFT_DEVICE", "cpu")  # tests/gpu are run with "cuda"
if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each worker, and for the processes that it starts
    os.environ["OMP_NUM_THREADS"] = "1"
else:  # workers share the cache of who started them
    os.environ["MEDGRAFT_CACHE"] = tempfile.mkdtemp(prefix="medgraft-cache-")
    os.environ["MEDGRAFT_FEATURES"] = str(Path(os.environ["MEDGRAFT_CACHE"]) / "features")

import pytest

from medgraft.data.phantoms import write_phantoms
from medgraft.plugin import PluginManager
from medgraft.progress import progress_bars
from medgraft.quiet import quiet_libraries

ROOT = Path(__file__).parent
SHARED = ROOT.parent / "shared" / "data"


def _benchmark_module(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def pytest_configure(config):
    import transformers  # noqa: F401 - so that it is silenced too

    quiet_libraries()


@pytest.fixture(scope="session")
def benchmark_module():
    """A script of benchmarks/ as a module, by its name."""
    return _benchmark_module


@pytest.fixture(scope="session")
def logged():
    """`with logged() as lines:` has what medgraft logs inside the block, without progress bars and names of plugins."""
    logger = logging.getLogger("medgraft")

    @contextmanager
    def collect():
        lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())
        handler.addFilter(lambda record: record.name != "medgraft.plugin.manager")  # says what is used for the first time
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        with progress_bars(False):
            yield lines
        logger.setLevel(level)
        logger.removeHandler(handler)

    return collect


@pytest.fixture
def plugins() -> PluginManager:
    return PluginManager()


@pytest.fixture(scope="session")
def blip_folder(tmp_path_factory) -> Path:
    """A BLIP of real architecture and vocabulary, 2 layers, width 64, 64 px, random weights."""
    write_blip = _benchmark_module("synthetic_models").write_blip
    return write_blip(tmp_path_factory.mktemp("blip") / "weights", layers=2, width=64, image_size=64)


@pytest.fixture(scope="session")
def other_blip_folder(tmp_path_factory) -> Path:
    """The same shapes, other weights."""
    write_blip = _benchmark_module("synthetic_models").write_blip
    return write_blip(tmp_path_factory.mktemp("other") / "weights", layers=2, width=64, image_size=64, seed=1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """`tiny_folder(NAME)` gives (backbone, folder) of a small random model of that name, written once."""
    made: dict[str, tuple[str, Path]] = {}

    def get(name: str) -> tuple[str, Path]:
        if name not in made:
            spec = next(spec for spec, _ in PluginManager().specs("backbone") if name in spec.tiny)
            made[name] = spec.name, spec.write_tiny(name, tmp_path_factory.mktemp(name) / "weights")
        return made[name]

    return get


@pytest.fixture(scope="session")
def phantoms_folder(tmp_path_factory) -> Path:
    """60 phantoms in ROCO v1 layout."""
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(folder, count=60, seed=5)
    return folder


@pytest.fixture
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the shared real data are not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def full_size():
    _benchmark_module("synthetic_models")
    return _benchmark_module("full_size")


_SCRIPT = """<script>
const said = [];
addEventListener("error", (event) => said.push("error: " + event.message));
addEventListener("load", () => setTimeout(() => { %s; document.title = said.join(" | "); }, 1500));
</script>"""


@pytest.fixture
def browser(tmp_path):
    """`browser(page, script)` opens a page in a headless Chromium; what the script put into `said`, by its first words."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")

    def open_page(page: str, script: str) -> dict[str, str]:
        path = tmp_path / "page.html"
        path.write_text(page.replace("<head>", "<head>" + _SCRIPT % script, 1), encoding="utf-8")
        command = [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=8000",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert "CONSOLE" not in done.stderr.replace("CONSOLE:0", ""), done.stderr
        title = html.unescape(re.search(r"<title>(.*?)</title>", done.stdout)[1])
        said = dict(part.partition(" ")[::2] for part in title.split(" | "))
        assert "error:" not in said, said
        return said

    return open_page
