"""Small random models of many architectures, with chat templates in the form of the published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from medgraft.plugin_api import byte_tokenizer, save_pretrained

_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 512}  # fmt: skip
_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
           "patch_size": 8}  # fmt: skip
_IM = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "start_token": "<|im_start|>"}
_LLAMA = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "image_token": "<image>"}
_SIZE = {"height": 32, "width": 32}

_PARTS = (
    "{%% for part in message['content'] %%}{%% if part['type'] == 'image' %%}%s"
    "{%% else %%}{{ part['text'] }}{%% endif %%}{%% endfor %%}"
)
_CHATML = (
    "{%% for message in messages %%}<|im_start|>{{ message['role'] }}\n" + _PARTS + "<|im_end|>\n{%% endfor %%}"
    "{%% if add_generation_prompt %%}<|im_start|>assistant\n{%% endif %%}"
)
_GEMMA = (
    "{{ bos_token }}{%% for message in messages %%}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n" + _PARTS + "<end_of_turn>\n{%% endfor %%}"
    "{%% if add_generation_prompt %%}<start_of_turn>model\n{%% endif %%}"
) % "<start_of_image>"
_LLAVA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{%% for message in messages %%}{%% if message['role'] == 'user' %%}[INST]" + _PARTS
    + "[/INST]{%% else %%}{{ message['content'][0]['text'] + eos_token }}{%% endif %%}{%% endfor %%}"
)  # fmt: skip
_IDEFICS = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def llava(folder: Path) -> None:
    """LLaVA 1.5: CLIP without its class token and last layer, and Llama."""
    vision = transformers.CLIPVisionConfig(**_VISION)
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=_SIZE)
    _llava(folder, "Llava", vision, images, {}, feature={"vision_feature_layer": -2})


def llava_next(folder: Path) -> None:
    """LLaVA-NeXT: as LLaVA, with an image in tiles."""
    points = [[32, 64], [64, 32], [64, 64]]
    images = transformers.LlavaNextImageProcessorPil(size={"shortest_edge": 32}, crop_size=_SIZE, image_grid_pinpoints=points)
    vision = transformers.CLIPVisionConfig(**_VISION)
    _llava(folder, "LlavaNext", vision, images, {"image_grid_pinpoints": points}, feature={"vision_feature_layer": -2})


def llava_onevision(folder: Path) -> None:
    """LLaVA-OneVision: SigLIP with tiles, and Qwen2."""
    points = [[32, 32], [32, 64], [64, 32], [64, 64]]
    tokens = {**_IM, "image_token": "<image>", "video_token": "<video>"}
    tokenizer = _tokenizer(_CHATML % "{{ '<image>\n' }}", **tokens)
    config = transformers.LlavaOnevisionConfig(
        text_config=_text("Qwen2", tokenizer, _without_head_dim=True),
        vision_config=transformers.SiglipVisionConfig(**_VISION, vision_use_head=False), image_grid_pinpoints=points,
        image_token_index=tokenizer.image_token_id, video_token_index=tokenizer.video_token_id,
    )  # fmt: skip
    images = transformers.LlavaOnevisionImageProcessorPil(size=_SIZE, image_grid_pinpoints=points)
    settings = {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"}
    _save(folder, "LlavaOnevision", config, tokenizer, images, settings)


def gemma3(folder: Path) -> None:
    """Gemma 3, as MedGemma: SigLIP, and a language model in which an image's tokens see each other."""
    tokenizer = _tokenizer(
        _GEMMA, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", start_token="<start_of_turn>",
        end_token="<end_of_turn>", boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>",
    )  # fmt: skip
    text = {**_text("Gemma3Text", tokenizer).to_dict(), "layer_types": ["sliding_attention", "full_attention"]}
    config = transformers.Gemma3Config(
        text_config={**text, "sliding_window": 64, "query_pre_attn_scalar": 16}, mm_tokens_per_image=4,
        vision_config=transformers.SiglipVisionConfig(**_VISION, vision_use_head=False).to_dict(),
        image_token_index=tokenizer.image_token_id, boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id, eos_token_id=[1, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
    )  # fmt: skip
    images = transformers.Gemma3ImageProcessorPil(size=_SIZE)
    _save(folder, "Gemma3", config, tokenizer, images, {"image_seq_length": 4})


def paligemma(folder: Path) -> None:
    """PaliGemma: SigLIP and Gemma, without a chat template."""
    tokenizer = _tokenizer(None, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", image_token="<image>")
    places = {f"<{kind}{number:0{width}}>": None for kind, count, width in (("loc", 1024, 4), ("seg", 128, 3))
              for number in range(count)}  # fmt: skip
    tokenizer.add_tokens(list(places))
    config = transformers.PaliGemmaConfig(
        text_config=_text("Gemma", tokenizer), vision_config=transformers.SiglipVisionConfig(**_VISION, vision_use_head=False),
        image_token_index=tokenizer.image_token_id, projection_dim=32, hidden_size=32,
    )  # fmt: skip
    images = transformers.SiglipImageProcessorPil(size=_SIZE)
    images.image_seq_length = 16
    _save(folder, "PaliGemma", config, tokenizer, images, {})


def smolvlm(folder: Path) -> None:
    """SmolVLM: SigLIP with 4 tiles and the whole, tokens shuffled, and Llama."""
    _idefics(folder, "SmolVLM", transformers.SmolVLMImageProcessorPil)


def idefics3(folder: Path) -> None:
    """Idefics 3: as SmolVLM."""
    _idefics(folder, "Idefics3", transformers.Idefics3ImageProcessorPil)


def internvl(folder: Path) -> None:
    """InternVL 3: InternViT with tiles, and Qwen2."""
    tokenizer = _tokenizer(
        _CHATML % "{{ '<IMG_CONTEXT>\n' }}", **_IM, start_image_token="<img>", end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>", video_token="<video>",
    )  # fmt: skip
    vision = {**_VISION, "image_size": [32, 32], "patch_size": [8, 8], "use_mean_pooling": True}
    config = transformers.InternVLConfig(
        text_config=_text("Qwen2", tokenizer, _without_head_dim=True), vision_config=vision, image_seq_length=4,
        image_token_id=tokenizer.context_image_token_id,
    )  # fmt: skip
    images = transformers.GotOcr2ImageProcessorPil(size=_SIZE, crop_to_patches=True, max_patches=4)
    _save(folder, "InternVL", config, tokenizer, images, {"image_seq_length": 4})


def pixtral(folder: Path) -> None:
    """Pixtral in the form of LLaVA: images at their own size, in rows of tokens, and Mistral."""
    vision = transformers.PixtralVisionConfig(**{**_VISION, "head_dim": 16})
    images = transformers.PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size={"height": 8, "width": 8})
    feature = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    _llava(folder, "Llava", vision, images, {}, feature=feature, pixtral=True)


def mistral3(folder: Path) -> None:
    """Mistral Small 3.1: as Pixtral, with four patches merged into a token."""
    tokenizer = _pixtral_tokenizer()
    config = transformers.Mistral3Config(
        text_config=_text("Mistral", tokenizer), vision_config=transformers.PixtralVisionConfig(**{**_VISION, "head_dim": 16}),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"), spatial_merge_size=2,
    )  # fmt: skip
    images = transformers.PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size={"height": 8, "width": 8})
    settings = {"patch_size": 8, "spatial_merge_size": 2, "processor_class": "PixtralProcessor"}
    _save(folder, "Mistral3", config, tokenizer, images, settings)


def qwen2_vl(folder: Path) -> None:
    """Qwen2-VL."""
    vision = {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "depth": 2, "num_heads": 2, "patch_size": 8}
    _qwen(folder, "Qwen2VL", vision)


def qwen25_vl(folder: Path) -> None:
    """Qwen2.5-VL."""
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 2, "out_hidden_size": 32, "patch_size": 8,
        "window_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    _qwen(folder, "Qwen2_5_VL", vision)


def qwen3_vl(folder: Path) -> None:
    """Qwen3-VL, which adds features of lower layers of the vision tower to lower layers of the language model."""
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "depth": 3, "num_heads": 2, "out_hidden_size": 32, "patch_size": 8,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    _qwen(folder, "Qwen3VL", vision)


def _llava(
    folder: Path, name: str, vision: Any, images: Any, more: dict[str, Any], *, feature: dict[str, Any], pixtral: bool = False
) -> None:
    tokenizer = _pixtral_tokenizer() if pixtral else _tokenizer(_LLAVA, template="<s> $A", **_LLAMA)
    place = "[IMG]" if pixtral else "<image>"
    config = getattr(transformers, f"{name}Config")(
        text_config=_text("Mistral" if pixtral else "Llama", tokenizer), vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids(place), **feature, **more,
    )  # fmt: skip
    own = {"num_additional_image_tokens": 1, "vision_feature_select_strategy": "default", "processor_class": f"{name}Processor"}
    settings = {"patch_size": 8, **({"processor_class": "PixtralProcessor"} if pixtral else own)}
    _save(folder, name, config, tokenizer, images, settings)


def _idefics(folder: Path, name: str, images_class: Any) -> None:
    rows = {f"r{row}_{column}_token": f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)}
    tokenizer = _tokenizer(
        _IDEFICS, pad_token="<|im_end|>", bos_token="<|im_start|>", eos_token="<end_of_utterance>", image_token="<image>",
        fake_image_token="<fake_token_around_image>", global_image_token="<global-img>", **rows,
    )  # fmt: skip
    config = getattr(transformers, f"{name}Config")(
        text_config=_text("Llama", tokenizer), vision_config=_VISION, scale_factor=2, image_token_id=tokenizer.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    images = images_class(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    _save(folder, name, config, tokenizer, images, {"image_seq_len": 4})


def _qwen(folder: Path, name: str, vision: dict[str, Any]) -> None:
    tokenizer = _tokenizer(
        _CHATML % "<|vision_start|><|image_pad|><|vision_end|>", **_IM, image_token="<|image_pad|>",
        video_token="<|video_pad|>", vision_start_token="<|vision_start|>", vision_end_token="<|vision_end|>",
    )  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    text = {key: value for key, value in _TEXT.items() if name == "Qwen3VL" or key != "head_dim"}
    text |= {"num_hidden_layers": 3} if name == "Qwen3VL" else {}  # so that what is added in the second layer is read
    config = getattr(transformers, f"{name}Config")(
        text_config={**text, "vocab_size": len(tokenizer), "rope_parameters": rope, "eos_token_id": tokenizer.eos_token_id,
                     "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id},
        vision_config=vision, image_token_id=tokenizer.image_token_id, video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_start_token_id, vision_end_token_id=tokenizer.vision_end_token_id,
    )  # fmt: skip
    images = transformers.Qwen2VLImageProcessorPil(patch_size=8, size={"shortest_edge": 256, "longest_edge": 1024})
    _save(folder, name, config, tokenizer, images, {})


def _pixtral_tokenizer() -> Any:
    return _tokenizer(
        _MISTRAL % "[IMG]", pad_token="<pad>", bos_token="<s>", eos_token="</s>", inst_token="[INST]",
        end_inst_token="[/INST]", image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]",
    )  # fmt: skip


def _tokenizer(chat: str | None, *, template: str = "$A", **special: str) -> Any:
    tokenizer = byte_tokenizer(template, **special)
    tokenizer.chat_template = chat
    return tokenizer


def _text(name: str, tokenizer: Any, *, _without_head_dim: bool = False) -> Any:
    values = {key: value for key, value in _TEXT.items() if not (_without_head_dim and key == "head_dim")}
    return getattr(transformers, f"{name}Config")(
        **values, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip


def _save(folder: Path, name: str, config: Any, tokenizer: Any, images: Any, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    for parameter in model.parameters():
        if not parameter.abs().max():  # projections and marks that are initialised to zeros would hide the image
            torch.nn.init.normal_(parameter, std=0.02)
    save_pretrained(folder, model, tokenizer, images)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": f"{name}Processor", **settings}))
