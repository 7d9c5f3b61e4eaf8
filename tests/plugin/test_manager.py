"""Plugins that work, fail, misspell, clash: none takes the program down, none hides."""

import sys

import pytest

from medgraft.errors import PluginError, UnknownNameError
from medgraft.plugin import PluginManager

GOOD = """
import medgraft

@medgraft.hookimpl
def medgraft_backbones():
    yield medgraft.BackboneSpec("fake", "a fake", "fake_good:Fake")

@medgraft.hookimpl
def medgraft_strategies():
    from medgraft.strategies import PartPlan, Strategy
    yield medgraft.StrategySpec("head-only", "the head", Strategy(text=PartPlan(mode="full", roles=("head",))))

class Fake: ...
"""
BROKEN = "raise ImportError('no module named magic')"
MISSPELT = """
import medgraft

@medgraft.hookimpl
def medgraft_backbone():
    yield medgraft.BackboneSpec("never", "", "x:Y")
"""
RAISES_LATE = """
import medgraft

@medgraft.hookimpl
def medgraft_backbones():
    yield medgraft.BackboneSpec("first", "", "x:Y")
    raise RuntimeError("half way")
"""
WRONG_TYPE = """
import medgraft

@medgraft.hookimpl
def medgraft_metrics():
    yield "length"
"""
CLASH = """
import medgraft

@medgraft.hookimpl
def medgraft_strategies():
    yield medgraft.StrategySpec("lora", "mine", "x:Y")
"""
WRONG_SETTINGS = GOOD.replace('roles=("head",)', 'roles=("haed",), lr_scale=0')


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install modules as distributions with an entry point, for this test's interpreter only."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def _install(name: str, code: str) -> None:
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[medgraft]\n{name} = {module}\n")

    yield _install
    for module in [m for m in sys.modules if m.startswith("fake_")]:
        del sys.modules[module]


def test_builtins_come_through_the_hooks(plugins):
    assert "blip" in plugins.names("backbone")
    assert {"zero-shot", "full", "encoder-frozen", "decoder-frozen", "lora", "qlora"} <= set(plugins.names("strategy"))
    assert plugins.plugins()[0].distribution == "medgraft"
    assert plugins.failures == []


def test_every_builtin_target_can_be_loaded(plugins):
    for kind in ("backbone", "strategy", "dataset", "metric"):
        for name in plugins.names(kind):
            assert plugins.get(kind, name) is not None


def test_a_plugin_adds_names(install, plugins):
    install("fake-good", GOOD)
    assert plugins.get("backbone", "fake").__name__ == "Fake"
    assert plugins.get("strategy", "head-only").text.roles == ("head",)
    info = next(p for p in plugins.plugins() if p.plugin == "fake-good")
    assert (info.version, info.provides["backbone"], info.provides["strategy"]) == ("1.2", ("fake",), ("head-only",))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (BROKEN, "ImportError: no module named magic"),
        (MISSPELT, "medgraft_backbone"),
        (RAISES_LATE, "RuntimeError: half way"),
        (WRONG_SETTINGS, r"PartPlan: roles.0: Input should be 'attn'"),
        (WRONG_SETTINGS, "; lr_scale: Input should be greater than 0"),
        (WRONG_TYPE, "medgraft_metrics must yield MetricSpec, not a str: 'length'"),
    ],
    ids=["import error", "misspelt hook", "raises half way", "wrong role", "wrong rate", "wrong type"],
)
def test_a_failing_plugin_breaks_nothing_and_is_reported(install, plugins, code, message):
    install("fake-bad", code)
    install("fake-good", GOOD)
    assert "lora" in plugins.names("strategy")
    assert "fake" in plugins.names("backbone")
    (failure,) = plugins.failures
    assert failure.plugin == "fake-bad"
    assert message in failure.message


def test_what_a_half_failing_hook_gave_is_kept_out(install, plugins):
    install("fake-bad", RAISES_LATE)
    assert "first" not in plugins.names("backbone")


def test_unknown_names_help(install, plugins):
    install("fake-bad", BROKEN)
    with pytest.raises(UnknownNameError, match=r"Unknown strategy 'lorra'. Did you mean 'lora'.*fake-bad.*magic"):
        plugins.get("strategy", "lorra")
    with pytest.raises(UnknownNameError, match=r"Known: bertscore, bleu, .*cider, clinical, .*, rouge_l, spice"):
        plugins.get("metric", "zzzz")


def test_two_providers_of_a_name_are_both_named(install, plugins):
    install("fake-clash", CLASH)
    with pytest.raises(PluginError, match=r"^Strategy 'lora' is provided by fake-clash and medgraft\. Uninstall or disable"):
        plugins.get("strategy", "lora")
    assert plugins.get("strategy", "full")


def test_disabling_and_strictness(install, monkeypatch):
    install("fake-clash", CLASH)
    install("fake-bad", BROKEN)
    monkeypatch.setenv("MEDGRAFT_DISABLE_PLUGINS", "fake-clash, fake-bad")
    calm = PluginManager.from_environment()
    assert calm.get("strategy", "lora")
    assert calm.failures == []
    monkeypatch.setenv("MEDGRAFT_DISABLE_PLUGINS", "")
    monkeypatch.setenv("MEDGRAFT_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError, match="fake-bad"):
        PluginManager.from_environment().names("strategy")


def test_a_plugin_is_named_once_before_its_first_use(install, caplog, tmp_path):
    install("fake-good", GOOD)
    manager = PluginManager()
    with caplog.at_level("INFO", "medgraft.plugin.manager"):
        manager.get("strategy", "lora")
        manager.get("backbone", "fake")
        manager.get("strategy", "head-only")
    assert caplog.messages == [f"plugin fake-good: fake-good 1.2 in {tmp_path / 'fake_good.py'}"]
    assert {str(tmp_path / "fake_good.py")} == {p.location for p in manager.plugins() if p.plugin == "fake-good"}
    own = PluginManager(disabled=frozenset({"all"}))
    assert {plugin.distribution for plugin in own.plugins()} == {"medgraft"}
