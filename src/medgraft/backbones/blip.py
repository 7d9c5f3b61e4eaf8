"""BLIP (Li et al. 2022, arXiv 2201.12086): a vision transformer and a decoder that cross-attends to its output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers
from torch.nn.functional import cross_entropy

from medgraft.backbones.base import Backbone
from medgraft.backbones.blip_sdpa import eager_attention
from medgraft.backbones.roles import vision_tower_roles
from medgraft.backbones.text_batch import TextBatch
from medgraft.backbones.wordpieces import join_punctuation
from medgraft.types import Anatomy, AttentionLayout, PartAnatomy, Prompts, Seam

_BERT = r"text_decoder\.bert"
_LAYER = rf"{_BERT}\.encoder\.layer\.\d+"


def blip_anatomy(prefixes: tuple[str, ...], bert: str) -> Anatomy:
    """The anatomy of a BLIP whose part `text` is `prefixes`; the regular expression `bert` names the BERTs in them."""
    layer = rf"{bert}\.encoder\.layer\.\d+"
    return Anatomy(
        {
            "vision": PartAnatomy(("vision_model",), vision_tower_roles("vision_model")),
            "text": PartAnatomy(
                prefixes,
                {
                    "attn": (rf"{layer}\.attention\.(self\.(query|key|value)|output\.dense)",),
                    "cross": (rf"{layer}\.crossattention\.(self\.(query|key|value)|output\.dense)",),
                    "mlp": (rf"{layer}\.(intermediate|output)\.dense",),
                    "norm": (
                        rf"{layer}\.(attention\.output|crossattention\.output|output)\.LayerNorm",
                        rf"{bert}\.embeddings\.LayerNorm",
                        r"text_decoder\.cls\.predictions\.transform\.LayerNorm",
                    ),
                    "embed": (rf"{bert}\.embeddings\.(word|position)_embeddings",),
                    "head": (r"text_decoder\.cls\.predictions(\.decoder|\.transform\.dense)?",),
                },
            ),
        },
        # a key bias adds the same value to all scores of a query, which softmax cancels
        no_gradient=(rf"{layer}\.(attention|crossattention)\.self\.key\.bias",),
    )


class BlipBackbone(Backbone):
    """Any BLIP captioning checkpoint, by hub id or folder.

    Sequences start with the checkpoint's BOS (`[DEC]`), as generation does, and end with `[SEP]`.
    """

    anatomy = blip_anatomy(("text_decoder",), _BERT)
    seams = (Seam("vision", ("vision",), consumer_casts_input=True),)
    model_class = "BlipForConditionalGeneration"
    model_types = ("blip",)
    never_quantized = (r"text_decoder\.cls",)
    several_images = True
    attention_layout = AttentionLayout(
        "cross-attention", rf"{_LAYER}\.crossattention\.self", vision=r"vision_model\.encoder\.layers\.\d+\.self_attn",
        text=rf"{_LAYER}\.attention\.self",
    )  # fmt: skip

    @classmethod
    def image_step(cls, config: transformers.PreTrainedConfig) -> int:
        """See Backbone.image_step."""
        return int(config.vision_config.patch_size)

    @property
    def end_id(self) -> int:
        """`[SEP]`, which is set in BLIP's configuration, not in its tokenizer."""
        return int(self.config.text_config.sep_token_id)

    def prompt_ids(self, prompt: str) -> list[int]:
        """See Backbone.prompt_ids: `[DEC]` and the prompt."""
        return [int(self.config.text_config.bos_token_id), *(self.token_ids([prompt])[0] if prompt else ())]

    def readable(self, text: str) -> str:
        """See Backbone.readable."""
        return join_punctuation(text)

    def forward_to(self, seam: str, inputs: torch.Tensor, *, prompt: Prompts) -> torch.Tensor:
        """See Backbone.forward_to: the vision tower's output, class token first."""
        features: torch.Tensor = self.model.vision_model(
            pixel_values=inputs, interpolate_pos_encoding=self.interpolates(inputs, self.config.vision_config.image_size)
        ).last_hidden_state
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
        """See Backbone.loss; computes the output layer, a quarter of the decoder's work, only at positions with a label."""
        hidden = self.model.text_decoder.bert(
            input_ids=text.input_ids,
            attention_mask=text.attention_mask,
            encoder_hidden_states=features,
            is_decoder=True,
        ).last_hidden_state
        targets = text.labels[:, 1:]
        labelled = targets != -100
        logits = self.model.text_decoder.cls(hidden[:, :-1][labelled])  # [labels, V]
        smoothing = self.config.text_config.label_smoothing
        return cross_entropy(logits.float(), targets[labelled], label_smoothing=smoothing)

    def generate_ids(
        self, features: torch.Tensor, input_ids: torch.Tensor, decoding: transformers.GenerationConfig
    ) -> torch.Tensor:
        """See Backbone.generate_ids."""
        ids: torch.Tensor = self.model.text_decoder.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            encoder_hidden_states=features,
            encoder_attention_mask=torch.ones(features.shape[:2], dtype=torch.long, device=features.device),
            generation_config=decoding,
        )
        return ids[:, input_ids.shape[1] :]

    @contextmanager
    def eager_attention(self) -> Iterator[None]:
        """See Backbone.eager_attention."""
        with eager_attention(self.model):
            yield
