"""Vision-language chat models as one medgraft backbone."""

from collections.abc import Iterator

import medgraft

_TINY = ("llava", "llava-next", "llava-onevision", "gemma3", "paligemma", "smolvlm", "idefics3", "internvl", "pixtral",
         "mistral3", "qwen2-vl", "qwen2.5-vl", "qwen3-vl")  # fmt: skip
_FAMILIES = (
    "llava", "gemma", "medgemma", "paligemma", "smolvlm", "idefics", "internvl", "pixtral", "mistral", "qwen3", "aya",
)  # fmt: skip


@medgraft.hookimpl
def medgraft_backbones() -> Iterator[medgraft.BackboneSpec]:
    """`vlm:HUB_ID` or `vlm:FOLDER`."""
    yield medgraft.BackboneSpec(
        "vlm",
        "chat models that read image tokens: MedGemma, Qwen-VL, LLaVA, SmolVLM, InternVL, Pixtral, PaliGemma, ...",
        "medgraft_vlm.backbone:VlmBackbone",
        {f"vlm-{name}": f"medgraft_vlm.tiny:{name.replace('-', '_').replace('.', '')}" for name in _TINY},
        families=_FAMILIES,
    )
