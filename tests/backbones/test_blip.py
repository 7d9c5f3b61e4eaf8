"""BLIP against transformers' own forward and generation, and the properties that training relies on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipForConditionalGeneration

from medgraft.backbones.blip import BlipBackbone
from medgraft.backbones.text_batch import TextBatch
from medgraft.backbones.wordpieces import join_punctuation
from medgraft.config import GenerationConfig
from medgraft.errors import BackboneError

CAPTIONS = ["axial ct of the chest showing a nodule.", "normal brain mri in a 54-year-old man with headache (arrow)."]


@pytest.fixture(scope="module")
def backbone(blip_folder):
    return BlipBackbone.load(str(blip_folder))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)) for shape in ((50, 90, 3), (64, 64, 3))]


@pytest.fixture(scope="module")
def reference(blip_folder):
    return BlipForConditionalGeneration.from_pretrained(blip_folder).eval()


def test_rows_start_with_dec_end_with_sep_and_hide_padding(backbone):
    text = backbone.text_batch(CAPTIONS, prompt="", max_tokens=64)
    assert text.input_ids[:, 0].tolist() == [30522, 30522]
    lengths = text.attention_mask.sum(1)
    for row, length in zip(range(2), lengths, strict=True):
        assert text.input_ids[row, length - 1] == 102
        assert (text.labels[row, 1:length] == text.input_ids[row, 1:length]).all()
        assert (text.labels[row, length:] == -100).all()
        assert (text.input_ids[row, length:] == 0).all()
    assert (text.labels[:, 0] == -100).all()


def test_the_prompt_is_no_label(backbone):
    plain = backbone.text_batch(["a nodule."], prompt="", max_tokens=64)
    prompted = backbone.text_batch(["a nodule."], prompt="a picture of", max_tokens=64)
    assert prompted.input_ids.shape[1] == plain.input_ids.shape[1] + 3
    assert prompted.labels[0].tolist() == [-100] * 4 + plain.input_ids[0, 1:].tolist()


@torch.no_grad()
def test_loss_does_not_depend_on_padding(backbone, images):
    features = backbone.encode(backbone.pixel_values(images))
    text = backbone.text_batch(CAPTIONS, prompt="", max_tokens=64)
    extra = 17
    padded = TextBatch(
        torch.nn.functional.pad(text.input_ids, (0, extra)),
        torch.nn.functional.pad(text.attention_mask, (0, extra)),
        torch.nn.functional.pad(text.labels, (0, extra), value=-100),
    )
    torch.testing.assert_close(backbone.decode(features, text)[0], backbone.decode(features, padded)[0], rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_loss_and_logits_are_transformers_own(backbone, reference, images):
    text = backbone.text_batch(CAPTIONS, prompt="", max_tokens=64)
    pixels = backbone.pixel_values(images)
    loss, logits = backbone.decode(backbone.encode(pixels), text)
    expected = reference(pixel_values=pixels, input_ids=text.input_ids, attention_mask=text.attention_mask, labels=text.labels)
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_generation_is_transformers_own(backbone, reference, images, beams):
    pixels = backbone.pixel_values(images)
    ids = reference.generate(pixel_values=pixels, max_new_tokens=12, num_beams=beams, do_sample=False)
    expected = [join_punctuation(text) for text in backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    options = GenerationConfig(max_new_tokens=12, num_beams=beams)
    assert backbone.generate(backbone.encode(pixels), options=options) == expected
    alone = [backbone.generate(backbone.encode(pixels[i : i + 1]), options=options)[0] for i in range(2)]
    assert alone == expected


@torch.no_grad()
def test_generation_goes_on_from_a_prompt_and_leaves_it_out(backbone, images):
    features = backbone.encode(backbone.pixel_values(images))
    texts = backbone.generate(features, prompt="a picture of", options=GenerationConfig(max_new_tokens=4))
    assert all(not text.startswith("a picture of") for text in texts)
    assert texts != backbone.generate(features, options=GenerationConfig(max_new_tokens=4))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@torch.no_grad()
def test_the_loss_needs_the_output_layer_at_labels_only(blip_folder, images, smoothing):
    backbone = BlipBackbone.load(str(blip_folder))
    backbone.config.text_config.label_smoothing = backbone.model.text_decoder.label_smoothing = smoothing
    features = backbone.encode(backbone.pixel_values(images))
    text = backbone.text_batch(CAPTIONS, prompt="a picture of", max_tokens=64)
    torch.testing.assert_close(backbone.loss(features, text), backbone.decode(features, text)[0], rtol=1e-6, atol=1e-6)
    assert backbone.loss(features, replace(text, labels=torch.full_like(text.labels, -100))).isnan()  # and no crash


def test_captions_read_as_they_were_written(backbone):
    for text in (
        "axial t2-weighted mri of a 54-year-old man (arrow). the mass measured 3.5 cm, no x-ray.",
        "opacities in the mid- and lower zones.",
        "pet/ct shows a left-sided lesion; l4-l5 [asterisk]: 12% stenosis.",
    ):
        ids = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert join_punctuation(backbone.tokenizer.decode(ids)) == text


def test_every_parameter_has_a_part_and_a_role(backbone):
    for name, _ in backbone.model.named_parameters():
        assert backbone.anatomy.part_of(name), name
        assert backbone.anatomy.role_of(name), name
    linear = [n for n, m in backbone.model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert {backbone.anatomy.role_of(name) for name in linear} == {"attn", "cross", "mlp", "head"}
    assert backbone.anatomy.role_of("text_decoder.bert.encoder.layer.1.crossattention.self.key") == "cross"
    assert backbone.anatomy.role_of("vision_model.post_layernorm.weight") == "norm"


def test_a_folder_that_is_not_blip(tmp_path):
    from transformers import BertConfig

    with pytest.raises(BackboneError, match=r"There is no folder \./nowhere"):
        BlipBackbone.load("./nowhere")
    with pytest.raises(BackboneError, match="is no model folder"):
        BlipBackbone.load(str(tmp_path))
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"is not blip: its config.json says model_type 'bert'"):
        BlipBackbone.load(str(tmp_path))


def test_a_checkpoint_without_a_decoder(blip_folder, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(blip_folder, tmp_path / "half")
    weights = tmp_path / "half/model.safetensors"
    kept = {k: v for k, v in load_file(weights).items() if k.startswith("vision_model")}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(
        BackboneError, match=r"is no complete BlipForConditionalGeneration: .* tensors are missing, such as text_decoder"
    ):
        BlipBackbone.load(str(tmp_path / "half"))
