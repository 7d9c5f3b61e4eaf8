"""Importing is cheap, and imports run one way."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import medgraft

SOURCE = Path(medgraft.__file__).parent
# each may import itself and what stands before it
CHAIN = [
    "errors", "lazy", "redaction", "escaping", "strict_model", "augmentation_config", "forgetting_config", "generation_config",
    "image_config", "model_config", "sequences", "types", "each_image", "disk", "progress", "quiet", "train_config", "machine",
    "hardware", "processes",
    "environment", "seeds", "clock", "energy", "file_index",
    "executor_config", "config", "executors",
    "plugin", "builtin", "backbones", "strategies", "models", "acceleration", "data", "features", "device_map", "prepare",
    "training", "adapter", "captioning", "text_statistics", "token_counts", "metrics", "stats", "scoring", "saliency",
    "inference", "benchmark", "conversion", "inspection", "fork_server", "testing", "plugin_api", "report", "loading", "api",
    "adapter_set", "demo", "scaffold", "cli",
]  # fmt: skip


def _loads(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_and_help_load_no_torch():
    heavy = "print([m for m in ('torch', 'transformers', 'peft', 'numpy', 'pydantic', 'evaluate') if m in sys.modules])"
    assert _loads(f"import sys, medgraft; {heavy}").strip() == "[]"
    code = f"import sys, medgraft.cli.main as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\n{heavy}"
    assert _loads(code).splitlines()[-1] == "[]"


READING = [  # commands that need no model
    ["list"], ["plugins"], ["report", "benchmarks/results/slake"], ["compare", "RUN", "RUN"], ["score", "--predictions", "RUN"],
    ["adapter", "inspect", "adapters/blip-nano-lora"], ["adapter", "verify", "adapters/blip-nano-lora"],
]  # fmt: skip


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_what_needs_no_model_loads_no_torch(words):
    root = SOURCE.parents[1]
    run = str(next((root / "benchmarks/results/quickstart/runs").iterdir()))
    code = f"""
import os, sys, medgraft.cli.main as m
os.chdir({str(root)!r})
m.main({[run if word == "RUN" else word for word in words]})
print([name for name in ("torch", "transformers", "peft", "evaluate", "datasets", "pandas") if name in sys.modules])
"""
    assert _loads(code).splitlines()[-1] == "[]"


def test_lazy_names_are_no_modules():
    """A module of the package, once it is imported, would hide a name that it shares with it."""
    for path in SOURCE.rglob("__init__.py"):
        blocks = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
        names = {alias.name for block in blocks for node in block.body for alias in getattr(node, "names", ())}
        assert not names & {each.stem for each in path.parent.iterdir()}, path


def test_help_is_quick():
    def cpu_seconds() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-m", "medgraft", "--help"], capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(cpu_seconds() for _ in range(5)) < 0.4


def test_public_names_exist_and_are_sorted():
    assert medgraft.__all__ == sorted(medgraft.__all__)
    for name in medgraft.__all__:
        assert getattr(medgraft, name)


@pytest.mark.slow
def test_public_names_are_not_hidden_by_modules():
    code = """
import importlib, pkgutil, medgraft
for module in pkgutil.walk_packages(medgraft.__path__, "medgraft."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:  # the demo's page needs what an extra installs
        assert error.name == "gradio"
print([name for name in medgraft.__all__ if type(getattr(medgraft, name)).__name__ == "module"])
"""
    assert _loads(code).splitlines()[-1] == "[]"


@pytest.mark.slow
def test_everything_is_imported_where_there_is_no_posix():
    """As on Windows, where the command line's help is shown too. Other packages have versions of their own for it."""
    code = """
import importlib, pkgutil, sys

def import_all():
    import medgraft
    for module in pkgutil.walk_packages(medgraft.__path__, "medgraft."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # the demo's page needs what an extra installs
            assert error.name == "gradio"

import_all()
for name in [name for name in sys.modules if name.partition(".")[0] == "medgraft"]:
    del sys.modules[name]
sys.modules.update(dict.fromkeys(("resource", "fcntl", "pwd", "grp", "termios", "multiprocessing.forkserver"), None))
import_all()
sys.argv = ["medgraft", "--help"]
from medgraft.cli.main import main
main()
"""
    assert "bench" in _loads(code)


@pytest.mark.slow
def test_the_fork_server_leaves_accelerators_asleep():
    """Their state does not survive a fork: without one nothing is asked of CUDA's runtime, with one nothing is imported."""
    code = """
import multiprocessing.forkserver as server, sys, torch
torch.accelerator.is_available = lambda: True
server.ensure_running = lambda: print(server._forkserver._preload_modules)
from medgraft.benchmark.process import start_server
start_server()
"""
    assert _loads(code).splitlines()[-1] == "[]"


def test_functions_take_seven_parameters_at_most():
    long = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                batch = node.name == "forward"  # whose parameters are the tensors of a batch
                if len(set(given) - {"self", "cls"}) > 7 and not batch:
                    long.append(f"{path.relative_to(SOURCE)}: {node.name}")
    assert not long


def test_imports_run_one_way():
    wrong = []
    for path in SOURCE.rglob("*.py"):
        own = path.relative_to(SOURCE).with_suffix("").parts[0]
        if own not in CHAIN:  # __init__, which is lazy
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom | ast.Import):
                continue
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom) and node.module == "medgraft":
                names = [f"medgraft.{alias.name}" for alias in node.names]
            for name in names:
                parts = (name or "").split(".")
                if parts[0] == "medgraft" and len(parts) > 1 and CHAIN.index(parts[1]) > CHAIN.index(own):
                    wrong.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert not wrong


def test_kernels_are_one_layer_that_one_module_imports_and_one_switches_classes():
    inside = SOURCE / "acceleration"
    outside = [path for path in SOURCE.rglob("*.py") if path.parent != inside]
    assert [path.name for path in outside if "medgraft.acceleration" in path.read_text()] == ["prepare.py"]
    switching = [path.name for path in SOURCE.rglob("*.py") if re.search(r"\.__class__ = ", path.read_text())]
    assert switching == ["swap.py"]
    plain = [path for part in ("backbones", "strategies") for path in (SOURCE / part).rglob("*.py")]
    assert not [path.name for path in plain if re.search(r"device\.type|is_autocast_enabled", path.read_text())]


def test_files_stay_small():
    long = {str(p.relative_to(SOURCE)): n for p in SOURCE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 320}
    assert not long
