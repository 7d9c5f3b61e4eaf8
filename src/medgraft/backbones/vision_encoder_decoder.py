"""Vision encoder-decoders such as ViT-GPT2 and TrOCR: a text decoder that cross-attends to an image encoder."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import torch
import transformers
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING
from transformers.modeling_outputs import BaseModelOutput

from medgraft.backbones import loading
from medgraft.backbones.base import Backbone
from medgraft.backbones.half_weights import Held
from medgraft.backbones.text_batch import TextBatch, next_token_loss
from medgraft.errors import BackboneError
from medgraft.types import Anatomy, AttentionLayout, PartAnatomy, Prompts, Seam

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

_ENCODER = r"encoder\.(?!pooler\.|head\.)(.+\.)?"
_GPT = r"decoder\.transformer\.h\.\d+"
_BERT = r"decoder\.\w+\.encoder\.layer\.\d+"  # and its kin: RoBERTa, ELECTRA, CamemBERT
_BART = r"decoder\.model\.decoder\.layers\.\d+"  # and its kin: TrOCR, mBART
_CROSS = rf"{_GPT}\.crossattention|{_BERT}\.crossattention\.self|{_BART}\.encoder_attn"
_NO_CROSS_ATTENTION = "has no cross-attention to the image. Decoders that have: GPT-2, BERT, RoBERTa, ELECTRA, BART and TrOCR."
_ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit")  # these do not have to be asked to
_UNSUITED_ENCODERS = {
    "vit_mae": "hides random patches of every image; save its weights as a ViT",
    "siglip2_vision_model": "takes patches of images in several shapes, which VisionEncoderDecoderModel does not pass on",
}


class VisionEncoderDecoderBackbone(Backbone):
    """Any `VisionEncoderDecoderModel` whose encoder gives a sequence of patches and whose decoder cross-attends to it.

    Encoders: ViT, DeiT, BEiT, Swin, CLIP's, SigLIP's, DINOv2 and others built like them. Decoders: GPT-2, BERT, RoBERTa,
    ELECTRA, BART, TrOCR and others built like them. A sequence is the decoder's start token (and `forced_bos_token_id` where
    the generation settings have one), the prompt, the caption and the end token.
    """

    anatomy = Anatomy(
        {
            "vision": PartAnatomy(
                ("encoder",),
                {
                    "attn": (
                        rf"{_ENCODER}(attention|self_attn)\.([qkvo]|out)_proj",
                        rf"{_ENCODER}attention\.(self|attention)\.(query|key|value)",  # Swin v2, Data2Vec
                        rf"{_ENCODER}attention\.output\.dense",
                    ),
                    "mlp": (
                        rf"{_ENCODER}mlp\.(fc[12]|(gate|up|down)_proj)",
                        rf"{_ENCODER}(intermediate|(?<!attention\.)output)\.dense",
                    ),
                    "proj": (rf"{_ENCODER}downsample\.reduction",),
                    "embed": (
                        r"encoder\.embeddings",
                        rf"{_ENCODER}relative_position_bias",
                        rf"{_ENCODER}continuous_position_bias_mlp",
                    ),
                    "norm": (rf"{_ENCODER}(pre_|post_)?(layer_?norm|layrnorm|norm)(_before|_after|[12])?",),
                    "head": (r"encoder\.head",),
                },
            ),
            "bridge": PartAnatomy(("enc_to_dec_proj",), {"proj": (r"enc_to_dec_proj",)}),
            "text": PartAnatomy(
                ("decoder",),
                {
                    "attn": (
                        rf"{_GPT}\.attn\.(c_attn|c_proj)",
                        rf"{_BERT}\.attention\.(self\.(query|key|value)|output\.dense)",
                        rf"{_BART}\.self_attn\.([qkv]|out)_proj",
                    ),
                    "cross": (
                        rf"{_GPT}\.crossattention\.(q_attn|c_attn|c_proj)",
                        rf"{_BERT}\.crossattention\.(self\.(query|key|value)|output\.dense)",
                        rf"{_BART}\.encoder_attn\.([qkv]|out)_proj",
                    ),
                    "mlp": (
                        rf"{_GPT}\.mlp\.(c_fc|c_proj)",
                        rf"{_BERT}\.(intermediate|output)\.dense",
                        rf"{_BART}\.fc[12]",
                    ),
                    "proj": (r"decoder\.electra\.embeddings_project",),
                    "norm": (
                        rf"{_GPT}\.(ln_1|ln_2|ln_cross_attn)",
                        r"decoder\.transformer\.ln_f",
                        rf"{_BERT}\.(attention\.output|crossattention\.output|output)\.LayerNorm",
                        rf"{_BART}\.(self_attn|encoder_attn|final)_layer_norm",
                        r"decoder\.model\.decoder\.(layernorm_embedding|layer_norm)",
                        r"decoder\.\w+\.embeddings\.LayerNorm",
                        r"decoder\.(cls\.predictions\.transform\.LayerNorm|lm_head\.layer_norm|generator_predictions\.LayerNorm)",
                    ),
                    "embed": (
                        r"decoder\.transformer\.(wte|wpe)",
                        r"decoder\.\w+\.embeddings\.(word|position|token_type)_embeddings",
                        r"decoder\.model\.decoder\.embed_(tokens|positions)",
                    ),
                    "head": (
                        r"decoder\.lm_head(\.dense|\.decoder)?",
                        r"decoder\.cls\.predictions(\.decoder|\.transform\.dense)?",
                        r"decoder\.(generator_predictions\.dense|generator_lm_head|output_projection)",
                    ),
                },
            ),
        },
        never_run=(r"encoder\.pooler",),
        # DINOv2 masks in its own training alone; CLIP's last norm and SigLIP's head make the pooled output, which is not read
        no_gradient=(r"encoder\.embeddings\.mask_token", r"encoder\.post_layernorm", r"encoder\.head"),
    )
    seams = (Seam("vision", ("vision",), consumer_casts_input=True),)
    model_class = "VisionEncoderDecoderModel"
    model_types = ("vision-encoder-decoder",)
    several_images = True
    never_quantized = (
        r"decoder\.(lm_head|cls|generator_predictions|generator_lm_head|output_projection)", r"encoder\.(pooler|head)",
    )  # fmt: skip
    attention_layout = AttentionLayout(
        "cross-attention", _CROSS,
        vision=r"encoder\.((encoder|model)\.)?layers?\.\d+\.(attention|self_attn)",
        text=rf"{_GPT}\.attn|{_BERT}\.attention\.self|{_BART}\.self_attn",
    )  # fmt: skip

    def __init__(self, source: str, model: Any, tokenizer: Any, image_processor: Any):
        super().__init__(source, model, tokenizer, image_processor)
        if not any(re.fullmatch(_CROSS, name) for name, _ in model.named_modules()):
            raise BackboneError(f"{source}: the decoder {self.config.decoder.model_type} {_NO_CROSS_ATTENTION}")
        decoding, config, decoder = model.generation_config, self.config, self.config.decoder
        start = _first("decoder_start_token_id", config, decoding, decoder)
        start = _first("bos_token_id", decoding, decoder, tokenizer) if start is None else start
        end = _first("eos_token_id", config, decoding, tokenizer)
        start = _first("cls_token_id", tokenizer) if start is None else start  # BERT's own tokenizer has no other names
        end = _first("sep_token_id", tokenizer) if end is None else end
        if start is None or end is None:
            lacking = "decoder_start_token_id" if start is None else "eos_token_id"
            raise BackboneError(f"{source} does not say where captions begin and end: set {lacking} in its config.json.")
        self._head = tuple(token for token in (start, decoding.forced_bos_token_id) if token is not None)
        self._end = end
        decoding.forced_eos_token_id = None  # BART's would end a caption that is cut off
        embeddings = getattr(model.decoder.base_model, "embeddings", None)
        unused = getattr(embeddings, "padding_idx", -1) + 1  # RoBERTa's positions begin behind its padding's
        self._positions = int(decoder.max_position_embeddings) - unused

    @classmethod
    def load(cls, source: str, *, quantization: BitsAndBytesConfig | None = None, held: Held = Held()) -> Self:
        """See Backbone.load; BackboneError for an encoder or a decoder that cannot be used, by name."""
        _check_halves(source, loading.read_config(source, cls.model_types))
        return super().load(source, quantization=quantization, held=held)

    @classmethod
    def meta_model(cls, config: transformers.PreTrainedConfig) -> nn.Module:
        """See Backbone.meta_model; BackboneError as in `load`."""
        _check_halves(getattr(config, "name_or_path", "") or "the checkpoint", config)
        return super().meta_model(config)

    @classmethod
    def image_step(cls, config: transformers.PreTrainedConfig) -> int | None:
        """See Backbone.image_step; Swin halves its grid of patches in every stage but the first."""
        encoder: Any = config.encoder
        if not _interpolates(encoder) and encoder.model_type not in _ANY_SIZE:
            return None
        return int(encoder.patch_size) << len(getattr(encoder, "depths", (1,))) - 1

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
        return self._positions

    def prompt_ids(self, prompt: str) -> list[int]:
        """See Backbone.prompt_ids: the decoder's start token, the token that generation forces after it, and the prompt."""
        return [*self._head, *(self.token_ids([prompt])[0] if prompt else ())]

    @property
    def end_id(self) -> int:
        """The configuration's eos_token_id, else that of generation, else the tokenizer's, for BERT `[SEP]`."""
        return self._end

    def forward_to(self, seam: str, inputs: torch.Tensor, *, prompt: Prompts) -> torch.Tensor:
        """See Backbone.forward_to: the encoder's output."""
        encoder = self.config.encoder
        other = _interpolates(encoder) and self.interpolates(inputs, encoder.image_size)
        options = {"interpolate_pos_encoding": True} if other else {}
        features: torch.Tensor = self.model.encoder(pixel_values=inputs, **options).last_hidden_state
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

    @contextmanager
    def eager_attention(self) -> Iterator[None]:
        """See Backbone.eager_attention; TrOCR has no other, and returns its weights if its configuration asks for them."""
        halves = [self.model.encoder, self.model.decoder]
        fixed = [half.config for half in halves if not half._can_set_attn_implementation()]
        fused = [(half, half.config._attn_implementation) for half in halves if half._can_set_attn_implementation()]
        try:
            for half, _ in fused:
                half.set_attn_implementation("eager")
            for config in fixed:
                config.output_attentions = True
            yield
        finally:
            for half, implementation in fused:
                half.set_attn_implementation(implementation)
            for config in fixed:
                config.output_attentions = False


def _first(name: str, *places: Any) -> int | None:
    """The first id called `name` in configurations or tokenizers, the first one of a list; None if no place has one."""
    found = next((ids for place in places if (ids := getattr(place, name, None)) is not None), None)
    return None if found is None else int(found[0] if isinstance(found, Sequence) else found)


def _interpolates(encoder: Any) -> bool:
    """Whether transformers' model of the configuration `encoder` interpolates its position embeddings if it is asked to."""
    model: Any = MODEL_MAPPING[type(encoder)]
    return "interpolate_pos_encoding" in inspect.signature(model.forward).parameters


def _check_halves(source: str, config: Any) -> None:
    """BackboneError for an encoder without a sequence of patches, or a decoder without cross-attention."""
    encoder, decoder = config.encoder, config.decoder
    if encoder.model_type in _UNSUITED_ENCODERS:
        raise BackboneError(f"{source}: the encoder {encoder.model_type} {_UNSUITED_ENCODERS[encoder.model_type]}.")
    if getattr(encoder, "hidden_size", None) is None:
        raise BackboneError(
            f"{source}: the encoder {encoder.model_type} does not give a sequence of patches of one width, which the decoder "
            "reads. Use the vision model of a ViT-like encoder, such as clip_vision_model."
        )
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(decoder), None)
    crosses = model is not None and "encoder_hidden_states" in inspect.signature(model.forward).parameters
    if not crosses:
        raise BackboneError(f"{source}: the decoder {decoder.model_type} {_NO_CROSS_ATTENTION}")
