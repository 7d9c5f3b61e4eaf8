"""Combined adapters: sums are sums, kinds and bases are checked, and the manifest says of what."""

import json

import pytest
import torch
from changed import PLUGINS, changed_adapter, computed
from safetensors.torch import load_file

from medgraft.adapter import TrainedOn, load_adapter, read_contents, read_manifest
from medgraft.adapter.lineage import ancestor
from medgraft.cli.main import main
from medgraft.conversion import METHODS, CombineOptions, combine_adapters
from medgraft.conversion.merge import merge_into_base
from medgraft.conversion.outputs import sample_examples
from medgraft.errors import AdapterError, ConfigError
from medgraft.models import load_model
from medgraft.strategies import dequantize


@pytest.fixture(scope="module")
def examples():
    return sample_examples(None, 12, plugins=PLUGINS)


def _weights(folder):
    loaded = load_adapter(folder, plugins=PLUGINS, plain="dequantized")
    merge_into_base(loaded)
    return {name: parameter.detach() for name, parameter in loaded.backbone.model.named_parameters()}


def _combine(folders, weights, out, **options):
    return combine_adapters(folders, weights, out, plugins=PLUGINS, options=CombineOptions(**options))


@pytest.fixture
def name(tiny_folder):
    return f"blip:{tiny_folder('blip')[1]}"


@pytest.fixture(scope="module")
def pair(tiny_folder, tmp_path_factory):
    """Two LoRAs of rank 4 on one base."""
    folder, name = tmp_path_factory.mktemp("pair"), f"blip:{tiny_folder('blip')[1]}"
    return [changed_adapter(name, "lora", folder / f"{seed}", seed=seed, r=4) for seed in (1, 2)]


@pytest.mark.parametrize(
    ("strategies", "options", "weights"),
    [
        (("lora", "lora-decoder"), {"r": 4}, (1.0, -0.7)),
        (("lora", "lora"), {"r": 4, "use_rslora": True}, (0.5, 0.5)),
        (("full", "encoder-frozen"), {}, (1.0, -0.7)),
        (("qlora", "qlora"), {}, (0.5, 0.5)),
    ],
)
def test_the_default_is_the_weighted_sum_of_the_changes(strategies, options, weights, name, tmp_path):
    one = changed_adapter(name, strategies[0], tmp_path / "a", seed=1)
    other = changed_adapter(name, strategies[1], tmp_path / "b", seed=2, **options)
    _combine([one, other], weights, tmp_path / "both")
    backbone = load_model(name, read_manifest(one).strategy_settings, plugins=PLUGINS)
    dequantize(backbone.model)
    assert (tmp_path / "both/trained_tensors.safetensors").exists() == (strategies[0] == "full")
    found, first, second = _weights(tmp_path / "both"), _weights(one), _weights(other)
    for key, base in backbone.model.named_parameters():
        expected = base.detach() + weights[0] * (first[key] - base) + weights[1] * (second[key] - base)
        torch.testing.assert_close(found[key], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["cat", "linear", "svd", "ties", "dare_linear_svd"])
def test_methods_of_peft_give_a_package_that_loads(method, pair, examples):
    out = pair[0].parent / method
    combined = _combine(pair, (0.5, 0.5), out, method=method)
    assert method in METHODS and combined.rank == (8 if method == "cat" else 4)
    assert len(computed(out, examples[:2]).captions) == 2
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["r"] == combined.rank and not [path for path in out.iterdir() if path.is_dir()]


def test_the_manifest_says_of_what_and_knows_all_training_images(name, tmp_path, examples):
    one = changed_adapter(name, "lora", tmp_path / "one", examples=examples[:1])
    other = changed_adapter(name, "lora", tmp_path / "other", examples=examples[1:8])
    _combine([one, other], (0.25, 0.75), tmp_path / "both")
    made = read_manifest(tmp_path / "both")
    assert made.metrics == {} and made.strategy == "lora-combined" and "steps" not in made.training
    assert made.base_tensors and made.base_fingerprint == read_manifest(one).base_fingerprint
    assert made.conversion.settings == {"method": "cat", "weights": [0.25, 0.75]}
    sources = [ancestor(read_contents(folder)) for folder in (one, other)]
    assert list(made.conversion.sources) == sources and sources[0].steps == 3
    seen = TrainedOn.read(tmp_path / "both").seen(examples)
    assert (seen.images, seen.complete) == (8, True)
    card = (tmp_path / "both/README.md").read_text()
    assert "Made by medgraft adapter combine, method cat, weights 0.25 0.75; from adapter `" in card
    assert main(["adapter", "inspect", str(tmp_path / "both")]) == 0


def test_images_that_a_source_does_not_list_are_told(name, tmp_path, examples):
    one = changed_adapter(name, "lora", tmp_path / "one", examples=examples[:1])
    other = changed_adapter(name, "lora", tmp_path / "other")
    for folders in ([one, other], [other, one]):
        out = tmp_path / f"{folders[0].name}-first"
        _combine(folders, (1, 1), out)
        seen = TrainedOn.read(out).seen(examples)
        assert (seen.images, seen.complete) == (1, False)


def test_what_does_not_belong_together_is_refused(name, tiny_folder, blip_folder, tmp_path):
    lora = changed_adapter(name, "lora", tmp_path / "lora")
    full = changed_adapter(name, "full", tmp_path / "full")
    dora = changed_adapter(name, "dora", tmp_path / "dora")
    ia3 = changed_adapter(name, "ia3", tmp_path / "ia3")
    elsewhere = changed_adapter(f"blip:{blip_folder}", "lora", tmp_path / "there/elsewhere")
    other_rank = changed_adapter(name, "lora", tmp_path / "other", r=4)
    for second, message, options in (
        (full, "Adapters of different kinds cannot be combined", {}),
        (dora, "is a LoRA with use_dora, which PEFT does not combine", {}),
        (ia3, "is IA3; only LoRA", {}),
        (elsewhere, "Only adapters of one base can be combined", {}),
        (other_rank, "PEFT cannot combine these adapters by linear: All adapters must have the same r", {"method": "linear"}),
    ):
        with pytest.raises(AdapterError, match=message):
            _combine([lora, second], (1, 1), tmp_path / "both", **options)
    with pytest.raises(AdapterError, match="what was trained in place is combined by linear alone"):
        _combine([full, full], (1, 1), tmp_path / "both", method="ties")
    with pytest.raises(ConfigError, match="2 adapters have 1 weights"):
        _combine([lora, lora], (1,), tmp_path / "both")
    with pytest.raises(ConfigError, match="Did you mean 'ties'"):
        _combine([lora, lora], (1, 1), tmp_path / "both", method="tie")
    assert not (tmp_path / "both").exists()


def test_the_command_combines(name, tmp_path, capsys):
    folders = [str(changed_adapter(name, "norm-tuning", tmp_path / f"{seed}", seed=seed)) for seed in (1, 2)]
    words = ["adapter", "combine", *folders, "--weights", "0.5", "0.5", "--out", str(tmp_path / "both"), "-q"]
    assert main(words) == 0
    assert "2 adapters by linear" in capsys.readouterr().out
    found, (one, other) = load_file(tmp_path / "both/trained_tensors.safetensors"), map(_tensors, folders)
    assert found.keys() == one.keys()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, (one[key] + other[key]) / 2)


def _tensors(folder):
    return load_file(f"{folder}/trained_tensors.safetensors")
