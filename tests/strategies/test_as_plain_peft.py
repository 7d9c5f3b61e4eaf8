"""rsLoRA, LoRA+, PiSSA, VeRA, OFT and norm tuning compute and save what plain PEFT does, in both directions."""

import pytest
import torch
from peft import LoraConfig, OFTConfig, PeftModel, VeraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file

from medgraft.adapter import in_place_digests, load_adapter, read_contents, save_weights, write_package
from medgraft.adapter.inspection import compare_adapters, inspect_adapter
from medgraft.backbones import get_backbone
from medgraft.benchmark import why_unsupported
from medgraft.conversion import MergeOptions, combine_adapters, merge_adapter
from medgraft.errors import AdapterError
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_model
from medgraft.strategies import apply_strategy, get_strategy
from medgraft.testing.samples import images
from medgraft.testing.strategy_checks import _manifest

PLUGINS = PluginManager()
_LINEAR = ["qkv", "projection", "fc1", "fc2", "query", "key", "value", "dense"]
_HEAD = {"exclude_modules": [r"text_decoder.cls.predictions.transform.dense"]}
_CONFIGS = {
    "rslora": LoraConfig(r=64, lora_alpha=16, use_rslora=True, target_modules=_LINEAR, **_HEAD),
    "lora-plus": LoraConfig(r=16, lora_alpha=32, target_modules=_LINEAR, **_HEAD),
    "vera": VeraConfig(target_modules=r"vision_model\..*(qkv|projection|fc[12])|text_decoder\.bert\..*(query|key|value|dense)"),
    "oft": OFTConfig(target_modules=_LINEAR, **_HEAD),
}


@torch.no_grad()
def _logits(backbone):
    backbone.model.eval()
    text = backbone.text_batch(["a nodule.", "no acute findings."], max_tokens=160)
    return backbone.decode(backbone.encode(backbone.pixel_values(images(2))), text)[1]


@pytest.fixture(scope="module")
def trained(blip_folder, tmp_path_factory):
    """`trained(PRESET)` gives the folder of an adapter with random values, and its logits with all kernels."""
    made = {}

    def get(preset):
        if preset not in made:
            name, folder = f"blip:{blip_folder}", tmp_path_factory.mktemp(preset) / preset
            torch.manual_seed(0)
            backbone, applied, _ = prepare_model(name, get_strategy(preset, plugins=PLUGINS), plugins=PLUGINS)
            digests = in_place_digests(applied)
            for parameter in applied.model.parameters():
                parameter.data += 0.05 * torch.randn_like(parameter) * parameter.requires_grad
            manifest = _manifest(name, backbone, applied)
            write_package(folder, manifest, lambda new: save_weights(new, applied, digests))
            made[preset] = folder, _logits(backbone)
        return made[preset]

    return get


def _plain(blip_folder):
    return get_backbone(f"blip:{blip_folder}", plugins=PLUGINS)[0].load(str(blip_folder))


@pytest.mark.parametrize("preset", _CONFIGS)
def test_the_weights_mean_the_same_in_a_config_written_by_hand(preset, trained, blip_folder, tmp_path):
    folder, expected = trained(preset)
    backbone = _plain(blip_folder)
    model = get_peft_model(backbone.model, _CONFIGS[preset])
    result = set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    kinds = ("lora_", "vera_lambda", "oft_")
    assert not result.unexpected_keys and not [key for key in result.missing_keys if any(kind in key for kind in kinds)]
    torch.testing.assert_close(_logits(backbone), expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "plain", save_embedding_layers=False)
    loaded = load_adapter(tmp_path / "plain", plugins=PLUGINS, backbone=f"blip:{blip_folder}")
    torch.testing.assert_close(_logits(loaded.backbone), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preset", [*_CONFIGS, "pissa"])
def test_what_is_saved_loads_with_the_same_logits_here_and_in_plain_peft(preset, trained, blip_folder):
    folder, expected = trained(preset)
    loaded = load_adapter(folder, plugins=PLUGINS, backbone=f"blip:{blip_folder}")
    tolerance = 1e-4 if preset == "pissa" else 0.0  # it is saved as LoRA for the base as it was
    torch.testing.assert_close(_logits(loaded.backbone), expected, rtol=tolerance, atol=tolerance)
    backbone = _plain(blip_folder)
    PeftModel.from_pretrained(backbone.model, folder)
    torch.testing.assert_close(_logits(backbone), expected, rtol=1e-4, atol=1e-4)


def test_rslora_scales_by_the_root_of_the_rank(blip_folder):
    _, applied, _ = prepare_model(f"blip:{blip_folder}", get_strategy("rslora", plugins=PLUGINS), plugins=PLUGINS)
    scales = {module.scaling["default"] for module in applied.model.modules() if hasattr(module, "scaling")}
    assert scales == {16 / 64**0.5}


def test_pissa_starts_as_the_base_with_its_largest_singular_values_in_the_adapter(blip_folder):
    backbone, _, _ = prepare_model(f"blip:{blip_folder}", get_strategy("pissa", plugins=PLUGINS), plugins=PLUGINS)
    plain = _plain(blip_folder)
    torch.testing.assert_close(_logits(backbone), _logits(plain), rtol=1e-3, atol=1e-4)
    name = "text_decoder.bert.encoder.layer.0.intermediate.dense"
    layer, whole = backbone.model.get_submodule(name), plain.model.get_submodule(name).weight
    added = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    left, values, right = torch.linalg.svd(whole.detach())
    torch.testing.assert_close(added.detach(), left[:, :16] * values[:16] @ right[:16], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("preset", [*_CONFIGS, "pissa"])
def test_it_can_be_inspected_compared_and_merged_and_is_combined_or_refused(preset, trained, blip_folder, tmp_path):
    folder, _ = trained(preset)
    contents = read_contents(folder)
    settings = inspect_adapter(contents).settings
    assert settings["peft_type"] == {"vera": "VERA", "oft": "OFT"}.get(preset, "LORA")
    assert not compare_adapters(contents, contents).tensors
    base = f"blip:{blip_folder}"
    merged = merge_adapter(folder, tmp_path / "merged", plugins=PLUGINS, backbone=base, options=MergeOptions(images=2))
    assert merged.changed_captions == 0
    if preset in ("vera", "oft"):
        with pytest.raises(AdapterError, match=f"{preset.upper()}; only LoRA and what was trained in place can be combined"):
            combine_adapters([folder, folder], [0.5, 0.5], tmp_path / "sum", plugins=PLUGINS, backbone=base)
    else:
        combine_adapters([folder, folder], [0.5, 0.5], tmp_path / "sum", plugins=PLUGINS, backbone=base)
        both = [_logits(load_adapter(f, plugins=PLUGINS, backbone=base).backbone) for f in (folder, tmp_path / "sum")]
        torch.testing.assert_close(both[0], both[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["blip", "qwen2-vl", "vit-gpt2", "blip2-t5"])
def test_norm_tuning_trains_what_pefts_ln_tuning_trains(name, tiny_folder):
    kind, folder = tiny_folder(name)
    made = []
    for preset in ("norm-tuning", "peft:LN_TUNING"):
        strategy = get_strategy(preset, plugins=PLUGINS)
        backbone = get_backbone(f"{kind}:{folder}", plugins=PLUGINS)[0].load(str(folder))
        applied = apply_strategy(backbone.model, backbone.anatomy, strategy)
        optimizer = torch.optim.SGD([p for p in applied.model.parameters() if p.requires_grad], lr=0.1)
        text = backbone.text_batch(["a nodule."], max_tokens=160)
        backbone.loss(backbone.encode(backbone.pixel_values(images(1))), text).backward()
        optimizer.step()
        names = (*applied.direct, *(n.replace(".ln_tuning_layers.default", "") for n in applied.adapter_parameters))
        made.append((set(names), applied.trainable_parameters, _logits(backbone)))
    assert made[0][:2] == made[1][:2]
    torch.testing.assert_close(made[0][2], made[1][2])


def test_layers_that_a_method_does_not_adapt_are_named(tiny_folder):
    kind, folder = tiny_folder("vit-gpt2")
    reason = why_unsupported(f"{kind}:{folder}", get_strategy("oft", plugins=PLUGINS), plugins=PLUGINS)
    assert reason == (
        "PEFT's OFT does not adapt layers of class Conv1D, which part 'text' has. "
        "Freeze this part, or use another method, such as LoRA."
    )
    alone = get_strategy("oft", {"text": "frozen"}, plugins=PLUGINS)
    assert why_unsupported(f"{kind}:{folder}", alone, plugins=PLUGINS) is None
