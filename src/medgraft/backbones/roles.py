"""Role patterns for common architectures: CLIP-like vision towers, and OPT, T5 and LLaMA-like text models."""

from __future__ import annotations

from collections.abc import Mapping

from medgraft.types import Role


def vision_tower_roles(tower: str) -> Mapping[Role, tuple[str, ...]]:
    """Role patterns for a vision transformer like CLIP's, SigLIP's or BLIP's; the regular expression `tower` is its name."""
    layer = rf"{tower}\.encoder\.layers\.\d+"
    return {
        "attn": (rf"{layer}\.self_attn\.((q|k|v|out)_proj|qkv|projection)",),
        "mlp": (rf"{layer}\.mlp\.fc[12]",),
        "embed": (rf"{tower}\.embeddings", rf"{tower}\.embeddings\.patch_embedding"),
        "norm": (rf"{layer}\.layer_norm[12]", rf"{tower}\.(pre_layrnorm|post_layernorm)"),
    }


def language_model_roles(inner: str, head: str) -> Mapping[Role, tuple[str, ...]]:
    """Role patterns for a language model with its layers under `inner` and the output layer `head`, regular expressions."""
    opt, llama, t5 = (
        rf"{inner}\.decoder\.layers\.\d+",
        rf"{inner}\.layers\.\d+",
        rf"{inner}\.(encoder|decoder)\.block\.\d+\.layer\.\d",
    )
    return {
        "attn": (
            rf"({opt}|{llama})\.self_attn\.([qkvo]|out)_proj",
            rf"{t5}\.SelfAttention\.[qkvo]",
        ),
        "cross": (rf"{t5}\.EncDecAttention\.[qkvo]",),
        "mlp": (
            rf"{opt}\.fc[12]",
            rf"{llama}\.mlp\.(gate|up|down)_proj",
            rf"{t5}\.DenseReluDense\.(wi|wi_0|wi_1|wo)",
        ),
        "proj": (rf"{inner}\.decoder\.project_(in|out)",),
        "norm": (
            rf"{opt}\.(self_attn|final)_layer_norm",
            rf"{llama}\.(input|post_attention)_layernorm",
            rf"{t5}\.layer_norm",
            rf"{inner}\.((encoder|decoder)\.)?(final_layer_norm|norm)",
        ),
        "embed": (
            rf"{inner}\.(shared|((encoder|decoder)\.)?embed_(tokens|positions))",
            rf"{t5}\.SelfAttention\.relative_attention_bias",
        ),
        "head": (head,),
    }
