"""BLIP for question answering (Li et al. 2022, arXiv 2201.12086, figure 5): the question is read first, then answered.

A question encoder cross-attends to the image, and an answer decoder cross-attends to the question's states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch.nn.functional import cross_entropy

from medgraft.backbones.blip import BlipBackbone, blip_anatomy
from medgraft.backbones.text_batch import TextBatch, padded
from medgraft.errors import ConfigError
from medgraft.types import AttentionLayout, Prompts

_ENCODER, _DECODER = r"text_encoder", r"text_decoder\.bert"


class BlipVqaBackbone(BlipBackbone):
    """Any BLIP question answering checkpoint, by hub id or folder. The prompt is the question, the caption its answer.

    As in transformers, the encoder reads `[CLS] question [SEP]`; the answer starts with the checkpoint's BOS (`[DEC]`) and ends
    with `[SEP]`. `TextBatch.input_ids` are the question, `labels` the answer.
    """

    anatomy = blip_anatomy(("text_encoder", "text_decoder"), rf"({_ENCODER}|{_DECODER})")
    model_class = "BlipForQuestionAnswering"
    attention_layout = AttentionLayout(
        "the answer's attention to the question, and the question's to patches",
        rf"{_DECODER}\.encoder\.layer\.\d+\.crossattention\.self",
        queries=rf"{_ENCODER}\.encoder\.layer\.\d+\.crossattention\.self",
        vision=r"vision_model\.encoder\.layers\.\d+\.self_attn",
    )

    @property
    def logits_offset(self) -> int:
        """See Backbone.logits_offset: the decoder predicts a label at the label's own position."""
        return 0

    def prompt_ids(self, prompt: str) -> list[int]:
        """See Backbone.prompt_ids: the question as its encoder reads it; ConfigError if it is too long for that."""
        ids: list[int] = self.tokenizer(prompt)["input_ids"]
        if len(ids) > self.max_positions:
            raise ConfigError(
                f"The question that begins {prompt[:40]!r} has {len(ids)} tokens, and the encoder reads at most "
                f"{self.max_positions}. Shorten it."
            )
        return ids

    def text_batch(self, captions: Sequence[str], *, prompt: Prompts = "", max_tokens: int = 128) -> TextBatch:
        """See Backbone.text_batch. `input_ids` are the questions, `labels` the answers."""
        input_ids, input_mask = padded(self.heads(prompt, len(captions)), self.pad_id)
        limit = self.max_caption_tokens(input_ids.shape[1], max_tokens)
        labels, mask = padded([[*ids, self.end_id][:limit] for ids in self.token_ids(captions)], self.pad_id)
        return TextBatch(input_ids, input_mask, labels.masked_fill(mask == 0, -100))

    def max_caption_tokens(self, head: int, max_tokens: int) -> int:
        """See Backbone.max_caption_tokens; the question takes no space, as it is the encoder's input."""
        return super().max_caption_tokens(0, max_tokens)

    def decode(self, features: torch.Tensor, text: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """See Backbone.decode; the loss is over the answer alone."""
        _pass_masks(self.model.text_decoder)
        starts = self._starts(text.labels)
        read = torch.cat([starts, text.labels[:, :-1]], dim=1)  # the decoder reads each label one position later
        logits: torch.Tensor = self.model.text_decoder(
            input_ids=read.masked_fill(read == -100, self.pad_id),
            encoder_hidden_states=self._question_states(features, text.input_ids, text.attention_mask),
            encoder_attention_mask=text.attention_mask,
        ).logits
        smoothing = self.config.text_config.label_smoothing
        return cross_entropy(logits.flatten(0, 1).float(), text.labels.flatten(), label_smoothing=smoothing), logits

    def loss(self, features: torch.Tensor, text: TextBatch) -> torch.Tensor:
        """See Backbone.loss."""
        return self.decode(features, text)[0]

    def generate_ids(
        self, features: torch.Tensor, input_ids: torch.Tensor, decoding: transformers.GenerationConfig
    ) -> torch.Tensor:
        """See Backbone.generate_ids."""
        mask = torch.ones_like(input_ids)
        ids: torch.Tensor = self.model.text_decoder.generate(
            input_ids=self._starts(input_ids),
            encoder_hidden_states=self._question_states(features, input_ids, mask),
            encoder_attention_mask=mask,
            generation_config=decoding,
        )
        return ids[:, 1:]

    def attention_index(self, features: torch.Tensor, text: TextBatch) -> tuple[int, slice]:
        """See Backbone.attention_index; the answer's words attend to the question's tokens, which attend to patches."""
        return 0, slice(0, text.input_ids.shape[1])

    def _starts(self, rows: torch.Tensor) -> torch.Tensor:
        """The token that begins an answer for each of `rows` [B, T], [B, 1]."""
        return rows.new_full((len(rows), 1), int(self.config.text_config.bos_token_id))

    def _question_states(self, features: torch.Tensor, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The encoder's states [B, Q, C] of questions [B, Q] about images, whose features are [B, S, C]."""
        states: torch.Tensor = self.model.text_encoder(
            input_ids=input_ids, attention_mask=mask, encoder_hidden_states=features
        ).last_hidden_state
        return states


def _pass_masks(decoder: Any) -> None:
    """Make the cross-attention of `decoder` leave out padding; transformers 5 drops the mask on its way to the scores."""
    for layer in decoder.bert.encoder.layer:
        attention = layer.crossattention.self
        if _pass_mask not in attention._forward_pre_hooks.values():
            attention.register_forward_pre_hook(_pass_mask, with_kwargs=True)


def _pass_mask(module: Any, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return inputs, {**named, "encoder_attention_mask": named.get("attention_mask")}
