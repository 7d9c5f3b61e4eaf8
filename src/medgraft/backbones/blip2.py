"""BLIP-2 (Li et al. 2023, arXiv 2301.12597): a frozen image encoder, a Q-Former, and a language model (OPT or Flan-T5)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn

from medgraft import hardware
from medgraft.backbones.base import Backbone
from medgraft.backbones.roles import language_model_roles, vision_tower_roles
from medgraft.backbones.text_batch import TextBatch, next_token_loss, padded
from medgraft.types import Anatomy, AttentionLayout, Part, PartAnatomy, Prompts, Seam

_LAYER = r"qformer\.encoder\.layer\.\d+"

QFORMER_ANATOMY = Anatomy(
    {
        "vision": PartAnatomy(("vision_model",), vision_tower_roles("vision_model")),
        "bridge": PartAnatomy(
            ("query_tokens", "qformer", "language_projection"),
            {
                "attn": (rf"{_LAYER}\.attention\.(attention\.(query|key|value)|output\.dense)",),
                "cross": (rf"{_LAYER}\.crossattention\.(attention\.(query|key|value)|output\.dense)",),
                "mlp": (rf"{_LAYER}\.(intermediate|output)(_query)?\.dense",),
                "proj": (r"language_projection",),
                "embed": (r"query_tokens", r"qformer\.embeddings\.(word|position)_embeddings"),
                "norm": (
                    rf"{_LAYER}\.(attention\.output|crossattention\.output|output(_query)?)\.LayerNorm",
                    r"qformer(\.embeddings)?\.(layernorm|LayerNorm)",
                ),
            },
        ),
        "text": PartAnatomy(
            ("language_model",),
            # T5's stacks are direct children of the language model, decoder-only layers are children of its `model`
            language_model_roles(r"language_model(\.model)?", r"language_model\.lm_head"),
        ),
    }
)


class Blip2Backbone(Backbone):
    """BLIP-2 checkpoints for captioning, with a decoder (OPT) or an encoder-decoder (Flan-T5) as language model.

    The language model's input is the 32 projected query outputs, then the prompt with its tokenizer's special tokens.
    The Q-Former and the projection are never quantised and run in fp32, as they were trained.
    """

    anatomy = QFORMER_ANATOMY
    seams = (Seam("vision", ("vision",)), Seam("bridge", ("vision", "bridge")))
    model_class = "Blip2ForConditionalGeneration"
    model_types = ("blip-2",)
    never_quantized = (
        "qformer", "language_projection", r"language_model\.lm_head",
        r"language_model\.(encoder|decoder)\.block\.\d+\.layer\.\d\.DenseReluDense\.wo",  # T5 overflows there in 16 bits
    )  # fmt: skip
    keep_in_fp32 = ("query_tokens", "qformer", "language_projection")
    attention_layout = AttentionLayout(
        "the language model's attention to the Q-Former's queries, and theirs to patches",
        r"language_model\.(decoder\.block\.\d+\.layer\.1\.EncDecAttention|(model\.)?(decoder\.)?layers\.\d+\.self_attn)",
        queries=rf"{_LAYER}\.crossattention\.attention", vision=r"vision_model\.encoder\.layers\.\d+\.self_attn",
    )  # fmt: skip

    @classmethod
    def tokens(cls, config: transformers.PreTrainedConfig, caption: int) -> dict[Part, int]:
        """See Backbone.tokens; the language model processes the queries too."""
        queries = int(config.num_query_tokens)
        return {**super().tokens(config, caption), "bridge": queries, "text": queries + caption}

    @classmethod
    def image_step(cls, config: transformers.PreTrainedConfig) -> int:
        """See Backbone.image_step."""
        return int(config.vision_config.patch_size)

    @property
    def _has_text_encoder(self) -> bool:
        return not self.config.use_decoder_only_language_model

    @property
    def logits_offset(self) -> int:
        """See Backbone.logits_offset; T5 predicts a label at the label's own position."""
        return 0 if self._has_text_encoder else 1

    @property
    def end_id(self) -> int:
        """The end token of the language model; for OPT this is the newline, not its tokenizer's `</s>`."""
        if self.config.text_config.model_type != "opt":  # Vicuna's published configuration has an eos_token_id other than </s>
            return super().end_id
        end = self.config.text_config.eos_token_id
        return int(end[0] if isinstance(end, Sequence) else end)

    @property
    def max_positions(self) -> int:
        """See Backbone.max_positions; T5 has no limit, so the 512 tokens of its training are used."""
        longest = getattr(self.config.text_config, "max_position_embeddings", None) or 512
        return int(longest) - int(self.config.num_query_tokens)

    def prompt_ids(self, prompt: str) -> list[int]:
        """See Backbone.prompt_ids: the prompt with the special tokens of the language model's tokenizer."""
        ids: list[int] = self.tokenizer(prompt)["input_ids"]
        return ids

    def text_batch(self, captions: Sequence[str], *, prompt: Prompts = "", max_tokens: int = 128) -> TextBatch:
        """See Backbone.text_batch. For T5 `input_ids` are the prompt, for its encoder, and `labels` the captions."""
        if not self._has_text_encoder:
            return super().text_batch(captions, prompt=prompt, max_tokens=max_tokens)
        input_ids, input_mask = padded(self.heads(prompt, len(captions)), self.pad_id)
        limit = self.max_caption_tokens(input_ids.shape[1], max_tokens)
        labels, mask = padded([[*ids, self.end_id][:limit] for ids in self.token_ids(captions)], self.pad_id)
        return TextBatch(input_ids, input_mask, labels.masked_fill(mask == 0, -100))

    def max_caption_tokens(self, head: int, max_tokens: int) -> int:
        """See Backbone.max_caption_tokens; for T5 the prompt takes no space, as it is the encoder's input."""
        return super().max_caption_tokens(0 if self._has_text_encoder else head, max_tokens)

    def forward_to(self, seam: str, inputs: torch.Tensor, *, prompt: Prompts) -> torch.Tensor:
        """See Backbone.forward_to: `vision` is [B, 257, 1408] in the published models, `bridge` [B, 32, 2048 to 4096]."""
        if seam == "vision":
            interpolated = self.interpolates(inputs, self.config.vision_config.image_size)
            output = self.model.vision_model(pixel_values=inputs, interpolate_pos_encoding=interpolated)
            features: torch.Tensor = output.last_hidden_state
            return features
        with hardware.no_autocast(inputs.device):
            inputs = inputs.float()
            queries = self.model.query_tokens.expand(inputs.shape[0], -1, -1)  # [B, Q, C]
            projected: torch.Tensor = self.model.language_projection(self._query_outputs(queries, inputs, prompt))
        return projected

    def _query_outputs(self, queries: torch.Tensor, image: torch.Tensor, prompt: Prompts) -> torch.Tensor:
        """The Q-Former's outputs [B, Q, C] for its queries [B, Q, C] over the image [B, S, D]."""
        outputs: torch.Tensor = self.model.qformer(query_embeds=queries, encoder_hidden_states=image).last_hidden_state
        return outputs

    def decode(self, features: torch.Tensor, text: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """See Backbone.decode."""
        language_model: nn.Module = self.model.language_model
        inputs = self._language_inputs(features, text.input_ids, text.attention_mask)
        if self._has_text_encoder:
            output = language_model(**inputs, labels=text.labels)
            return output.loss, output.logits
        logits: torch.Tensor = language_model(**inputs).logits[:, features.shape[1] :]
        return next_token_loss(logits, text.labels), logits

    def _language_inputs(self, features: torch.Tensor, input_ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        embeddings = self.model.get_input_embeddings()(input_ids)
        return {
            "inputs_embeds": torch.cat([features.to(embeddings.dtype), embeddings], dim=1),
            "attention_mask": torch.cat([mask.new_ones(features.shape[:2]), mask], dim=1),
        }

    def generate_ids(
        self, features: torch.Tensor, input_ids: torch.Tensor, decoding: transformers.GenerationConfig
    ) -> torch.Tensor:
        """See Backbone.generate_ids."""
        inputs = self._language_inputs(features, input_ids, torch.ones_like(input_ids))
        with warnings.catch_warnings():  # that penalties count the new tokens alone
            warnings.filterwarnings("ignore", message="Passing .* with `inputs_embeds`")
            ids: torch.Tensor = self.model.language_model.generate(**inputs, generation_config=decoding)
        return ids  # with inputs_embeds both kinds of model return the new tokens only

    def attention_index(self, features: torch.Tensor, text: TextBatch) -> tuple[int, slice]:
        """See Backbone.attention_index; T5 cross-attends to the queries, other models have them before the text."""
        queries = features.shape[1]
        return (0 if self._has_text_encoder else queries) - self.logits_offset, slice(0, queries)
