"""What plugins may import: one module, documented name by name, and enough for all plugins that medgraft ships."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import medgraft
from medgraft import plugin_api
from medgraft.errors import PluginError
from medgraft.plugin import KINDS, PluginManager, spec
from medgraft.scaffold import contents

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")


def _documented(heading: str) -> list[str]:
    """The names in the first column of the table below a heading."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.M)


def test_every_name_exists_and_is_sorted():
    assert sorted(plugin_api.__all__) == plugin_api.__all__ == dir(plugin_api)
    for name in plugin_api.__all__:
        assert getattr(plugin_api, name) is not None
    with pytest.raises(AttributeError, match=r"medgraft\.plugin_api' has no attribute 'Backbones'"):
        _ = plugin_api.Backbones


def test_type_checkers_see_what_is_imported():
    tree = ast.parse(Path(plugin_api.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == plugin_api._MODULE_OF
    assert sorted(seen) == plugin_api.__all__


def test_every_name_is_documented_in_one_line():
    assert _documented("What may be imported") == plugin_api.__all__


def test_plugin_hooks_are_documented():
    assert _documented("Hooks and descriptors") == [hook for hook, _ in KINDS.values()]
    for hook, descriptor in KINDS.values():
        assert f"@medgraft.hookimpl\ndef {hook}():\n    yield medgraft.{descriptor.__name__}(" in PAGE
        assert f"medgraft.{descriptor.__name__}(" in getattr(spec, hook).__doc__


def test_a_descriptor_loads_nothing_heavy():
    code = "from medgraft.plugin_api import BackboneSpec, hookimpl; import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def _internal(code: str) -> list[str]:
    """What Python code names of medgraft that is not public: imports, and targets written as "module:attribute"."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"medgraft[\w.]*:\w+", node.value):
            found.append(node.value.replace(":", "."))
    public = {"medgraft", "medgraft.plugin_api", *(f"medgraft.{name}" for name in medgraft.__all__)}
    public |= {f"medgraft.plugin_api.{name}" for name in plugin_api.__all__}
    return [name for name in found if name.split(".")[0] == "medgraft" and name not in public]


def test_the_search_for_internal_names_finds_them():
    code = "import medgraft.types\nfrom medgraft.backbones import Backbone\nfrom medgraft import config\nT = 'medgraft.x:Y'\n"
    assert _internal(code) == ["medgraft.types", "medgraft.backbones.Backbone", "medgraft.config", "medgraft.x.Y"]
    assert _internal("import medgraft_git.tiny, medgraft\nfrom medgraft.plugin_api import Backbone\n") == []


SHIPPED = sorted(path.relative_to(ROOT) for path in ROOT.glob("plugins/*/src/**/*.py"))


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_shipped_plugins_import_nothing_internal(path):
    assert _internal((ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("kind", KINDS)
def test_new_plugins_import_nothing_internal(kind):
    for path, text in contents("medgraft-own", kind).items():
        if path.endswith(".py"):
            assert _internal(text) == [], path


@pytest.mark.parametrize("page", ["README.md", "plugins/README.md", "docs/plugins.md"])
def test_examples_import_nothing_internal(page):
    blocks = re.findall(r"^```py\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    for block in blocks:
        assert _internal(block) == []


def test_adding_a_model_takes_less_than_40_lines():
    page = (ROOT / "plugins/README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"backbone\.py`:\n\n```py\n(.*?)^```", page, re.M | re.S)
    assert len([line for line in block.splitlines() if line.strip()]) < 40


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("medgraft.backbones", "Backbone RemoteCaptioner TextBatch Usage next_token_loss"),
        ("medgraft.backbones.roles", "language_model_roles vision_tower_roles"),
        ("medgraft.config", "GenerationConfig"),
        ("medgraft.data", "Dataset"),
        ("medgraft.errors", "BackboneError DataError"),
        ("medgraft.strategies", "PartPlan Strategy get_strategy"),
        ("medgraft.testing", "check_backbone check_dataset check_metric check_strategy"),
        ("medgraft.testing.tiny", "blip byte_tokenizer character_tokenizer save vit_gpt2"),
        ("medgraft.types", "Anatomy AttentionLayout Example PartAnatomy Seam"),
    ],
)
def test_plugins_written_before_this_module_still_import(module, names):
    for name in names.split():
        assert hasattr(importlib.import_module(module), name)


def _install(folder: Path, name: str, entry_points: str = "") -> None:
    info = folder / f"{name}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


def test_an_installation_without_the_entry_point_says_to_install_again(tmp_path, monkeypatch):
    _install(tmp_path, "medgraft", "[console_scripts]\nmedgraft = medgraft.cli.main:main\n")  # as before there was one
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match=r"^medgraft's built-in names are not registered: .* Install it again: pip install"):
        PluginManager().names("strategy")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    done = subprocess.run([sys.executable, "-m", "medgraft", "list"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "Install it again" in done.stderr


def test_built_ins_can_be_disabled_like_any_plugin():
    others = PluginManager(disabled=frozenset({"medgraft"}))
    assert others.names("dataset") == ()
    assert "blip-nano" in others.names("backbone")


@pytest.fixture
def my_plugin(tmp_path, monkeypatch):
    """The package that docs/plugins.md writes, installed for this test."""
    hooks, strategy, dataset, metric, test = re.findall(r"^```py\n(.*?)^```", PAGE, re.M | re.S)
    package = tmp_path / "my_plugin"
    package.mkdir()
    files = {"__init__": hooks, "strategy": strategy, "dataset": dataset, "metric": metric, "test_it": test}
    for name, text in files.items():
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    _install(tmp_path, "my_plugin", "[medgraft]\nmy-plugin = my_plugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield PluginManager(strict=True)
    for module in [name for name in sys.modules if name.partition(".")[0] == "my_plugin"]:
        del sys.modules[module]


def test_what_the_page_writes_is_a_plugin(my_plugin, tmp_path):
    info = next(plugin for plugin in my_plugin.plugins() if plugin.plugin == "my-plugin")
    assert dict(info.provides) == {
        "backbone": ("llava",), "strategy": ("lora-cross",), "dataset": ("iu-xray",), "metric": ("length",)
    }  # fmt: skip
    plugin_api.check_metric(my_plugin.get("metric", "length"))
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    rows: dict[str, list[dict[str, object]]] = {}
    for number, split in enumerate(("train", "train", "val", "test")):
        Image.new("L", (32, 24), number).save(folder / f"images/{number}.png")
        rows.setdefault(split, []).append({"id": f"CXR{number}", "report": "a nodule", "image_path": [f"{number}.png"]})
    (folder / "annotation.json").write_text(json.dumps(rows))
    plugin_api.check_dataset(my_plugin.get("dataset", "iu-xray"), folder)


def test_the_test_on_the_page_passes(my_plugin, tmp_path):
    module = importlib.import_module("my_plugin.test_it")
    module.test_the_strategy_on_blip(tmp_path / "blip")
