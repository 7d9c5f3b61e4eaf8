"""Vision-language models through the conformance kit, and against transformers' own processors, forward and generate."""

import inspect
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from medgraft.backbones import get_captioner
from medgraft.benchmark import why_unsupported
from medgraft.config import GenerationConfig
from medgraft.errors import BackboneError, ConfigError, UnknownNameError
from medgraft.plugin import PluginManager
from medgraft.strategies import get_strategy, quantized_modules
from medgraft.testing import check_backbone, check_strategy
from medgraft.testing.samples import CAPTIONS, images

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
            **made,
            max_new_tokens=8,
            num_beams=beams,
            do_sample=False,
            eos_token_id=backbone.end_id,
            pad_token_id=backbone.pad_id,
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
@pytest.mark.parametrize(
    ("model", "strategy"),
    [
        pytest.param(m, s, marks=() if m == "vlm-llava" or s in ("lora", "qlora", "bitfit") else pytest.mark.exhaustive)
        for m in MODELS
        for s in MANAGER.names("strategy")
    ],
)
def test_every_strategy_trains_or_is_refused(model, strategy, tiny_folder):
    name, folder = tiny_folder(model)
    plan = get_strategy(strategy, plugins=MANAGER)
    why = why_unsupported(f"{name}:{folder}", plan, plugins=MANAGER)
    if why is None:
        check_strategy(plan, f"{name}:{folder}", plugins=MANAGER)
    else:
        part = "vision" if model in ("vlm-pixtral", "vlm-mistral3") else "text"
        assert strategy == "bitfit" and why == f"The strategy trains biases in part {part!r}, but it has none."


@pytest.mark.parametrize(
    ("model", "size", "tokens"),
    [
        ("vlm-qwen2.5-vl", 16, 1),
        ("vlm-pixtral", 16, 4),
        ("vlm-smolvlm", 32, 4),
        ("vlm-smolvlm", 96, 40),
        ("vlm-mistral3", 64, 16),
    ],
)
def test_image_size(model, size, tokens, tiny_folder):
    name, folder = tiny_folder(model)
    found = MANAGER.get("backbone", name).load(str(folder))
    before = found.image_settings()
    found.set_image_size(size)
    assert found.image_settings() != before
    assert found.prompt_ids("x").count(found.config.image_token_id) == tokens
    assert found.encode(found.pixel_values(images(2))).shape[:2] == (2, tokens)


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        ("vlm-llava", 64, "takes images of one size"),
        ("vlm-gemma3", 64, "takes images of one size"),
        ("vlm-pixtral", 64, "32 pixels"),
    ],
)
def test_image_sizes_that_the_model_does_not_have(model, size, message, tiny_folder):
    name, folder = tiny_folder(model)
    with pytest.raises(BackboneError, match=message):
        MANAGER.get("backbone", name).load(str(folder)).set_image_size(size)


def test_padded_images_are_said(tiny_folder, logged):
    said = {}
    for model in ("vlm-llava", "vlm-gemma3", "vlm-smolvlm", "vlm-qwen2.5-vl"):
        name, folder = tiny_folder(model)
        with logged() as lines:
            MANAGER.get("backbone", name).load(str(folder))
        said[model] = [line for line in lines if "square" in line]
    assert said["vlm-llava"] == said["vlm-gemma3"] == []
    assert said["vlm-smolvlm"] == ["images are padded to a square, so that each has the same number of tokens (34)"]
    assert said["vlm-qwen2.5-vl"] == ["images are padded to a square of 448 px, so that each has the same number of tokens (4)"]


def test_pixtral_marks_rows(tiny_folder):
    name, folder = tiny_folder("vlm-pixtral")
    found = MANAGER.get("backbone", name).load(str(folder))
    text = found.tokenizer.decode(found.prompt_ids("where?"))
    rows = "[IMG_BREAK]".join(["[IMG]" * 4] * 4)
    assert text == f"<s>[INST]{rows}[IMG_END]where?[/INST]"


def test_answers_begin_as_the_template_has_them(tiny_folder):
    ends = {}
    for model in ("vlm-llava", "vlm-smolvlm", "vlm-gemma3", "vlm-pixtral", "vlm-qwen3-vl", "vlm-paligemma"):
        name, folder = tiny_folder(model)
        found = MANAGER.get("backbone", name).load(str(folder))
        ids = found.token_ids(["a b"])[0]
        assert [found.tokenizer.decode(ids), len(found.token_spans(["a b"])[0])] == [
            " a b" if model in ("vlm-llava", "vlm-smolvlm") else "a b", len(ids)
        ]  # fmt: skip
        ends[model] = found.tokenizer.decode([found.end_id])
    assert list(ends.values()) == ["</s>", "<end_of_utterance>", "<end_of_turn>", "</s>", "<|im_end|>", "<eos>"]


@pytest.mark.parametrize("model", ["vlm-llava", "vlm-qwen3-vl", "vlm-mistral3"])
def test_all_linear_layers_of_tower_and_language_model_are_quantised(model, tiny_folder):
    from medgraft.models import load_model

    name, folder = tiny_folder(model)
    found = load_model(f"{name}:{folder}", get_strategy("qlora", plugins=MANAGER), plugins=MANAGER)
    plain = get_captioner(f"{name}:{folder}", plugins=MANAGER)[0].load(str(folder)).model
    linear = {n for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear)}
    left = {n for n in linear if n == "lm_head" or found.anatomy.part_of(n) == "bridge"}
    assert left and set(quantized_modules(found.model)) == linear - left


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("chat_template.jinja", None, "has no chat template that takes images; use an instruction-tuned checkpoint"),
        ("processor_config.json", {"processor_class": "MadeUpProcessor"}, "has no processor that is known.*'MadeUpProcessor'"),
        ("config.json", {"model_type": "llama"}, "model_type 'llama'"),
    ],
)
def test_what_is_no_chat_model_is_refused(file, content, message, tiny_folder, tmp_path):
    name, folder = tiny_folder("vlm-llava")
    copy = shutil.copytree(folder, tmp_path / "copy")
    if content is None:
        (copy / file).unlink()
    else:
        (copy / file).write_text(json.dumps(content))
    with pytest.raises(BackboneError, match=message) as refused:
        MANAGER.get("backbone", name).load(str(copy))
    assert len(str(refused.value)) < 400 and "\n" not in str(refused.value)


def test_the_prompt_cannot_hold_the_image(tiny_folder):
    name, folder = tiny_folder("vlm-llava")
    with pytest.raises(ConfigError, match="holds <image>, which stands for the image"):
        MANAGER.get("backbone", name).load(str(folder)).prompt_ids("<image> what?")


@pytest.mark.parametrize(
    "name", ["gemma3", "medgemma", "gemma-3", "llava-1.5", "LLaVA_next", "smolvlm2", "pixtral", "internvl3"]
)
def test_families_lead_here(name):
    with pytest.raises(UnknownNameError) as unknown:
        MANAGER.get("backbone", name)
    assert str(unknown.value) == f"Unknown backbone {name!r}. Use vlm:HUB_ID or vlm:FOLDER, which takes {name} models."


@pytest.mark.parametrize("name", ["gemma3", "gemin", "geminy", "openia"])
def test_no_server_is_suggested_for_another_name(name):
    with pytest.raises(UnknownNameError) as unknown:
        MANAGER.get("backbone", name)
    hint = str(unknown.value).partition(" Known:")[0]
    assert "gemini" not in hint.removeprefix(f"Unknown backbone {name!r}") and "'openai'" not in hint
