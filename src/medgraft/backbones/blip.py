"""BLIP (Li et al. 2022, arXiv 2201.12086): a vision transformer and a decoder that cross-attends to its output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import torch
import transformers

from medgraft.backbones.attention import CausalMask, eager_attention, takes_packed_words, use_sdpa
from medgraft.backbones.base import Backbone, TextBatch
from medgraft.backbones.packing import IGNORED, WORDS_MULTIPLE, fill, pack
from medgraft.backbones.perceptron import compute_activations_again
from medgraft.backbones.roles import vision_tower_roles
from medgraft.backbones.word_loss import word_loss
from medgraft.backbones.wordpieces import join_punctuation
from medgraft.types import Anatomy, Gaze, PartAnatomy, Seam

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

_BERT = r"text_decoder\.bert"
_LAYER = rf"{_BERT}\.encoder\.layer\.\d+"


class BlipBackbone(Backbone):
    """Any BLIP captioning checkpoint, by hub id or folder.

    Sequences start with the checkpoint's BOS (`[DEC]`), as generation does, and end with `[SEP]`.
    """

    anatomy = Anatomy(
        {
            "vision": PartAnatomy(("vision_model",), vision_tower_roles("vision_model")),
            "text": PartAnatomy(
                ("text_decoder",),
                {
                    "attn": (rf"{_LAYER}\.attention\.(self\.(query|key|value)|output\.dense)",),
                    "cross": (rf"{_LAYER}\.crossattention\.(self\.(query|key|value)|output\.dense)",),
                    "mlp": (rf"{_LAYER}\.(intermediate|output)\.dense",),
                    "norm": (
                        rf"{_LAYER}\.(attention\.output|crossattention\.output|output)\.LayerNorm",
                        rf"{_BERT}\.embeddings\.LayerNorm",
                        r"text_decoder\.cls\.predictions\.transform\.LayerNorm",
                    ),
                    "embed": (rf"{_BERT}\.embeddings\.(word|position)_embeddings",),
                    "head": (r"text_decoder\.cls\.predictions(\.decoder|\.transform\.dense)?",),
                },
            ),
        }
    )
    seams = (Seam("vision", ("vision",), read_by_linear=True),)
    model_class = "BlipForConditionalGeneration"
    model_types = ("blip",)
    never_quantized = (r"text_decoder\.cls",)
    gaze = Gaze(
        "cross-attention", rf"{_LAYER}\.crossattention\.self", vision=r"vision_model\.encoder\.layers\.\d+\.self_attn",
        text=rf"{_LAYER}\.attention\.self",
    )  # fmt: skip

    @classmethod
    def load(cls, source: str, *, quantization: BitsAndBytesConfig | None = None) -> Self:
        """See Backbone.load; attention is switched to the fused computation, perceptrons to one that keeps less."""
        backbone = super().load(source, quantization=quantization)
        use_sdpa(backbone.model)
        compute_activations_again(backbone.model)
        return backbone

    @property
    def end_id(self) -> int:
        """`[SEP]`, which BLIP's configuration names rather than its tokenizer."""
        return int(self.config.text_config.sep_token_id)

    def head(self, prompt: str) -> list[int]:
        """See Backbone.head: `[DEC]` and the prompt."""
        return [int(self.config.text_config.bos_token_id), *(self.token_ids([prompt])[0] if prompt else ())]

    def readable(self, text: str) -> str:
        """See Backbone.readable."""
        return join_punctuation(text)

    def stage(self, seam: str, inputs: torch.Tensor, *, prompt: str) -> torch.Tensor:
        """See Backbone.stage: the vision tower's output, class token first."""
        features: torch.Tensor = self.model.vision_model(pixel_values=inputs).last_hidden_state
        return features

    def decode(self, features: torch.Tensor, text: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """See Backbone.decode."""
        output = self.model.text_decoder(
            input_ids=text.input_ids,
            attention_mask=text.attention_mask,
            encoder_hidden_states=features,
            labels=text.labels,
        )
        return output.loss, output.logits

    def loss(self, features: torch.Tensor, text: TextBatch) -> torch.Tensor:
        """See Backbone.loss: on a CPU of packed words, and the output layer, a quarter of the decoder's work, at labels only.

        On an accelerator every position is computed: which of them have labels is known there, and asking would make the
        host wait for it in each step.
        """
        smoothing = self.config.text_config.label_smoothing
        switched = takes_packed_words(self.model.text_decoder)
        if features.device.type != "cpu" and switched:
            hidden, targets = self._at_every_position(features, text)
            return word_loss(self.model.text_decoder.cls(hidden), targets, smoothing)
        hidden, targets = self._packed(features, text) if switched else self._padded(features, text)
        wanted = (targets != IGNORED).nonzero()[:, 0]
        filler = -len(wanted) % self._multiple()  # of the first word once more, without a label
        logits = self.model.text_decoder.cls(hidden[fill(wanted, filler)])  # [labels and filler, V]
        labels = fill(targets[wanted], filler, IGNORED)
        return word_loss(logits, labels, smoothing)

    def _at_every_position(self, features: torch.Tensor, text: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states [B T, C] and the labels that they predict [B T].

        Padding is on the right, so that no label depends on it in a causal decoder, and needs no mask.
        """
        decoder = self.model.text_decoder.bert
        hidden = decoder.encoder(
            decoder.embeddings(text.input_ids), attention_mask=CausalMask(), encoder_hidden_states=features
        ).last_hidden_state
        targets = torch.cat([text.labels[:, 1:], torch.full_like(text.labels[:, :1], IGNORED)], dim=1)
        return hidden.flatten(0, 1), targets.flatten()

    def _multiple(self) -> int:
        """To a multiple of what a row of words is filled up: see packing.py."""
        return WORDS_MULTIPLE if torch.is_autocast_enabled("cpu") else 1

    def _packed(self, features: torch.Tensor, text: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states [N, C] and the labels that they predict [N]; on a CPU, where many small products cost little."""
        words, decoder = pack(text, self._multiple()), self.model.text_decoder.bert
        hidden = decoder.encoder(
            decoder.embeddings(words.input_ids, position_ids=words.position_ids),
            attention_mask=words.packing,
            encoder_hidden_states=features,
            encoder_attention_mask=words.packing.over(features),
        ).last_hidden_state
        return hidden[0], words.targets

    def _padded(self, features: torch.Tensor, text: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The same as [B (T - 1), C] and [B (T - 1)], padding among them."""
        hidden = self.model.text_decoder.bert(
            input_ids=text.input_ids,
            attention_mask=text.attention_mask,
            encoder_hidden_states=features,
            is_decoder=True,
        ).last_hidden_state
        return hidden[:, :-1].flatten(0, 1), text.labels[:, 1:].flatten()

    def continuation(
        self, features: torch.Tensor, input_ids: torch.Tensor, decoding: transformers.GenerationConfig
    ) -> torch.Tensor:
        """See Backbone.continuation."""
        ids: torch.Tensor = self.model.text_decoder.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            encoder_hidden_states=features,
            encoder_attention_mask=torch.ones(features.shape[:2], dtype=torch.long, device=features.device),
            generation_config=decoding,
        )
        return ids[:, input_ids.shape[1] :]

    @contextmanager
    def weights_shown(self) -> Iterator[None]:
        """See Backbone.weights_shown."""
        with eager_attention(self.model):
            yield
