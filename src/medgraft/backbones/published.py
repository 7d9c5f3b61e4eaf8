"""Configurations of the paper's published checkpoints, for planning and checks without a download.

They are taken from each config.json on the hub and list only what differs from transformers' defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import transformers
from transformers import PreTrainedConfig

from medgraft.backbones.loading import read_config


def published_config(source: str) -> PreTrainedConfig | None:
    """The configuration of the hub id `source`, None if it is not one of the paper's."""
    make = _CONFIGS.get(source)
    return make() if make is not None else None


def planning_config(source: str, model_types: tuple[str, ...]) -> PreTrainedConfig:
    """The configuration of a hub id or folder: the published one if it is in this module, else read from `source`."""
    return published_config(source) or read_config(source, model_types)


def _blip_base(model_class: str = "BlipForConditionalGeneration") -> PreTrainedConfig:
    text = {"encoder_hidden_size": 768, "num_attention_heads": 12, "vocab_size": 30524}
    return transformers.BlipConfig(text_config=text, vision_config={"image_size": 384}, architectures=[model_class])


def _blip_large() -> PreTrainedConfig:
    vision = {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 384,
    }  # fmt: skip
    text = {"encoder_hidden_size": 1024, "num_attention_heads": 12, "vocab_size": 30524}
    architectures = ["BlipForConditionalGeneration"]
    return transformers.BlipConfig(text_config=text, vision_config=vision, architectures=architectures)


def _opt(width: int, layers: int, heads: int) -> dict[str, object]:
    config = transformers.OPTConfig(
        hidden_size=width, word_embed_proj_dim=width, ffn_dim=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
        vocab_size=50304, eos_token_id=50118,
    )  # fmt: skip
    return dict(config.to_dict())


def _flan_t5(width: int, hidden: int, heads: int) -> dict[str, object]:
    config = transformers.T5Config(
        d_model=width, d_kv=64, d_ff=hidden, num_layers=24, num_heads=heads, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, vocab_size=32128,
    )  # fmt: skip
    return dict(config.to_dict())


def _vicuna() -> dict[str, object]:
    return dict(transformers.LlamaConfig(vocab_size=32001, pad_token_id=32000).to_dict())


def _blip2(text: dict[str, object]) -> PreTrainedConfig:
    return transformers.Blip2Config(text_config=text)


def _instructblip(text: dict[str, object]) -> PreTrainedConfig:
    return transformers.InstructBlipConfig(text_config=text)


def _vit_gpt2() -> PreTrainedConfig:
    decoder = transformers.GPT2Config(add_cross_attention=True, is_decoder=True)
    joined: PreTrainedConfig = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(), decoder
    )
    return joined


_CONFIGS: Mapping[str, Callable[[], PreTrainedConfig]] = {
    "Salesforce/blip-image-captioning-base": _blip_base,
    "Salesforce/blip-image-captioning-large": _blip_large,
    "Salesforce/blip-vqa-base": lambda: _blip_base("BlipForQuestionAnswering"),
    "Salesforce/blip-vqa-capfilt-large": lambda: _blip_base("BlipForQuestionAnswering"),
    "Salesforce/blip2-opt-2.7b": lambda: _blip2(_opt(2560, 32, 32)),
    "Salesforce/blip2-opt-6.7b": lambda: _blip2(_opt(4096, 32, 32)),
    "Salesforce/blip2-flan-t5-xl": lambda: _blip2(_flan_t5(2048, 5120, 32)),
    "Salesforce/blip2-flan-t5-xxl": lambda: _blip2(_flan_t5(4096, 10240, 64)),
    "Salesforce/instructblip-flan-t5-xl": lambda: _instructblip(_flan_t5(2048, 5120, 32)),
    "Salesforce/instructblip-vicuna-7b": lambda: _instructblip(_vicuna()),
    "nlpconnect/vit-gpt2-image-captioning": _vit_gpt2,
}
