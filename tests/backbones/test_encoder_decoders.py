"""The encoders and decoders of vision encoder-decoders: where captions begin and end, where adapters land, what is refused."""

import json
import shutil

import pytest
import torch
import transformers

from medgraft.backbones.loading import build_on_meta
from medgraft.backbones.vision_encoder_decoder import VisionEncoderDecoderBackbone
from medgraft.errors import BackboneError, StrategyError
from medgraft.models import load_model
from medgraft.plugin import PluginManager
from medgraft.strategies import PartPlan, Strategy, apply_strategy, get_strategy
from medgraft.testing.samples import images

LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHES = {"image_size": 32, "patch_size": 8}
STAGES = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}


def _config(encoder, decoder=None):
    decoder = decoder or transformers.BertConfig(**LAYERS, vocab_size=100)
    return transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)


def _adapted(model, strategy):
    """How many modules get an adapter in the vision tower, the bridge and the decoder."""
    anatomy = VisionEncoderDecoderBackbone.anatomy
    names = apply_strategy(model, anatomy, strategy).matched_modules
    parts = [anatomy.part_of(name) for name in names]
    return parts.count("vision"), parts.count("bridge"), parts.count("text")


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # 2 layers: vision q k v o fc1 fc2; GPT-2 2 + 3 + 2; the others q k v o, twice, and two of the MLP
        ("vit-gpt2", (12, 0, 14)), ("deit-bert", (12, 1, 20)), ("dinov2-trocr", (12, 0, 20)), ("clip-bart", (12, 0, 20)),
        ("swin-roberta", (13, 0, 20)), ("beit-electra", (12, 0, 21)),
    ],
)  # fmt: skip
def test_lora_lands_in_every_layer_of_encoder_and_decoder(name, expected, tiny_folder, plugins):
    _, folder = tiny_folder(name)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = VisionEncoderDecoderBackbone.meta_model(config)
    assert _adapted(model, get_strategy("lora", plugins=plugins)) == expected


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        (transformers.SiglipVisionConfig(**LAYERS, **PATCHES), 12),
        (transformers.DINOv3ViTConfig(**LAYERS, **PATCHES), 12),
        (transformers.Dinov2Config(**{**LAYERS, **PATCHES, "intermediate_size": None}, use_swiglu_ffn=True), 14),
        (transformers.Swinv2Config(**STAGES), 13),
        (transformers.DonutSwinConfig(**STAGES), 13),
        (transformers.Data2VecVisionConfig(**LAYERS, **PATCHES), 12),
        (transformers.IJepaConfig(**LAYERS, **PATCHES), 12),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_lora_lands_in_other_encoders(encoder, expected, plugins):
    model = build_on_meta("VisionEncoderDecoderModel", _config(encoder))
    assert _adapted(model, get_strategy("lora", plugins=plugins))[0] == expected


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [
        (transformers.MBartConfig(d_model=32, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=64), 20),
        (transformers.XLMRobertaConfig(**LAYERS), 20),
        (transformers.BertGenerationConfig(**LAYERS), 20),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_lora_lands_in_other_decoders(decoder, expected, plugins):
    model = build_on_meta("VisionEncoderDecoderModel", _config(transformers.ViTConfig(**LAYERS, **PATCHES), decoder))
    assert _adapted(model, get_strategy("lora", plugins=plugins))[2] == expected


@pytest.mark.parametrize(
    ("half", "says"),
    [
        ({"decoder": transformers.BioGptConfig(**LAYERS)}, "the decoder biogpt has no cross-attention"),
        ({"decoder": transformers.LlamaConfig(**LAYERS)}, "the decoder llama has no cross-attention"),
        ({"encoder": transformers.ViTMAEConfig(**LAYERS, **PATCHES)}, "the encoder vit_mae hides random patches"),
        ({"encoder": transformers.ConvNextConfig()}, "the encoder convnext does not give a sequence of patches"),
        ({"encoder": transformers.CLIPConfig()}, "the encoder clip does not give .* such as clip_vision_model"),
    ],
)
@pytest.mark.parametrize("step", ["load", "fingerprint"])
def test_halves_that_do_not_fit_are_refused_by_name(half, says, step, tiny_folder, tmp_path):
    _, folder = tiny_folder("vit-gpt2")
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config |= {name: value.to_dict() for name, value in half.items()}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match=says) as caught:
        getattr(VisionEncoderDecoderBackbone, step)(str(copy))
    assert "\n" not in str(caught.value)


def test_a_decoder_that_was_built_without_cross_attention_is_refused(tiny_folder, tmp_path):
    _, folder = tiny_folder("deit-bert")
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["decoder"]["add_cross_attention"] = False
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match="the decoder bert has no cross-attention"):
        VisionEncoderDecoderBackbone.load(str(copy))


@pytest.mark.parametrize(
    ("name", "start", "end"), [("dinov2-trocr", [2], 2), ("clip-bart", [2, 0], 2), ("swin-roberta", [0], 2)]
)
def test_captions_begin_and_end_where_the_checkpoint_says(name, start, end, tiny_folder):
    # TrOCR has the start token in the decoder's configuration alone, BART forces <s> after </s>
    _, folder = tiny_folder(name)
    backbone = VisionEncoderDecoderBackbone.load(str(folder))
    assert (backbone.prompt_ids(""), backbone.end_id) == (start, end)


def test_berts_own_tokenizer_says_where_captions_begin_and_end(tiny_folder, tmp_path):
    _, folder = tiny_folder("deit-bert")
    copy = shutil.copytree(folder, tmp_path / "copy")
    for file in ("config.json", "generation_config.json"):
        content = json.loads((copy / file).read_text())
        for settings in (content, content.get("decoder", {})):
            for key in ("decoder_start_token_id", "bos_token_id", "eos_token_id"):
                settings.pop(key, None)
        (copy / file).write_text(json.dumps(content))
    backbone = VisionEncoderDecoderBackbone.load(str(copy))
    words = backbone.tokenizer
    assert (backbone.prompt_ids(""), backbone.end_id) == ([words.cls_token_id], words.sep_token_id)
    words.cls_token = None
    with pytest.raises(BackboneError, match=r"set decoder_start_token_id in its config\.json"):
        VisionEncoderDecoderBackbone(str(copy), backbone.model, words, backbone.image_processor)


def test_robertas_captions_fill_the_positions_that_it_has(tiny_folder):
    _, folder = tiny_folder("swin-roberta")
    backbone = VisionEncoderDecoderBackbone.load(str(folder))
    assert backbone.max_positions == 160  # of 162, as its padding is token 1
    text = backbone.text_batch(["word " * 100], max_tokens=10_000)
    assert text.input_ids.shape == (1, 160)
    with torch.no_grad():
        backbone.decode(backbone.encode(backbone.pixel_values(images(1))), text)


def test_a_caption_that_is_cut_off_does_not_end(tiny_folder):
    _, folder = tiny_folder("clip-bart")  # BART's configuration forces an end token
    backbone = VisionEncoderDecoderBackbone.load(str(folder))
    inputs = torch.tensor([backbone.prompt_ids("")]), transformers.GenerationConfig(max_new_tokens=3, do_sample=False)
    with torch.no_grad():
        ids = backbone.generate_ids(backbone.encode(backbone.pixel_values(images(1))), *inputs)
    assert ids.shape == (1, 3)
    assert backbone.end_id not in ids


def test_a_part_in_which_an_adapter_matches_nothing_is_an_error(tiny_folder):
    backbone, folder = tiny_folder("blip2-opt")
    model = load_model(f"{backbone}:{folder}", Strategy(), plugins=PluginManager())
    adapter = PartPlan(mode="adapter")
    strategy = Strategy(vision=adapter, text=PartPlan(mode="adapter", roles=("cross",)))
    with pytest.raises(
        StrategyError, match=r"part 'text', in which Blip2ForConditionalGeneration has no module of role cross\. Choose"
    ):
        apply_strategy(model.model, model.anatomy, strategy)
