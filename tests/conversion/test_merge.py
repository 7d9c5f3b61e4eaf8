"""Merged folders: plain transformers loads them, and they compute what the adapter computes on its base."""

import json
import re
import shutil

import pytest
import torch
import transformers
from changed import PLUGINS, changed_adapter
from families import FAMILIES
from peft import LoraConfig, get_peft_model

from medgraft.benchmark import why_unsupported
from medgraft.cli.main import main
from medgraft.config import GenerationConfig
from medgraft.conversion import MergeOptions, merge_adapter
from medgraft.conversion.outputs import sample_examples
from medgraft.data import open_image
from medgraft.errors import AdapterError, ConfigError
from medgraft.strategies import get_strategy


def _name(tiny_folder, name):
    kind, folder = tiny_folder(name)
    return f"{kind}:{folder}"


def _merge(adapter, out, **options):
    return merge_adapter(adapter, out, plugins=PLUGINS, options=MergeOptions(**{"images": 4, **options}))


@pytest.mark.parametrize("strategy", ["full", "lora", "dora", "ia3", "qlora", "lora-int8"])
def test_plain_transformers_gives_the_same_captions(strategy, tiny_folder, tmp_path, monkeypatch):
    adapter = changed_adapter(_name(tiny_folder, "blip"), strategy, tmp_path / "adapter")
    merged = _merge(adapter, tmp_path / "merged")
    quantized = strategy in ("qlora", "lora-int8")
    assert merged.logits_difference < (1e-2 if quantized else 1e-6) and merged.images == 4
    assert bool(merged.dequantized_from) == quantized
    assert merged.changed_captions == 0 == 4 - merged.plain_captions
    recipe = (tmp_path / "merged/README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    example = sample_examples(None, 4, plugins=PLUGINS)[0]
    open_image(example.image).save("image.jpg", quality=100, subsampling=0)
    printed = []
    exec(recipe, {"print": printed.append})
    assert len(printed) == 1
    transformers.pipeline("image-text-to-text", model=str(tmp_path / "merged"), device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_preset_of_every_family_merges(name, tiny_folder, tmp_path):
    backbone = _name(tiny_folder, name)
    merged, changed = 0, 0
    for strategy in PLUGINS.names("strategy"):
        plan = get_strategy(strategy, plugins=PLUGINS)
        if not plan.trains or why_unsupported(backbone, plan, plugins=PLUGINS) is not None:
            continue
        found = _merge(changed_adapter(backbone, strategy, tmp_path / strategy), tmp_path / f"{strategy}-merged", images=2)
        limit = 5e-2 if plan.quantization != "none" else 1e-5
        assert found.logits_difference < limit * found.largest_logit, strategy
        card = (tmp_path / f"{strategy}-merged/README.md").read_text()
        loader = re.search(r"(\w+)\.from_pretrained", card.split("## Use")[1])[1]
        assert loader == ("AutoModelForVisualQuestionAnswering" if name == "blip-vqa" else "AutoModelForImageTextToText")
        model = getattr(transformers, loader).from_pretrained(tmp_path / f"{strategy}-merged")
        assert type(model).__name__ == found.model_class
        if plan.quantization == "none":
            changed += found.changed_captions
        merged += 1
    assert merged >= 10 and changed == 0


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_weights_are_stored_in_the_dtype_that_is_asked_for(dtype, torch_dtype, tiny_folder, tmp_path):
    adapter = changed_adapter(_name(tiny_folder, "vit-gpt2"), "full", tmp_path / "adapter")
    merged = _merge(adapter, tmp_path / "merged", dtype=dtype)
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert model.dtype == torch_dtype
    assert 0 < merged.logits_difference < 0.05 * merged.largest_logit


def test_generation_settings_of_the_adapter_come_along(tiny_folder, tmp_path):
    adapter = changed_adapter(_name(tiny_folder, "vit-gpt2"), "lora", tmp_path / "adapter")
    manifest = json.loads((adapter / "medgraft.json").read_text())
    settings = {"max_new_tokens": 7, "num_beams": 2, "do_sample": True, "top_p": 0.9, "num_return_sequences": 2}
    manifest["evaluation"] = {"generation": GenerationConfig(**settings).recorded()}
    (adapter / "medgraft.json").write_text(json.dumps(manifest))
    merged = _merge(adapter, tmp_path / "merged")
    found = transformers.GenerationConfig.from_pretrained(tmp_path / "merged")
    assert settings.items() <= vars(found).items() and found.decoder_start_token_id == 0
    assert merged.changed_captions == 0 and merged.plain_captions == merged.images  # compared without sampling


def test_a_plain_peft_adapter_merges(tiny_folder, tmp_path):
    name = _name(tiny_folder, "blip")
    model = transformers.BlipForConditionalGeneration.from_pretrained(tiny_folder("blip")[1])
    plain = get_peft_model(model, LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    plain.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    merged = merge_adapter(
        tmp_path / "theirs", tmp_path / "merged", plugins=PLUGINS, backbone=name, options=MergeOptions(images=2)
    )
    assert merged.logits_difference < 1e-6
    merged_query = transformers.BlipForConditionalGeneration.from_pretrained(tmp_path / "merged").state_dict()
    key = "text_decoder.bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(merged_query[key], model.state_dict()[key.replace(".weight", ".base_layer.weight")])


def test_what_cannot_be_merged_is_refused_by_name_and_nothing_is_written(tiny_folder, tmp_path, monkeypatch):
    adapter = changed_adapter(_name(tiny_folder, "blip"), "peft:hira", tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    assert weights.exists()
    from peft.tuners.hira import HiraModel

    def fails(self, **_):  # as a method of a later PEFT may; all of today's that train here can be merged
        raise NotImplementedError("no merging.")

    monkeypatch.setattr(HiraModel, "merge_and_unload", fails)
    with pytest.raises(AdapterError, match=r"PEFT cannot merge HIRA: no merging\."):
        _merge(adapter, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "record.json"]


def test_mistakes_are_one_line(tiny_folder, tmp_path, capsys):
    adapter = changed_adapter(_name(tiny_folder, "blip"), "bitfit", tmp_path / "adapter")
    with pytest.raises(
        AdapterError, match=r"medgraft writes transformers folders, and no onnx for blip: no well-kept exporter"
    ):
        _merge(adapter, tmp_path / "merged", format="onnx")
    with pytest.raises(ConfigError, match="at least one image"):
        merge_adapter(adapter, tmp_path / "merged", plugins=PLUGINS, options=MergeOptions(images=0))
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/notes").write_text("mine")
    assert main(["adapter", "merge", str(adapter), "--out", str(tmp_path / "merged")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and (tmp_path / "merged/notes").read_text() == "mine"


def test_the_command_prints_the_proof(tiny_folder, tmp_path, capsys):
    adapter = changed_adapter(_name(tiny_folder, "blip"), "norm-tuning", tmp_path / "adapter")
    words = ["adapter", "-q", "merge", str(adapter), "--out", str(tmp_path / "merged"), "--images", "2"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["logits_difference"], found["changed_captions"], found["images"]) == (0.0, 0, 2)
    shutil.rmtree(tmp_path / "merged")
    assert main(words) == 0
    assert "0 of 2 captions changed" in capsys.readouterr().out
