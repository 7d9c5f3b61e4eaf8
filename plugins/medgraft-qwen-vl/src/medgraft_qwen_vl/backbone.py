"""Qwen2-VL and Qwen2.5-VL (Bai et al. 2025, arXiv 2502.13923): chat models whose prompt holds the image's tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch
import transformers
from PIL import Image, ImageOps
from transformers.utils import cached_file

from medgraft.plugin_api import (
    Anatomy,
    AttentionLayout,
    Backbone,
    BackboneError,
    Part,
    PartAnatomy,
    Prompts,
    Seam,
    TextBatch,
    language_model_roles,
    next_token_loss,
)

LONGEST_SIDE = 448  # pixels, unless `image.size` is set: 256 image tokens
_BLOCK = r"model\.visual\.blocks\.\d+"


class QwenVlBackbone(Backbone):
    """Instruction-tuned checkpoints. The prompt is a user's message with the image, the caption the assistant's answer.

    Images are padded to a square, so that all have the same number of tokens.
    """

    anatomy = Anatomy(
        {
            "vision": PartAnatomy(
                ("model.visual.patch_embed", "model.visual.blocks"),
                {
                    "attn": (rf"{_BLOCK}\.attn\.(qkv|proj)",),
                    "mlp": (rf"{_BLOCK}\.mlp\.(fc[12]|(gate|up|down)_proj)",),
                    "embed": (r"model\.visual\.patch_embed",),
                    "norm": (rf"{_BLOCK}\.norm[12]",),
                },
            ),
            "bridge": PartAnatomy(
                ("model.visual.merger",),
                {"proj": (r"model\.visual\.merger\.mlp\.[02]",), "norm": (r"model\.visual\.merger\.ln_q",)},
            ),
            "text": PartAnatomy(("model.language_model", "lm_head"), language_model_roles(r"model\.language_model", "lm_head")),
        }
    )
    seams = (Seam("bridge", ("vision", "bridge")),)
    model_class = "AutoModelForImageTextToText"
    model_types = ("qwen2_5_vl", "qwen2_vl")
    never_quantized = (r"lm_head", r"model\.visual\.merger")
    attention_layout = AttentionLayout("attention to the image's tokens", r"model\.language_model\.layers\.\d+\.self_attn")
    default_prompt = "Describe this medical image in one sentence."

    @classmethod
    def from_model(cls, source: str, model: Any) -> Self:
        """See Backbone.from_model; the chat template may lie beside the tokenizer."""
        backbone = super().from_model(source, model)
        if "image" not in (backbone.tokenizer.chat_template or ""):
            try:
                path = cached_file(source, "chat_template.json")
                backbone.tokenizer.chat_template = json.loads(Path(path).read_text(encoding="utf-8"))["chat_template"]
            except (OSError, ValueError, KeyError):
                raise BackboneError(
                    f"{source} has no chat template that takes images; use an instruction-tuned checkpoint."
                ) from None
        processor = backbone.image_processor
        token = processor.patch_size * processor.merge_size
        backbone.set_image_size(min(math.isqrt(processor.size["longest_edge"]), LONGEST_SIDE) // token * token)
        return backbone

    @classmethod
    def image_step(cls, config: transformers.PreTrainedConfig) -> int:
        """See Backbone.image_step: the side of an image token."""
        return int(config.vision_config.patch_size * config.vision_config.spatial_merge_size)

    def set_image_size(self, size: int) -> None:
        """See Backbone.set_image_size."""
        self.image_processor.size = {"shortest_edge": size**2, "longest_edge": size**2}

    @classmethod
    def tokens(cls, config: transformers.PreTrainedConfig, caption: int) -> dict[Part, int]:
        """See Backbone.tokens."""
        vision = config.vision_config
        patches = (getattr(vision, "image_size", LONGEST_SIDE) // vision.patch_size) ** 2
        merged = patches // vision.spatial_merge_size**2
        return {"vision": patches, "bridge": merged, "text": merged + caption}

    @property
    def side(self) -> int:
        """The square's side in pixels: `image.size`, else the checkpoint's limit, at most 448, in whole tokens."""
        return math.isqrt(self.image_processor.size["longest_edge"])

    @property
    def image_tokens(self) -> int:
        """See Backbone.image_tokens."""
        return int(self.side // (self.image_processor.patch_size * self.image_processor.merge_size)) ** 2

    def prompt_ids(self, prompt: str) -> list[int]:
        """The chat up to where the assistant begins, with a placeholder for every image token."""
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        place = self.tokenizer.convert_ids_to_tokens(self.config.image_token_id)
        return self.token_ids([text.replace(place, place * self.image_tokens)])[0]

    def pixel_values(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Flattened patches of the padded squares, [B, N, C * T * P * P]."""
        squares = [ImageOps.pad(image, (self.side, self.side), method=Image.Resampling.BICUBIC) for image in images]
        patches: torch.Tensor = self.image_processor(squares, return_tensors="pt")["pixel_values"]
        return patches.view(len(images), -1, patches.shape[-1])

    def _grid(self, count: int, device: torch.device) -> torch.Tensor:
        across = self.side // self.image_processor.patch_size
        return torch.tensor([[1, across, across]] * count, device=device)

    def forward_to(self, seam: str, inputs: torch.Tensor, *, prompt: Prompts) -> torch.Tensor:
        """The merged image tokens, [B, N / 4, width of the language model]."""
        grid = self._grid(inputs.shape[0], inputs.device)
        merged: torch.Tensor = self.model.model.visual(inputs.flatten(0, 1), grid_thw=grid).pooler_output
        return merged.view(inputs.shape[0], -1, merged.shape[-1])

    def _inputs(self, features: torch.Tensor, input_ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "mm_token_type_ids": (input_ids == self.config.image_token_id).int(),
            "image_grid_thw": self._grid(features.shape[0], features.device),
        }

    def decode(self, features: torch.Tensor, text: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """See Backbone.decode."""
        logits = self._logits(features, text)
        return next_token_loss(logits, text.labels), logits

    def loss(self, features: torch.Tensor, text: TextBatch) -> torch.Tensor:
        """See Backbone.loss; logits are computed from the last image token on, since no label comes before it."""
        last = text.input_ids.shape[1] - self.image_tokens + 1
        return next_token_loss(self._logits(features, text, last=last), text.labels[:, -last:])

    def _logits(self, features: torch.Tensor, text: TextBatch, last: int = 0) -> torch.Tensor:
        """Logits at the `last` positions, [B, last, V]; at all of them if it is 0."""
        given = {"image": SimpleNamespace(pooler_output=tuple(features))}
        inputs = self._inputs(features, text.input_ids, text.attention_mask)
        logits: torch.Tensor = self.model(**inputs, mm_encoder_outputs=given, use_cache=False, logits_to_keep=last).logits
        return logits

    def generate_ids(
        self, features: torch.Tensor, input_ids: torch.Tensor, decoding: transformers.GenerationConfig
    ) -> torch.Tensor:
        """See Backbone.generate_ids."""
        words = self.model.get_input_embeddings()(input_ids)
        places = (input_ids == self.config.image_token_id)[..., None]
        ids: torch.Tensor = self.model.generate(
            **self._inputs(features, input_ids, torch.ones_like(input_ids)),
            inputs_embeds=words.masked_scatter(places, features.to(words.dtype)),
            generation_config=decoding,
        )
        return ids[:, input_ids.shape[1] :]

    def visible_region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The square around the image."""
        side = max(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side
