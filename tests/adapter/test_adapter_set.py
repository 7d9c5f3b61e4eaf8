"""Several adapters on one base: the same bits as alone, one base in memory, switched at once."""

import time

import pytest
import torch
from compared import logits
from peft import LoraConfig, get_peft_model
from transformers import BlipForConditionalGeneration

import medgraft
from medgraft.adapter.locating import locate_adapter
from medgraft.benchmark import execute
from medgraft.config import run_config
from medgraft.errors import AdapterError, ConfigError, UnknownNameError
from medgraft.prepare import prepare_captioner
from medgraft.strategies import get_strategy


@pytest.fixture(scope="module")
def made(blip_folder, other_blip_folder, phantoms_folder, tmp_path_factory):
    """`made(STRATEGY)` gives an adapter's folder, trained once; other weights and another base have names of their own."""
    from medgraft.plugin import PluginManager

    folders = {}

    def get(strategy, seed=0, base=blip_folder):
        if (strategy, seed, base) not in folders:
            out = tmp_path_factory.mktemp(strategy) / "run"
            config = run_config(
                backbone=f"blip:{base}", strategy=strategy, data=f"roco:{phantoms_folder}", max_images=8, seed=seed,
                overrides=[
                    "train.max_steps=2", "train.warmup_steps=0", "train.per_device_train_batch_size=4",
                    "train.learning_rate=0.05",
                ],
            )  # fmt: skip
            execute(config, out, plugins=PluginManager(), evaluate=False, checkpoints=False)
            folders[strategy, seed, base] = locate_adapter(out)
        return folders[strategy, seed, base]

    return get


def _logits(backbone, bf16=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return logits(backbone)


@pytest.mark.parametrize(
    "wanted",
    [("lora", "encoder-frozen", "lora"), ("qlora", "qlora"), ("lora-int8", "lora-int8")],
    ids=["PEFT's and in place", "4 bits", "8 bits"],
)
def test_each_computes_as_alone_to_the_bit(wanted, made, blip_folder, plugins):
    folders = {f"{strategy}-{seed}": made(strategy, seed) for seed, strategy in enumerate(wanted)}
    several = medgraft.load_adapters(folders, plugins=plugins)
    assert several.names == tuple(folders) and several.active == several.names[0]
    expected = {name: medgraft.load_adapter(folder).backbone for name, folder in folders.items()}
    strategy = get_strategy("zero-shot" if wanted[0] == "lora" else wanted[0], plugins=plugins)
    expected[None] = prepare_captioner(f"blip:{blip_folder}", strategy, plugins=plugins)
    for bf16 in (False, True):
        logits = {name: _logits(backbone, bf16) for name, backbone in expected.items()}
        for name in (*folders, None, *reversed(folders)):
            assert torch.equal(_logits(several.use(name).backbone, bf16), logits[name]), (name, bf16)
            assert several.active == name
        distinct = {tuple(each.flatten().tolist()) for each in logits.values()}
        assert len(distinct) == len(logits)


@pytest.mark.parametrize("wanted", [("lora", "lora"), ("qlora", "qlora"), ("lora-int8", "lora-int8")])
def test_the_base_is_in_memory_once(wanted, made, plugins):
    several = medgraft.load_adapters({str(seed): made(name, seed) for seed, name in enumerate(wanted)}, plugins=plugins)
    a, b = (several.use(name).backbone.model for name in several.names)
    layers = [dict(model.named_parameters()) for model in (a, b)]
    frozen = [name for name, parameter in layers[0].items() if not parameter.requires_grad]
    assert all(layers[0][name].data_ptr() == layers[1][name].data_ptr() for name in frozen)
    trained = [name for name, parameter in layers[0].items() if parameter.requires_grad]
    assert trained and all(layers[0][name].data_ptr() != layers[1][name].data_ptr() for name in trained)
    copies = [p.CB for p in layers[1].values() if getattr(p, "CB", None) is not None]
    assert {c.data_ptr() for c in copies} <= {p.data_ptr() for p in layers[0].values()}
    assert bool(copies) == (wanted[0] == "lora-int8")


def test_images_may_each_have_their_adapter(made, phantoms_folder, plugins):
    several = medgraft.load_adapters({"a": made("lora"), "b": made("lora", 2)}, plugins=plugins)
    images = sorted((phantoms_folder / "test/radiology/images").iterdir())[:3]
    short = medgraft.api.GenerationConfig(max_new_tokens=6)
    alone = {name: medgraft.caption(images, adapter=several.use(name), generation=short) for name in ("a", "b", None)}
    mixed = several.caption(images, adapters=["b", None, "a"], generation=short)
    assert mixed == [alone["b"][0], alone[None][1], alone["a"][2]]
    prompted = medgraft.load_adapters({"a": made("lora")}, prompt="an mri showing", plugins=plugins)
    assert [prompted.use(name).prompt for name in ("a", None)] == ["an mri showing"] * 2
    several.use("b")
    assert several.caption(images, generation=short) == alone["b"]
    with pytest.raises(ConfigError, match=r"adapters has 1 names for 3 images"):
        several.caption(images, adapters=["a"])


def test_plain_peft_adapters_are_on_the_base_that_they_name(blip_folder, tmp_path, plugins):
    model = BlipForConditionalGeneration.from_pretrained(blip_folder)
    for name in "ab":
        model = get_peft_model(model, LoraConfig(target_modules=["query"], init_lora_weights=False))
        model.save_pretrained(tmp_path / name, save_embedding_layers=False)
        model = model.unload()
    several = medgraft.load_adapters({n: tmp_path / n for n in "ab"}, quantization="nf4", plugins=plugins)
    alone = medgraft.load_backbone(f"blip:{blip_folder}", quantization="nf4", plugins=plugins)
    assert torch.equal(_logits(several.use(None).backbone), _logits(alone))
    assert not torch.equal(_logits(several.use("a").backbone), _logits(several.use("b").backbone))


def test_what_cannot_be_held_together(made, other_blip_folder, plugins):
    with pytest.raises(AdapterError, match=r"a and b are of different bases \(blip:.* with weights \w{12}, blip:.*Load only"):
        medgraft.load_adapters({"a": made("lora"), "b": made("lora", 0, other_blip_folder)}, plugins=plugins)
    with pytest.raises(AdapterError, match="There is no adapter to load"):
        medgraft.load_adapters({}, plugins=plugins)
    several = medgraft.load_adapters({"chest": made("lora")}, plugins=plugins)
    with pytest.raises(UnknownNameError, match=r"There is no adapter 'chst'. Did you mean 'chest'"):
        several.use("chst")
    assert several.active == "chest"


@pytest.mark.slow
def test_switching_a_full_size_blip_takes_less_than_50_ms(full_size, tmp_path, plugins):
    from synthetic_models import write_blip

    folder = write_blip(tmp_path / "base")
    model = BlipForConditionalGeneration.from_pretrained(folder)
    config = LoraConfig(r=16, target_modules=["query", "value", "qkv"], init_lora_weights=False)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        peft = get_peft_model(model, config)
        peft.save_pretrained(tmp_path / name, save_embedding_layers=False)
        model = peft.unload()
    del peft, model
    several = medgraft.load_adapters({n: tmp_path / n for n in "ab"}, backbone=f"blip:{folder}", plugins=plugins)
    several.use(None)  # loads the bare base
    seconds = []
    for name in ("a", None, "b", "a", "b"):
        start = time.perf_counter()
        model = several.use(name).backbone.model
        seconds.append(time.perf_counter() - start)
    print(f"switching took {1000 * max(seconds):.3f} ms")
    assert max(seconds) < 0.05
    each = [{p.data_ptr(): p.nbytes for p in several.use(n).backbone.model.parameters()} for n in ("a", "b", None)]
    together = sum({pointer: size for one in each for pointer, size in one.items()}.values())
    assert together < 1.02 * sum(each[0].values())
    assert model is several.use("b").backbone.model
