"""Checkpoints in the layouts of published ones are the same models, quantised ones too, and train without needless warnings."""

import shutil

import pytest
import torch
import transformers
from checkpoint_layouts import LAYOUTS, read_json, write_json
from PIL import Image

import medgraft
from medgraft.adapter.manifest import read_manifest
from medgraft.benchmark import read_record
from medgraft.benchmark.plan import plan
from medgraft.cli.main import main
from medgraft.errors import BackboneError, StrategyError
from medgraft.models import load_model
from medgraft.plugin import PluginManager
from medgraft.strategies import Strategy, apply_strategy, get_strategy, quantized_modules
from medgraft.testing.samples import CAPTIONS, images

NAMES = [layout.like for layout in LAYOUTS]
STORED = ["nf4", "fp4", "int8"]


@pytest.fixture(scope="module")
def written(tiny_folder, tmp_path_factory):
    """`written(LAYOUT)` gives (backbone, folder of the tiny model, folder of the layout)."""
    made = {}

    def get(like):
        if like not in made:
            layout = next(layout for layout in LAYOUTS if layout.like == like)
            backbone, tiny = tiny_folder(layout.tiny)
            folder = tmp_path_factory.mktemp(layout.tiny)
            layout.write(tiny, folder)
            made[like] = backbone, tiny, folder
        return made[like]

    return get


@pytest.fixture(scope="module")
def stored(tiny_folder, tmp_path_factory):
    """`stored(TINY, KIND)` gives (backbone, folder of the tiny model, folder where it was saved quantised)."""
    made = {}

    def get(tiny, kind):
        if (tiny, kind) not in made:
            backbone, source = tiny_folder(tiny)
            folder = tmp_path_factory.mktemp("stored") / kind
            shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
            _load(backbone, source, Strategy(quantization=kind)).model.save_pretrained(folder)
            made[tiny, kind] = backbone, source, folder
        return made[tiny, kind]

    return get


@pytest.fixture
def all_warnings(logged):
    """What medgraft and transformers warn of, as without the command line."""
    transformers.logging.set_verbosity_warning()
    with logged() as lines:
        yield lines
    transformers.logging.set_verbosity_error()


def _load(backbone, folder, strategy=Strategy()):
    return load_model(f"{backbone}:{folder}", strategy, plugins=PluginManager())


def _computed(model):
    """(pixel values, token ids, logits) of two images and captions."""
    pixels, text = model.pixel_values(images(2)), model.text_batch(CAPTIONS, prompt=model.default_prompt)
    with torch.no_grad():
        logits = model.decode(model.encode(pixels, prompt=model.default_prompt), text)[1]
    return pixels, text.input_ids, logits


@pytest.mark.parametrize("like", NAMES)
def test_a_published_layout_is_the_same_model(like, written, all_warnings, capfd):
    backbone, tiny, folder = written(like)
    ours = _load(backbone, folder)
    assert all_warnings == []
    assert "[transformers]" not in capfd.readouterr().err
    reference = _load(backbone, tiny)
    for one, other in zip(_computed(ours), _computed(reference), strict=True):
        assert torch.equal(one, other)
    assert (ours.end_id, ours.pad_id, ours.max_positions) == (reference.end_id, reference.pad_id, reference.max_positions)
    assert ours.fingerprint(str(folder)) == reference.fingerprint(str(tiny))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["lora", "qlora"])
@pytest.mark.parametrize("like", NAMES)
def test_a_published_layout_trains_and_captions(like, strategy, written, phantoms_folder, tmp_path, capfd):
    backbone, _, folder = written(like)
    _train_and_caption(f"{backbone}:{folder}", strategy, phantoms_folder, tmp_path)
    assert _needless(capfd) == []


def _needless(capfd):
    """What the commands said, without what their user should know: of these untrained models, and long captions."""
    known = ("are longer than", "captions were cut off", "captions are empty", "captions are equal")
    return [line for line in capfd.readouterr().err.splitlines() if not any(words in line for words in known)]


def _train_and_caption(name, strategy, data, out):
    words = ["train", "--backbone", name, "--strategy", strategy, "--data", f"roco:{data}", "--out", str(out / "run"), "-q"]
    assert main([*words, "--max-steps", "1", "--batch-size", "2", "--max-images", "2", "--no-eval"]) == 0
    Image.new("L", (40, 30), 90).save(out / "image.png")
    assert main(["caption", str(out / "image.png"), "--adapter", str(out / "run"), "--max-new-tokens", "4", "-q"]) == 0
    return read_record(out / "run" / "record.json"), read_manifest(out / "run" / "adapter")


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("tiny", ["blip", "vit-gpt2", "qwen2-vl"])
def test_stored_quantised_weights_are_those_of_quantising_on_loading(tiny, kind, stored, all_warnings):
    backbone, source, folder = stored(tiny, kind)
    ours, reference = _load(backbone, folder), _load(backbone, source, Strategy(quantization=kind))
    assert quantized_modules(ours.model) == quantized_modules(reference.model)
    assert torch.equal(_computed(ours)[2], _computed(reference)[2])
    assert all_warnings == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tiny", "kind", "strategy"),
    [("blip", "nf4", "qlora"), ("blip", "fp4", "lora"), ("qwen2-vl", "int8", "lora"), ("blip2-opt", "nf4", "lora")],
)
def test_record_and_manifest_say_how_the_base_is_stored(tiny, kind, strategy, stored, phantoms_folder, tmp_path, capfd):
    backbone, _, folder = stored(tiny, kind)
    record, manifest = _train_and_caption(f"{backbone}:{folder}", strategy, phantoms_folder, tmp_path)
    assert record.quantization == manifest.strategy_settings.quantization == kind
    assert record.quantized_modules > 0 and kind in (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert _needless(capfd) == []


@pytest.mark.slow
def test_an_adapter_of_a_stored_quantised_base_is_merged_and_gone_on_from(stored, phantoms_folder, tmp_path):
    backbone, _, folder = stored("vit-gpt2", "nf4")
    record, _ = _train_and_caption(f"{backbone}:{folder}", "lora", phantoms_folder, tmp_path)
    planned = plan([record.config], plugins=PluginManager()).runs
    assert [run.run_id for run in planned] == [record.run_id]
    more = [
        "train",
        "--from",
        str(tmp_path / "run"),
        "--data",
        f"roco:{phantoms_folder}",
        "--out",
        str(tmp_path / "more"),
        "-q",
    ]
    assert main([*more, "--max-steps", "1", "--batch-size", "2", "--max-images", "2", "--no-eval"]) == 0
    merged = ["adapter", "merge", str(tmp_path / "run"), "--out", str(tmp_path / "merged"), "--data", f"roco:{phantoms_folder}"]
    assert main([*merged, "--images", "2", "-q"]) == 0
    assert "quantization_config" not in read_json(tmp_path / "merged", "config.json")


@pytest.mark.parametrize("strategy", ["full", "bitfit"])
def test_stored_quantised_layers_are_not_trained_in_place(strategy, stored, plugins):
    backbone, _, folder = stored("qwen2-vl", "nf4")
    chosen = get_strategy(strategy, plugins=plugins)
    model = _load(backbone, folder, chosen)
    with pytest.raises(StrategyError, match=r"is quantised and cannot be trained; freeze its part or give it an adapter"):
        apply_strategy(model.model, model.anatomy, chosen)


@pytest.mark.parametrize(("kind", "asked"), [("nf4", "lora-int8"), ("fp4", "qlora"), ("int8", "qlora")])
def test_another_quantisation_than_the_stored_one_is_refused(kind, asked, stored, plugins, tmp_path, capsys):
    backbone, _, folder = stored("blip", kind)
    strategy = get_strategy(asked, plugins=plugins)
    with pytest.raises(StrategyError, match=rf"is stored in {kind} and cannot be loaded in {strategy.quantization}\. Choose"):
        _load(backbone, folder, strategy)
    words = ["train", "--backbone", f"{backbone}:{folder}", "--strategy", asked, "--data", "phantoms", "--out", str(tmp_path)]
    assert main(words) == 2
    assert f"is stored in {kind}" in capsys.readouterr().err


def _saved_with(folder, target, changes):
    copy = shutil.copytree(folder, target)
    config = read_json(copy, "config.json")
    config["quantization_config"] = {**config.get("quantization_config", {}), **changes}
    write_json(copy, "config.json", config)
    return copy


def test_a_config_that_says_another_quantisation_than_the_weights_is_refused(stored, tmp_path):
    _, _, folder = stored("blip", "nf4")
    copy = _saved_with(folder, tmp_path / "w", {"bnb_4bit_quant_type": "fp4"})
    with pytest.raises(BackboneError, match=r"is in fp4 by its config.json, but its weights are in nf4"):
        _load("blip", copy)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_weights_without_a_config_that_says_so_are_refused(kind, stored, tmp_path):
    _, _, folder = stored("qwen2-vl", kind)
    copy = shutil.copytree(folder, tmp_path / "w")
    write_json(copy, "config.json", {k: v for k, v in read_json(copy, "config.json").items() if k != "quantization_config"})
    with pytest.raises(BackboneError, match=r"quantization_config|do not belong together"):
        _load("qwen-vl", copy)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "compressed-tensors", "mxfp4"])
@pytest.mark.parametrize("part", ["", "text_config"])
def test_what_other_libraries_quantised_is_refused_in_one_line(method, part, tiny_folder, tmp_path):
    _, folder = tiny_folder("blip")
    copy = shutil.copytree(folder, tmp_path / "w")
    config = read_json(copy, "config.json")
    (config[part] if part else config)["quantization_config"] = {"quant_method": method, "bits": 4}
    write_json(copy, "config.json", config)
    with pytest.raises(BackboneError, match=rf"is stored quantised by {method}, which is not supported\. Name the unquantised"):
        _load("blip", copy)


@pytest.mark.slow
def test_a_base_quantised_whole_by_others_captions_and_trains(tiny_folder, tmp_path, phantoms_folder):
    """As `load_in_4bit` alone quantises: Q-Former and projection too, the rest in fp16."""
    _, source = tiny_folder("blip2-opt")
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float16)
    model = transformers.Blip2ForConditionalGeneration.from_pretrained(
        source, quantization_config=settings, dtype=torch.float16, device_map={"": "cpu"}
    )
    shutil.copytree(source, tmp_path / "w", ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(tmp_path / "w")
    record, manifest = _train_and_caption(f"blip2:{tmp_path / 'w'}", "lora", phantoms_folder, tmp_path)
    assert record.quantization == "fp4"  # bitsandbytes' default
    assert not manifest.strategy_settings.double_quantization


def test_a_snapshot_of_instructblip_is_used_offline(written, tmp_path, monkeypatch):
    """By the hub id too, as `hf download` leaves it; its Q-Former's tokenizer lies in a folder of its own."""
    import huggingface_hub.constants

    _, _, folder = written("Salesforce/instructblip-vicuna-7b of 2023")
    repository, commit = tmp_path / "models--Salesforce--instructblip-tiny", "1" * 40
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path), raising=False)
    ours = _load("instructblip", "Salesforce/instructblip-tiny")
    reference = _load("instructblip", folder)
    assert ours.qformer_tokenizer("a mass")["input_ids"] == reference.qformer_tokenizer("a mass")["input_ids"]
    assert torch.equal(_computed(ours)[2], _computed(reference)[2])


@pytest.mark.slow
def test_an_adapter_of_a_quantised_base_is_not_for_the_unquantised_one(stored, tiny_folder, phantoms_folder, tmp_path):
    backbone, source, folder = stored("blip", "nf4")
    _train_and_caption(f"{backbone}:{folder}", "lora", phantoms_folder, tmp_path)
    with pytest.raises(Exception, match="was trained on another base"):
        medgraft.load_adapter(tmp_path / "run", backbone=f"{backbone}:{source}")
