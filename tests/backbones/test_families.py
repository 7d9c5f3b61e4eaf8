"""BLIP-2, InstructBLIP and vision encoder-decoders against transformers' own forward and generate."""

import shutil

import pytest
import torch
import transformers

from medgraft.config import GenerationConfig
from medgraft.errors import BackboneError
from medgraft.models import load_model
from medgraft.plugin import PluginManager
from medgraft.strategies import Strategy, get_strategy
from medgraft.testing.samples import CAPTIONS, images

QFORMERS = ["blip2-opt", "blip2-t5", "instructblip-t5", "instructblip-vicuna"]
ENCODER_DECODERS = ["vit-gpt2", "deit-bert", "dinov2-trocr", "clip-bart", "swin-roberta", "beit-electra"]


def _load(name, tiny_folder, strategy=None):
    backbone, folder = tiny_folder(name)
    return load_model(f"{backbone}:{folder}", strategy or Strategy(), plugins=PluginManager())


def _reference_inputs(backbone, prompt):
    """What transformers' processors build: image placeholders, then the prompt as the tokenizer frames it."""
    config = backbone.model.config
    head = backbone.tokenizer(prompt)["input_ids"]
    ids = torch.tensor([[config.image_token_index] * config.num_query_tokens + head] * 2)
    extra = {}
    if config.model_type == "instructblip":
        words = backbone.qformer_tokenizer(prompt)["input_ids"]
        extra["qformer_input_ids"] = torch.tensor([words, words])
    return {"pixel_values": backbone.pixel_values(images(2)), "input_ids": ids, **extra}


@pytest.fixture(params=QFORMERS)
def qformer(request, tiny_folder):
    backbone = _load(request.param, tiny_folder)
    # transformers finds image places by a token that no text may hold
    backbone.model.config.image_token_index = backbone.model.config.image_token_id = backbone.tokenizer.unk_token_id or 5
    return backbone


@pytest.mark.parametrize("prompt", ["", "a photo of"])
def test_qformer_models_say_what_transformers_says(qformer, prompt):
    if qformer.model.config.model_type == "instructblip" and not prompt:
        prompt = "describe"
    inputs = _reference_inputs(qformer, prompt)
    with torch.no_grad():
        features = qformer.encode(inputs["pixel_values"], prompt=prompt)
        reference = qformer.model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=qformer.end_id)
    if qformer.model.config.use_decoder_only_language_model:  # which then repeats what it was given
        reference = reference[:, inputs["input_ids"].shape[1] :]
    texts = qformer.tokenizer.batch_decode(reference, skip_special_tokens=True)
    mine = qformer.generate(features, prompt=prompt, options=GenerationConfig(max_new_tokens=8))
    assert mine == [text.strip() for text in texts]


def test_qformer_models_have_transformers_loss(qformer):
    prompt = "a photo of"
    inputs = _reference_inputs(qformer, prompt)
    text = qformer.text_batch(CAPTIONS, prompt=prompt)
    with torch.no_grad():
        loss, logits = qformer.decode(qformer.encode(inputs["pixel_values"], prompt=prompt), text)
        if qformer.model.config.use_decoder_only_language_model:
            places, queries = inputs["input_ids"].shape[1], qformer.model.config.num_query_tokens
            ids = torch.cat([inputs["input_ids"], text.input_ids[:, places - queries :]], dim=1)
            mask = torch.cat([torch.ones(2, queries, dtype=torch.long), text.attention_mask], dim=1)
            labels = torch.cat([torch.full((2, queries), -100), text.labels], dim=1)
            reference = qformer.model(**{**inputs, "input_ids": ids}, attention_mask=mask, labels=labels)
            torch.testing.assert_close(logits, reference.logits[:, queries:], rtol=1e-5, atol=1e-5)
        else:
            reference = qformer.model(**inputs, labels=text.labels)
            torch.testing.assert_close(logits, reference.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, reference.loss, rtol=1e-5, atol=1e-6)


def test_qformer_stays_in_fp32_under_autocast(tiny_folder):
    backbone = _load("blip2-opt", tiny_folder)
    pixels = backbone.pixel_values(images(2))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        vision = backbone.forward_to("vision", pixels, prompt="")
        bridge = backbone.forward_to("bridge", vision, prompt="")
    assert bridge.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(bridge, backbone.forward_to("bridge", vision, prompt=""))


def test_instructions_reach_the_qformer(tiny_folder):
    backbone = _load("instructblip-t5", tiny_folder)
    pixels = backbone.pixel_values(images(2))
    assert not torch.equal(backbone.encode(pixels, prompt="which side?"), backbone.encode(pixels, prompt="describe."))
    assert [seam.depends_on_prompt for seam in backbone.seams] == [False, True]


@pytest.mark.parametrize("name", ENCODER_DECODERS)
@pytest.mark.parametrize("beams", [1, 3])
def test_encoder_decoders_say_what_transformers_says(name, beams, tiny_folder):
    backbone = _load(name, tiny_folder)
    pixels, text = backbone.pixel_values(images(2)), backbone.text_batch(CAPTIONS)
    with torch.no_grad():
        features = backbone.encode(pixels)
        loss, logits = backbone.decode(features, text)
        labels = text.labels[:, 1:]
        words = {"decoder_input_ids": text.input_ids[:, :-1], "decoder_attention_mask": text.attention_mask[:, :-1]}
        reference = backbone.model(pixel_values=pixels, **words, labels=labels.contiguous())
        torch.testing.assert_close(logits[:, :-1], reference.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loss, reference.loss)
        forced = len(backbone.prompt_ids("")) - 1  # which transformers counts as new
        ids = backbone.model.generate(pixels, max_new_tokens=8 + forced, num_beams=beams, do_sample=False)
    expected = [text.strip() for text in backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    assert backbone.generate(features, options=GenerationConfig(max_new_tokens=8, num_beams=beams)) == expected


def test_old_checkpoints_without_a_named_image_processor_get_vits(tiny_folder, tmp_path):
    import json

    _, folder = tiny_folder("vit-gpt2")
    copy = shutil.copytree(folder, tmp_path / "old")
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    old = {key: value for key, value in settings.items() if key != "image_processor_type"}
    (copy / "preprocessor_config.json").write_text(
        json.dumps(old | {"feature_extractor_type": "ViTFeatureExtractor", "size": 32})
    )
    backbone = load_model(f"vit-gpt2:{copy}", Strategy(), plugins=PluginManager())
    assert torch.equal(backbone.pixel_values(images(1)), _load("vit-gpt2", tiny_folder).pixel_values(images(1)))


@pytest.mark.parametrize("strategy", ["qlora", "lora-int8"])
@pytest.mark.parametrize(("name", "vision", "text"), [("blip2-opt", 8, 12), ("blip2-t5", 8, 32), ("vit-gpt2", 12, 14)])
def test_what_is_quantised_is_counted(name, vision, text, strategy, tiny_folder, plugins):
    # 2 layers: vision qkv, projection, fc1, fc2 (ViT: q k v o, fc1, fc2); OPT q k v out fc1 fc2; T5 4 + 2 and 8 + 2 without wo
    from medgraft.strategies import quantized_modules

    backbone = _load(name, tiny_folder, get_strategy(strategy, plugins=plugins))
    parts = [backbone.anatomy.part_of(module) for module in quantized_modules(backbone.model)]
    assert (parts.count("vision"), parts.count("text"), parts.count("bridge")) == (vision, text, 0)


def test_a_model_that_quantisation_left_alone_is_refused(tiny_folder, plugins):
    from medgraft.backbones.blip2 import Blip2Backbone
    from medgraft.errors import StrategyError
    from medgraft.strategies import check_quantized

    strategy = get_strategy("qlora", plugins=plugins)
    plain = _load("blip2-opt", tiny_folder)
    with pytest.raises(
        StrategyError, match=r"8 of 8 linear layers of part 'vision' were not quantised to nf4, such as vision_model"
    ):
        check_quantized(plain.model, plain.anatomy, strategy, Blip2Backbone.never_quantized)


def test_vicunas_end_is_its_tokenizers_whatever_the_configuration_says(tiny_folder, tmp_path):
    import json

    _, folder = tiny_folder("instructblip-vicuna")
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["text_config"] |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}  # as the published one has them
    (copy / "config.json").write_text(json.dumps(config))
    backbone = load_model(f"instructblip:{copy}", Strategy(), plugins=PluginManager())
    assert backbone.end_id == backbone.tokenizer.convert_tokens_to_ids("</s>")


def test_weights_that_nothing_reads_may_be_missing(tiny_folder, tmp_path):
    _, folder = tiny_folder("vit-gpt2")
    backbone = load_model(f"vit-gpt2:{folder}", Strategy(), plugins=PluginManager())
    backbone.model.encoder.pooler = None
    backbone.model.save_pretrained(tmp_path)
    backbone.tokenizer.save_pretrained(tmp_path)
    backbone.image_processor.save_pretrained(tmp_path)
    again = load_model(f"vit-gpt2:{tmp_path}", Strategy(), plugins=PluginManager())
    assert torch.equal(again.encode(again.pixel_values(images(1))), backbone.encode(backbone.pixel_values(images(1))))


def test_incomplete_checkpoints_are_refused(tiny_folder, tmp_path):
    _, folder = tiny_folder("blip2-opt")
    model = transformers.Blip2ForConditionalGeneration.from_pretrained(folder)
    del model.language_projection.bias
    model.language_projection.register_parameter("bias", None)
    model.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"is no complete Blip2.*language_projection\.bias"):
        load_model(f"blip2:{tmp_path}", Strategy(), plugins=PluginManager())
