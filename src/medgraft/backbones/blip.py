"""BLIP (Li et al. 2022, arXiv 2201.12086): a vision transformer and a decoder that cross-attends to its output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from transformers import AutoConfig, AutoTokenizer, BlipForConditionalGeneration, BlipImageProcessorPil

from medgraft.backbones import weights
from medgraft.backbones.attention import use_sdpa
from medgraft.backbones.base import Backbone, TextBatch
from medgraft.backbones.wordpieces import join_punctuation
from medgraft.config import GenerationConfig
from medgraft.errors import BackboneError, ConfigError
from medgraft.types import Anatomy, PartAnatomy, Seam

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import BitsAndBytesConfig

_LAYER = r"bert\.encoder\.layer\.\d+"


class BlipBackbone(Backbone):
    """Any BLIP captioning checkpoint, by hub id or folder.

    Sequences start with the checkpoint's BOS (`[DEC]`), as generation does, and end with `[SEP]`.
    """

    anatomy = Anatomy(
        {
            "vision": PartAnatomy(
                "vision_model",
                {
                    "attn": (r"encoder\.layers\.\d+\.self_attn\.(qkv|projection)",),
                    "mlp": (r"encoder\.layers\.\d+\.mlp\.fc[12]",),
                    "embed": (r"embeddings", r"embeddings\.patch_embedding"),
                    "norm": (r"encoder\.layers\.\d+\.layer_norm[12]", r"post_layernorm"),
                },
            ),
            "text": PartAnatomy(
                "text_decoder",
                {
                    "attn": (rf"{_LAYER}\.attention\.(self\.(query|key|value)|output\.dense)",),
                    "cross": (rf"{_LAYER}\.crossattention\.(self\.(query|key|value)|output\.dense)",),
                    "mlp": (rf"{_LAYER}\.(intermediate|output)\.dense",),
                    "norm": (
                        rf"{_LAYER}\.(attention\.output|crossattention\.output|output)\.LayerNorm",
                        r"bert\.embeddings\.LayerNorm",
                        r"cls\.predictions\.transform\.LayerNorm",
                    ),
                    "embed": (r"bert\.embeddings\.(word|position)_embeddings",),
                    "head": (r"cls\.predictions(\.decoder|\.transform\.dense)?",),
                },
            ),
        }
    )
    seam = Seam("vision", ("vision",))
    never_quantized = ("text_decoder.cls",)

    def __init__(self, source: str, model: BlipForConditionalGeneration, tokenizer: Any, processor: BlipImageProcessorPil):
        self.source = source
        self.model: BlipForConditionalGeneration = model
        self.tokenizer = tokenizer
        self.processor = processor

    @classmethod
    def load(cls, source: str, *, quantization: BitsAndBytesConfig | None = None) -> Self:
        """See Backbone.load. Weights are held in fp32, or as `quantization` says."""
        _check_is_blip(source)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            processor = BlipImageProcessorPil.from_pretrained(source)
            model, info = BlipForConditionalGeneration.from_pretrained(
                source, dtype=torch.float32, quantization_config=quantization, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise BackboneError(f"{source} cannot be loaded as BLIP: {str(error).splitlines()[0]}") from error
        if info["missing_keys"]:
            raise BackboneError(
                f"{source} is not a BLIP captioning checkpoint: {len(info['missing_keys'])} tensors are missing, "
                f"such as {sorted(info['missing_keys'])[0]}."
            )
        use_sdpa(model)
        return cls(source, model.eval(), tokenizer, processor)

    def fingerprint(self) -> str:
        """See Backbone.fingerprint."""
        return weights.fingerprint(self.source)

    @property
    def _bos(self) -> int:
        return int(self.model.config.text_config.bos_token_id)

    @property
    def _end(self) -> int:
        return int(self.model.config.text_config.sep_token_id)

    @property
    def _pad(self) -> int:
        return int(self.model.config.text_config.pad_token_id)

    @property
    def _positions(self) -> int:
        return int(self.model.config.text_config.max_position_embeddings)

    def _head(self, prompt: str) -> list[int]:
        return [self._bos, *self._ids([prompt])[0]] if prompt else [self._bos]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def pixel_values(self, images: Sequence[Image]) -> torch.Tensor:
        """See Backbone.pixel_values."""
        values: torch.Tensor = self.processor(list(images), return_tensors="pt")["pixel_values"]
        return values

    def text_batch(self, captions: Sequence[str], *, prompt: str = "", max_tokens: int = 128) -> TextBatch:
        """See Backbone.text_batch. Rows are [DEC] prompt caption [SEP] padding; only caption and [SEP] are labels."""
        head = self._head(prompt)
        longest = min(max_tokens, self._positions)
        room = longest - len(head) - 1
        if room < 1:
            raise ConfigError(
                f"The prompt takes {len(head)} of {longest} tokens and leaves none. Shorten it or raise max_text_tokens."
            )
        rows = [[*head, *ids[:room], self._end] for ids in self._ids(captions)]
        length = max(len(row) for row in rows)
        input_ids = torch.full((len(rows), length), self._pad)
        mask = torch.zeros_like(input_ids)
        for i, row in enumerate(rows):
            input_ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        labels = input_ids.masked_fill(mask == 0, -100)
        labels[:, : len(head)] = -100
        return TextBatch(input_ids, mask, labels)

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """See Backbone.encode: the vision tower's output, class token first."""
        features: torch.Tensor = self.model.vision_model(pixel_values=pixel_values).last_hidden_state
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

    def generate(
        self, features: torch.Tensor, *, prompt: str = "", options: GenerationConfig = GenerationConfig()
    ) -> list[str]:
        """See Backbone.generate: greedy, or beam search with `num_beams` above 1."""
        head = self._head(prompt)
        input_ids = torch.tensor([head], device=features.device).repeat(features.shape[0], 1)
        room = max(self._positions - len(head), 1)
        generated = self.model.text_decoder.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            encoder_hidden_states=features,
            encoder_attention_mask=torch.ones(features.shape[:2], dtype=torch.long, device=features.device),
            eos_token_id=self._end,
            pad_token_id=self._pad,
            do_sample=False,
            max_new_tokens=min(options.max_new_tokens, room),
            num_beams=options.num_beams,
            length_penalty=options.length_penalty,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            repetition_penalty=options.repetition_penalty,
        )
        texts: list[str] = self.tokenizer.batch_decode(generated[:, len(head) :], skip_special_tokens=True)
        return [join_punctuation(text) for text in texts]


def _check_is_blip(source: str) -> None:
    local = source.startswith((".", "/", "~"))
    if local and not Path(source).expanduser().is_dir():
        raise BackboneError(f"There is no folder {source}. A BLIP folder holds config.json, model.safetensors and a tokenizer.")
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        where = "is no model folder" if Path(source).is_dir() else "is neither a folder nor a model that the hub gave"
        raise BackboneError(f"{source} {where}: {str(error).splitlines()[0]}") from None
    if config.model_type != "blip":
        raise BackboneError(f"{source} is not BLIP: its config.json says model_type {config.model_type!r}.")
