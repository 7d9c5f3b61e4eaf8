"""Small random models of Qwen2-VL's and Qwen2.5-VL's architecture, for trying and checking offline."""

from pathlib import Path
from typing import Any

import torch
import transformers

from medgraft.plugin_api import byte_tokenizer, save_pretrained

# what Qwen's own template makes of one message with one image
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def qwen25_vl(folder: Path) -> None:
    """Qwen2.5-VL, 2 layers a part, width 32, 32 px."""
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 2, "out_hidden_size": 32, "patch_size": 8,
        "window_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    _save(folder, transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLForConditionalGeneration, vision)


def qwen2_vl(folder: Path) -> None:
    """Qwen2-VL, 2 layers a part, width 32, 32 px."""
    vision = {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "depth": 2, "num_heads": 2, "patch_size": 8}
    _save(folder, transformers.Qwen2VLConfig, transformers.Qwen2VLForConditionalGeneration, vision)


def _save(folder: Path, config_class: Any, model_class: Any, vision: dict[str, Any]) -> None:
    tokenizer = byte_tokenizer(
        pad_token="<|endoftext|>", eos_token="<|im_end|>", bos_token="<|im_start|>", cls_token="<|vision_start|>",
        sep_token="<|vision_end|>", mask_token="<|image_pad|>", unk_token="<|video_pad|>",
    )  # fmt: skip
    tokenizer.chat_template = _TEMPLATE
    ids = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    text = {**_TEXT, "num_key_value_heads": 1, "vocab_size": len(tokenizer), "max_position_embeddings": 256}
    config = config_class(
        text_config={**text, "rope_parameters": rope, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0},
        vision_config=vision, image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
    )  # fmt: skip
    torch.manual_seed(0)
    size = {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    images = transformers.Qwen2VLImageProcessorPil(patch_size=8, size=size)
    save_pretrained(folder, model_class(config), tokenizer, images)
