"""Layers by range: counted per part from the module tree, for adapters, quantised bases and parts trained in place."""

import pytest
from peft import PeftModel

from medgraft.adapter import in_place_digests, load_adapter, save_weights, write_package
from medgraft.backbones import get_backbone
from medgraft.errors import ConfigError, StrategyError
from medgraft.models import load_model
from medgraft.plugin import PluginManager
from medgraft.strategies import PartPlan, Strategy, apply_strategy, get_strategy
from medgraft.strategies.layers import part_layers
from medgraft.testing.strategy_checks import _manifest

PLUGINS = PluginManager()
_T5 = ["language_model.encoder.block.0", "language_model.encoder.block.1", "language_model.decoder.block.0",
       "language_model.decoder.block.1"]  # fmt: skip
_COUNTS = {  # vision, bridge, text
    "blip": (2, None, 2), "blip2-opt": (2, 2, 2), "blip2-t5": (2, 2, 4), "instructblip-vicuna": (2, 2, 2), "git": (2, 0, 2),
    "blip-vqa": (2, None, 4), "qwen2.5-vl": (2, 0, 2), "vit-gpt2": (2, 0, 2), "deit-bert": (2, 0, 2),
}  # fmt: skip


def _applied(name, strategy):
    backbone = load_model(name, strategy, plugins=PLUGINS)
    return backbone, apply_strategy(backbone.model, backbone.anatomy, strategy)


@pytest.mark.parametrize("name", _COUNTS)
def test_layers_are_those_of_the_module_tree(name, tiny_folder):
    kind, folder = tiny_folder(name)
    backbone = get_backbone(f"{kind}:{folder}", plugins=PLUGINS)[0].load(str(folder))
    counts = {part: len(part_layers(backbone.model, backbone.anatomy, part)) for part in backbone.anatomy.parts}
    assert counts == {part: n for part, n in zip(("vision", "bridge", "text"), _COUNTS[name], strict=True) if n is not None}
    if name == "blip2-t5":
        assert list(part_layers(backbone.model, backbone.anatomy, "text")) == _T5


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [("1-", {1, 2, 3}), ("0-1", {0, 1}), ("0,2-", {0, 2, 3}), (3, {3}), ([0, "2-3"], {0, 2, 3}), (" 1 , 2 ", {1, 2})],
)
@pytest.mark.parametrize("preset", ["lora", "qlora", "ia3", "norm-tuning", "full"])
def test_only_the_layers_of_the_ranges_are_trained(layers, wanted, preset, tiny_folder):
    kind, folder = tiny_folder("blip2-t5")
    options = {"text.layers": layers, "vision": "frozen", "bridge": "frozen"}
    _, applied = _applied(f"{kind}:{folder}", get_strategy(preset, options, plugins=PLUGINS))
    names = (*applied.direct, *applied.adapter_parameters)
    found = {number for number, layer in enumerate(_T5) for name in names if name.startswith(f"{layer}.")}
    assert found == wanted and all(name.startswith(tuple(f"{layer}." for layer in _T5)) for name in names)
    assert bool(applied.quantized) == (preset == "qlora")


def test_parts_have_ranges_of_their_own(blip_folder):
    strategy = Strategy(vision=PartPlan(mode="full", layers="1-"), text=PartPlan(mode="adapter", roles=("cross",), layers="0"))
    _, applied = _applied(f"blip:{blip_folder}", strategy)
    assert all(name.startswith("vision_model.encoder.layers.1.") for name in applied.direct)
    assert len(applied.matched_modules) == 4
    assert all(name.startswith("text_decoder.bert.encoder.layer.0.crossattention") for name in applied.matched_modules)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("blip", {"text.layers": "2-"}, StrategyError, "text.layers=2- lie outside: part 'text' of this backbone has 2 layers"),
        ("blip", {"vision.layers": "0-2"}, StrategyError, "part 'vision' of this backbone has 2 layers, 0 to 1"),
        ("blip", {"text.layers": "1-0"}, StrategyError, "text.layers=1-0 are none: part 'text' of this backbone has 2 layers"),
        (
            "blip",
            {"text.layers": ""},
            StrategyError,
            "text.layers= are none: part 'text' of this backbone has 2 layers, 0 to 1",
        ),
        ("git", {"bridge.layers": 0}, StrategyError, "part 'bridge' of this backbone has no layers to choose from"),
        ("blip", {"bridge.layers": 0}, StrategyError, "bridge.layers is set, but this backbone has only vision, text"),
        ("blip", {"bridge.lr_scale": 0.1}, StrategyError, "bridge.lr_scale is set, but this backbone has only vision, text"),
        ("blip2-opt", {"bridge.layers": 1, "bridge.roles": "cross"}, StrategyError, "no module of role cross in these layers"),
        ("blip", {"text.layers": "last"}, ConfigError, "'last' is no selection of layers"),
        ("blip", {"text.layers": -1}, ConfigError, "-1 is no selection of layers"),
        ("blip", {"text.layers": True}, ConfigError, "True is no selection of layers"),
        ("blip", {"text": "frozen", "text.layers": 0}, ConfigError, "part 'text' is trained, but it is frozen"),
    ],
)
def test_a_selection_that_cannot_be_is_refused_with_the_number_of_layers(name, options, error, message, tiny_folder):
    kind, folder = tiny_folder(name)
    with pytest.raises(error, match=message):
        _applied(f"{kind}:{folder}", get_strategy("lora", options, plugins=PLUGINS))


def test_a_preset_may_be_frozen_although_it_selects_roles():
    assert get_strategy("norm-tuning", {"text": "frozen"}, plugins=PLUGINS).text.roles == ("norm",)


def test_an_adapter_in_some_layers_loads_here_and_in_plain_peft(blip_folder, tmp_path):
    strategy = get_strategy("lora", {"text.layers": "1-", "vision": "full", "vision.layers": 0}, plugins=PLUGINS)
    backbone, applied = _applied(f"blip:{blip_folder}", strategy)
    untrained = in_place_digests(applied)
    for parameter in applied.model.parameters():
        parameter.data += 0.01 * parameter.requires_grad
    manifest = _manifest(f"blip:{blip_folder}", backbone, applied)
    write_package(tmp_path / "a", manifest, lambda new: save_weights(new, applied, untrained))
    loaded = load_adapter(tmp_path / "a", plugins=PLUGINS, backbone=f"blip:{blip_folder}")
    own = dict(applied.model.named_parameters())
    assert loaded.manifest.strategy_settings == strategy
    assert all((own[name] == tensor).all() for name, tensor in loaded.model.named_parameters())
    plain = get_backbone(f"blip:{blip_folder}", plugins=PLUGINS)[0].load(str(blip_folder)).model
    adapted = PeftModel.from_pretrained(plain, tmp_path / "a").base_model.targeted_module_names
    assert tuple(adapted) == applied.matched_modules


def test_what_is_not_set_is_not_written():
    """So ids of records, checkpoints and packages of strategies that do not use it are those of earlier versions."""
    written = get_strategy("lora", plugins=PLUGINS).model_dump(mode="json")
    assert not {"layers", "lr_scale", "loraplus_lr_ratio"} & {*written, *written["text"]}
    changed = get_strategy("lora-plus", {"text.layers": "1-", "text.lr_scale": 0.1}, plugins=PLUGINS)
    assert Strategy.model_validate_json(changed.model_dump_json()) == changed
