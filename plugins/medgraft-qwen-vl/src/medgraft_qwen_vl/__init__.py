"""Qwen2-VL and Qwen2.5-VL as medgraft backbones."""

from collections.abc import Iterator

import medgraft

_TINY = "medgraft_qwen_vl.tiny"


@medgraft.hookimpl
def medgraft_backbones() -> Iterator[medgraft.BackboneSpec]:
    """`qwen-vl:HUB_ID` or `qwen-vl:FOLDER`."""
    yield medgraft.BackboneSpec(
        "qwen-vl",
        "Qwen2-VL and Qwen2.5-VL, chat models that read image tokens",
        "medgraft_qwen_vl.backbone:QwenVlBackbone",
        {"qwen2.5-vl": f"{_TINY}:qwen25_vl", "qwen2-vl": f"{_TINY}:qwen2_vl"},
    )
