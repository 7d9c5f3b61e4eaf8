"""GIT (Wang et al. 2022, arXiv 2205.14100): a decoder that reads the image's projected patches as tokens before the words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from medgraft.plugin_api import (
    Anatomy,
    AttentionLayout,
    Backbone,
    Part,
    PartAnatomy,
    Prompts,
    Seam,
    TextBatch,
    join_punctuation,
    vision_tower_roles,
)

_LAYER = r"git\.encoder\.layer\.\d+"


class GitBackbone(Backbone):
    """GIT checkpoints for single images. Sequences start with `[CLS]` and end with `[SEP]`."""

    anatomy = Anatomy(
        {
            "vision": PartAnatomy(("git.image_encoder",), vision_tower_roles(r"git\.image_encoder\.vision_model")),
            "bridge": PartAnatomy(
                ("git.visual_projection", "git.img_temporal_embedding"),
                {
                    "proj": (r"git\.visual_projection\.visual_projection\.0",),
                    "norm": (r"git\.visual_projection\.visual_projection\.1",),
                },
            ),
            "text": PartAnatomy(
                ("git.embeddings", "git.encoder", "output"),
                {
                    "attn": (rf"{_LAYER}\.attention\.(self\.(query|key|value)|output\.dense)",),
                    "mlp": (rf"{_LAYER}\.(intermediate|output)\.dense",),
                    "norm": (rf"{_LAYER}\.(attention\.)?output\.LayerNorm", r"git\.embeddings\.LayerNorm"),
                    "embed": (r"git\.embeddings\.(word|position)_embeddings",),
                    "head": (r"output",),
                },
            ),
        },
        never_run=(r"git\.img_temporal_embedding",),  # videos only
    )
    seams = (Seam("vision", ("vision",), consumer_casts_input=True), Seam("bridge", ("vision", "bridge")))
    model_class = "GitForCausalLM"
    model_types = ("git",)
    never_quantized = (r"output", r"git\.visual_projection")
    attention_layout = AttentionLayout(
        "attention to the image's tokens", rf"{_LAYER}\.attention\.self",
        vision=r"git\.image_encoder\.vision_model\.encoder\.layers\.\d+\.self_attn",
    )  # fmt: skip

    @classmethod
    def tokens(cls, config: transformers.PreTrainedConfig, caption: int) -> dict[Part, int]:
        """See Backbone.tokens: the decoder reads the patches too."""
        tokens = super().tokens(config, caption)
        return {**tokens, "text": tokens["vision"] + caption}

    @classmethod
    def image_step(cls, config: transformers.PreTrainedConfig) -> int:
        """See Backbone.image_step."""
        return int(config.vision_config.patch_size)

    @property
    def end_id(self) -> int:
        """`[SEP]`."""
        return int(self.tokenizer.sep_token_id)

    def prompt_ids(self, prompt: str) -> list[int]:
        """`[CLS]` and the prompt."""
        return [int(self.tokenizer.cls_token_id), *(self.token_ids([prompt])[0] if prompt else ())]

    def readable(self, text: str) -> str:
        """Word pieces as people write."""
        return join_punctuation(text)

    def forward_to(self, seam: str, inputs: torch.Tensor, *, prompt: Prompts) -> torch.Tensor:
        """`vision`: CLIP's output with its class token first; `bridge`: projected to the decoder's width."""
        git = self.model.git
        if seam == "vision":
            interpolated = self.interpolates(inputs, self.config.vision_config.image_size)
            features: torch.Tensor = git.image_encoder(inputs, interpolate_pos_encoding=interpolated).last_hidden_state
        else:
            features = git.visual_projection(inputs)
        return features

    def decode(self, features: torch.Tensor, text: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """See Backbone.decode; logits of the words only."""
        with self._given(features):
            output = self.model(
                pixel_values=features[:, None],
                input_ids=text.input_ids,
                attention_mask=text.attention_mask,
                labels=text.labels,
            )
        return output.loss, output.logits[:, features.shape[1] :]

    def generate_ids(
        self, features: torch.Tensor, input_ids: torch.Tensor, decoding: transformers.GenerationConfig
    ) -> torch.Tensor:
        """See Backbone.generate_ids."""
        with self._given(features):
            ids: torch.Tensor = self.model.generate(
                pixel_values=features[:, None],
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                generation_config=decoding,
            )
        return ids[:, input_ids.shape[1] :]

    def attention_index(self, features: torch.Tensor, text: TextBatch) -> tuple[int, slice]:
        """The patches stand before the words."""
        patches = features.shape[1]
        return patches - 1, slice(0, patches)

    @contextmanager
    def _given(self, features: torch.Tensor) -> Iterator[None]:
        """Let the model's forward take `features` [B, 1, S, C] as its pixel values, as it has no other way in for them.

        It reads their number from an attention layer, where it is that of images of the checkpoint's own size.
        """
        git, layer = self.model.git, self.model.git.encoder.layer[0].attention.self
        own = git.image_encoder, git.visual_projection, layer.image_patch_tokens
        git.image_encoder, git.visual_projection, layer.image_patch_tokens = _Given(), nn.Identity(), features.shape[1]
        try:
            yield
        finally:
            git.image_encoder, git.visual_projection, layer.image_patch_tokens = own


class _Given(nn.Module):
    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=pixel_values[:, 0])
