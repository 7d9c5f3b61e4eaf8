"""Qwen-VL through the conformance kit, and against transformers' own forward and generate."""

import json

import pytest
import torch

from medgraft.config import GenerationConfig
from medgraft.plugin import PluginManager
from medgraft.strategies import get_strategy
from medgraft.testing import check_backbone, check_strategy
from medgraft.testing.samples import CAPTIONS, images

MANAGER = PluginManager()
MODELS = ["qwen2.5-vl", "qwen2-vl"]


@pytest.fixture(params=MODELS)
def backbone(request, tiny_folder):
    name, folder = tiny_folder(request.param)
    return MANAGER.get("backbone", name).load(str(folder))


@pytest.mark.parametrize("model", MODELS)
def test_keeps_the_contract(model, tiny_folder):
    name, folder = tiny_folder(model)
    check_backbone(MANAGER.get("backbone", name), folder)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("strategy", MANAGER.names("strategy"))
def test_every_strategy(strategy, model, tiny_folder):
    name, folder = tiny_folder(model)
    from medgraft.benchmark import why_unsupported

    plan = get_strategy(strategy, plugins=MANAGER)
    if strategy == "bitfit":  # Qwen's language models have biases in attention: that is what is trained
        assert why_unsupported(f"{name}:{folder}", plan, plugins=MANAGER) is None
    check_strategy(plan, f"{name}:{folder}", plugins=MANAGER)


def _reference(backbone, text):
    pixels = backbone.pixel_values(images(2))
    return {
        "pixel_values": pixels.flatten(0, 1),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 2),
        "mm_token_type_ids": (text == backbone.model.config.image_token_id).int(),
        "input_ids": text,
    }, pixels


@pytest.mark.parametrize("beams", [1, 3])
def test_says_what_transformers_says(backbone, beams):
    text = backbone.text_batch(CAPTIONS, prompt="what is shown?")
    inputs, pixels = _reference(backbone, text.input_ids)
    with torch.no_grad():
        reference = backbone.model(**inputs, attention_mask=text.attention_mask, labels=text.labels)
        loss, logits = backbone.decode(backbone.encode(pixels), text)
    torch.testing.assert_close(loss, reference.loss)
    torch.testing.assert_close(logits[text.attention_mask.bool()], reference.logits[text.attention_mask.bool()])
    head = torch.tensor([backbone.prompt_ids("what is shown?")] * 2)
    inputs, _ = _reference(backbone, head)
    with torch.no_grad():
        ids = backbone.model.generate(**inputs, max_new_tokens=8, num_beams=beams, do_sample=False)[:, head.shape[1] :]
    said = backbone.generate(
        backbone.encode(pixels), prompt="what is shown?", options=GenerationConfig(max_new_tokens=8, num_beams=beams)
    )
    assert said == [line.strip() for line in backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def test_the_prompt_is_a_message_with_the_image(backbone):
    text = backbone.tokenizer.decode(backbone.prompt_ids("which side?"))
    assert text == (
        "<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * 4
        + "<|vision_end|>which side?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_beside_the_tokenizer_is_found(tiny_folder, tmp_path):
    import shutil

    name, folder = tiny_folder("qwen2.5-vl")
    copy = shutil.copytree(folder, tmp_path / "copy")
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    kind = MANAGER.get("backbone", name)
    assert kind.load(str(copy)).prompt_ids("x") == kind.load(str(folder)).prompt_ids("x")
