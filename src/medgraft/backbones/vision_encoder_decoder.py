"""Vision encoder-decoders such as ViT-GPT2: a text decoder that cross-attends to an image encoder."""

from __future__ import annotations

from typing import Any, Self

import torch
import transformers
from transformers.modeling_outputs import BaseModelOutput

from medgraft.backbones import loading
from medgraft.backbones.base import Backbone
from medgraft.backbones.text_batch import TextBatch, next_token_loss
from medgraft.errors import BackboneError
from medgraft.types import Anatomy, AttentionLayout, PartAnatomy, Seam

_ENCODER = r"encoder\.(.+\.)?"
_GPT = r"decoder\.transformer\.h\.\d+"
_BERT = r"decoder\.(bert|roberta)\.encoder\.layer\.\d+"


class VisionEncoderDecoderBackbone(Backbone):
    """Any `VisionEncoderDecoderModel` with a ViT-like encoder (DeiT, BEiT, Swin) and a GPT-2 or BERT-like decoder."""

    anatomy = Anatomy(
        {
            "vision": PartAnatomy(
                ("encoder",),
                {
                    "attn": (rf"{_ENCODER}attention\.(.+\.)?[qkvo]_proj",),
                    "mlp": (rf"{_ENCODER}mlp\.fc[12]",),
                    "proj": (rf"{_ENCODER}downsample\.reduction",),
                    "embed": (r"encoder\.embeddings", rf"{_ENCODER}relative_position_bias"),
                    "norm": (rf"{_ENCODER}(layernorm|norm)(_before|_after)?", r"encoder\.layernorm"),
                },
            ),
            "bridge": PartAnatomy(("enc_to_dec_proj",), {"proj": (r"enc_to_dec_proj",)}),
            "text": PartAnatomy(
                ("decoder",),
                {
                    "attn": (
                        rf"{_GPT}\.attn\.(c_attn|c_proj)",
                        rf"{_BERT}\.attention\.(self\.(query|key|value)|output\.dense)",
                    ),
                    "cross": (
                        rf"{_GPT}\.crossattention\.(q_attn|c_attn|c_proj)",
                        rf"{_BERT}\.crossattention\.(self\.(query|key|value)|output\.dense)",
                    ),
                    "mlp": (rf"{_GPT}\.mlp\.(c_fc|c_proj)", rf"{_BERT}\.(intermediate|output)\.dense"),
                    "norm": (
                        rf"{_GPT}\.(ln_1|ln_2|ln_cross_attn)",
                        r"decoder\.transformer\.ln_f",
                        rf"{_BERT}\.(attention\.output|crossattention\.output|output)\.LayerNorm",
                        r"decoder\.(bert|roberta)\.embeddings\.LayerNorm",
                        r"decoder\.(cls\.predictions\.transform\.LayerNorm|lm_head\.layer_norm)",
                    ),
                    "embed": (
                        r"decoder\.transformer\.(wte|wpe)",
                        r"decoder\.(bert|roberta)\.embeddings\.(word|position|token_type)_embeddings",
                    ),
                    "head": (
                        r"decoder\.lm_head(\.dense|\.decoder)?",
                        r"decoder\.cls\.predictions(\.decoder|\.transform\.dense)?",
                    ),
                },
            ),
        },
        never_run=(r"encoder\.pooler",),
    )
    seams = (Seam("vision", ("vision",), consumer_casts_input=True),)
    model_class = "VisionEncoderDecoderModel"
    model_types = ("vision-encoder-decoder",)
    never_quantized = (r"decoder\.lm_head", r"decoder\.cls", r"encoder\.pooler")
    attention_layout = AttentionLayout(
        "cross-attention", rf"{_GPT}\.crossattention|{_BERT}\.crossattention\.self",
        vision=r"encoder\.layers\.\d+\.attention", text=rf"{_GPT}\.attn|{_BERT}\.attention\.self",
    )  # fmt: skip

    @classmethod
    def from_model(cls, source: str, model: Any) -> Self:
        """See Backbone.from_model; uses ViT's image processor for older checkpoints that do not name one."""
        try:
            processor = loading.load_image_processor(source)
        except BackboneError as error:
            try:
                processor = transformers.ViTImageProcessorPil.from_pretrained(source)
            except (OSError, ValueError):
                raise error from None
        return cls(source, model, loading.load_tokenizer(source), processor)

    @property
    def max_positions(self) -> int:
        """See Backbone.max_positions."""
        return int(self.config.decoder.max_position_embeddings)

    def prompt_ids(self, prompt: str) -> list[int]:
        """See Backbone.prompt_ids: the decoder's start token and the prompt."""
        config = self.config
        start = config.decoder_start_token_id
        return [
            int(start if start is not None else config.decoder.bos_token_id),
            *(self.token_ids([prompt])[0] if prompt else ()),
        ]

    @property
    def end_id(self) -> int:
        """The configuration's eos_token_id, else the tokenizer's; BERT-like decoders end with `[SEP]`."""
        end = getattr(self.config, "eos_token_id", None)
        return int(end) if end is not None else super().end_id

    def forward_to(self, seam: str, inputs: torch.Tensor, *, prompt: str) -> torch.Tensor:
        """See Backbone.forward_to: the encoder's output."""
        features: torch.Tensor = self.model.encoder(pixel_values=inputs).last_hidden_state
        return features

    def decode(self, features: torch.Tensor, text: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """See Backbone.decode."""
        logits: torch.Tensor = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=features),
            decoder_input_ids=text.input_ids,
            decoder_attention_mask=text.attention_mask,
            use_cache=False,
        ).logits
        return next_token_loss(logits, text.labels), logits

    def generate_ids(
        self, features: torch.Tensor, input_ids: torch.Tensor, decoding: transformers.GenerationConfig
    ) -> torch.Tensor:
        """See Backbone.generate_ids."""
        ids: torch.Tensor = self.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=features),
            decoder_input_ids=input_ids,
            decoder_attention_mask=torch.ones_like(input_ids),
            generation_config=decoding,
        )
        return ids[:, input_ids.shape[1] :]
