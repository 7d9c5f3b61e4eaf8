"""Vision-language models through the conformance kit, and against transformers' own processors, forward and generate."""

import inspect
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from PIL import Image
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from medgraft.backbones import get_captioner
from medgraft.config import GenerationConfig
from medgraft.errors import BackboneError, UnknownNameError
from medgraft.plugin import PluginManager
from medgraft.strategies import get_strategy, quantized_modules
from medgraft.testing import check_backbone, check_strategy
from medgraft.testing.backbone_checks import CAPTIONS, images

MANAGER = PluginManager()
MODELS = sorted(next(spec for spec, _ in MANAGER.specs("backbone") if spec.name == "vlm").tiny)
PROMPT = "what is shown?"


@pytest.fixture(params=MODELS)
def backbone(request, tiny_folder):
    name, folder = tiny_folder(request.param)
    return MANAGER.get("backbone", name).load(str(folder))


@pytest.fixture
def processor(backbone, monkeypatch):
    """transformers' processor of the model, by its own constructor; what it has for videos is left out."""
    settings = json.loads((Path(backbone.source) / "processor_config.json").read_text())
    if settings["processor_class"] == "PixtralProcessor":
        return backbone.processor  # transformers' own needs torchvision; its text is compared below
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)
    monkeypatch.setattr(transformers.ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    kind = getattr(transformers, settings["processor_class"])
    wanted = inspect.signature(kind.__init__).parameters
    given = {key: value for key, value in settings.items() if key in wanted}
    given |= {"video_processor": SimpleNamespace(num_frames=1, fps=1, size={})} if "video_processor" in wanted else {}
    tokenizer = transformers.AutoTokenizer.from_pretrained(backbone.source)
    pictures = transformers.AutoImageProcessor.from_pretrained(backbone.source, backend="pil")
    return kind(image_processor=pictures, tokenizer=tokenizer, chat_template=tokenizer.chat_template, **given)


def spoken(processor, backbone, captions=None):
    """What the processor makes of two images and the whole conversation, or of what comes before the answer."""
    pictures = [[backbone.geometry.fitted(image)] for image in images(2)]
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
    if processor.chat_template is None:
        suffix = {} if captions is None else {"suffix": list(captions)}
        return processor(text=[f"<image>{PROMPT}"] * 2, images=pictures, return_tensors="pt", padding=True, **suffix)
    if captions is None:
        return processor.apply_chat_template(
            [[{**asked, "content": [{"type": "image", "image": one}, asked["content"][1]]}] for (one,) in pictures],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
    texts = []
    for caption in captions:
        said = {"role": "assistant", "content": [{"type": "text", "text": caption}]}
        text, end = processor.apply_chat_template([asked, said]).rstrip(), processor.tokenizer.decode([backbone.end_id])
        texts.append(text if text.endswith(end) else text + end)
    begun = processor.tokenizer.bos_token and texts[0].startswith(processor.tokenizer.bos_token)
    return processor(
        text=texts, images=pictures, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=not begun
    )


def test_prompt_is_what_the_processor_makes_of_the_chat(backbone, processor):
    made = spoken(processor, backbone)
    assert made["input_ids"].tolist() == [backbone.prompt_ids(PROMPT)] * 2
    pixels = backbone.pixel_values(images(2))
    assert torch.equal(pixels.flatten(), made["pixel_values"].flatten())
    placeholders = int((made["input_ids"][0] == backbone.config.image_token_id).sum())
    assert backbone.encode(pixels).shape[:2] == (2, placeholders) and backbone.image_tokens >= placeholders


def test_loss_is_that_of_transformers(backbone, processor):
    made, text = spoken(processor, backbone, CAPTIONS), backbone.text_batch(CAPTIONS, prompt=PROMPT, max_tokens=400)
    assert torch.equal(made["input_ids"], text.input_ids)
    assert torch.equal(made["attention_mask"], text.attention_mask)
    made.pop("labels", None)
    with torch.no_grad():
        expected = backbone.model(**made, labels=text.labels)
        features = backbone.encode(backbone.pixel_values(images(2)))
        loss, logits = backbone.decode(features, text)
    torch.testing.assert_close(loss, expected.loss, rtol=0, atol=1e-5)
    seen = text.attention_mask.bool()
    torch.testing.assert_close(logits[seen], expected.logits[seen], rtol=0, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_are_those_of_transformers(beams, backbone, processor):
    made = spoken(processor, backbone)
    made.pop("labels", None)
    with torch.no_grad():
        ids = backbone.model.generate(
            **made, max_new_tokens=8, num_beams=beams, do_sample=False, eos_token_id=backbone.end_id, pad_token_id=backbone.pad_id
        )[:, made["input_ids"].shape[1] :]
        features = backbone.encode(backbone.pixel_values(images(2)))
        said = backbone.generate(features, prompt=PROMPT, options=GenerationConfig(max_new_tokens=8, num_beams=beams))
    assert said == [line.strip() for line in backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_keeps_the_contract(model, tiny_folder):
    name, folder = tiny_folder(model)
    check_backbone(MANAGER.get("backbone", name), folder)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("strategy", MANAGER.names("strategy"))
def test_every_strategy_trains_or_is_refused(strategy, model, tiny_folder):
    from medgraft.benchmark import why_unsupported

    name, folder = tiny_folder(model)
    plan = get_strategy(strategy, plugins=MANAGER)
    why = why_unsupported(f"{name}:{folder}", plan, plugins=MANAGER)
    if why is None:
        check_strategy(plan, f"{name}:{folder}", plugins=MANAGER)
    else:
        assert strategy == "bitfit" and why == "The strategy trains biases in part 'text', but it has none."
