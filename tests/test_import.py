"""Importing is cheap, and imports run one way."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import medgraft

SOURCE = Path(medgraft.__file__).parent
# each may import itself and what stands before it
CHAIN = [
    "errors", "types", "quiet", "hardware", "heap", "energy", "linear_product", "projection", "config", "plugin",
    "backbones", "strategies", "data", "acceleration", "features", "training", "adapter", "captioning", "metrics", "stats",
    "saliency", "benchmark", "testing", "report", "worker", "api", "scaffold", "cli",
]  # fmt: skip


def _loads(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_and_help_load_no_torch():
    heavy = "print([m for m in ('torch', 'transformers', 'peft', 'numpy', 'pydantic', 'evaluate') if m in sys.modules])"
    assert _loads(f"import sys, medgraft; {heavy}").strip() == "[]"
    code = f"import sys, medgraft.cli.main as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\n{heavy}"
    assert _loads(code).splitlines()[-1] == "[]"


def test_listing_names_loads_no_torch():
    code = "import sys, medgraft.cli.main as m; m.main(['list']); print('torch' in sys.modules)"
    assert _loads(code).splitlines()[-1] == "False"


def test_help_is_quick():
    def once() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "medgraft.cli.main", "--help"], capture_output=True, check=True)
        return time.perf_counter() - start

    assert min(once() for _ in range(5)) < 0.4


def test_public_names_exist_and_are_sorted():
    assert medgraft.__all__ == sorted(medgraft.__all__)
    for name in medgraft.__all__:
        assert getattr(medgraft, name)


def test_public_names_are_not_hidden_by_modules():
    code = """
import importlib, pkgutil, medgraft
for module in pkgutil.walk_packages(medgraft.__path__, "medgraft."):
    importlib.import_module(module.name)
print([name for name in medgraft.__all__ if type(getattr(medgraft, name)).__name__ == "module"])
"""
    assert _loads(code).splitlines()[-1] == "[]"


def test_imports_run_one_way():
    wrong = []
    for path in SOURCE.rglob("*.py"):
        own = path.relative_to(SOURCE).with_suffix("").parts[0]
        if own not in CHAIN:  # __init__ (lazy) and builtin (names its targets as strings)
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


def test_files_stay_small():
    long = {str(p.relative_to(SOURCE)): n for p in SOURCE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 320}
    assert not long
