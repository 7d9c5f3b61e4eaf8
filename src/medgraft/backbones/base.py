"""What a backbone is: a captioning model with its processor, its anatomy, and the seams where it can be cut."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import transformers
from torch import nn

from medgraft.backbones import loading, weights
from medgraft.backbones.view import seen_rectangle
from medgraft.config import GenerationConfig
from medgraft.errors import ConfigError
from medgraft.types import Anatomy, Gaze, Part, Seam

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import BitsAndBytesConfig


@dataclass(frozen=True)
class TextBatch:
    """Captions as the model reads them: `input_ids` and `attention_mask` [B, T], `labels` -100 where nothing is predicted.

    `labels` have the positions of `input_ids`; in models with a text encoder of their own [B, T'], the caption alone.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> TextBatch:
        """The same on `device`."""
        return TextBatch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))


class Backbone(ABC):
    """A captioning model. Its forward pass is cut at `seams`: `stage` computes one from the one below it.

    Above the last seam are `decode` and `generate`. Strategies change `model` in place, so every method reaches the
    layers through `self.model`. `never_quantized` and `keep_in_fp32` are patterns for modules that stay as they are
    whatever the strategy asks for. `gaze` says how attention maps are read off, None if they cannot be.
    """

    anatomy: ClassVar[Anatomy]
    seams: ClassVar[tuple[Seam, ...]]
    model_class: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    never_quantized: ClassVar[tuple[str, ...]] = ()
    keep_in_fp32: ClassVar[tuple[str, ...]] = ()
    default_source: ClassVar[str | None] = None
    default_prompt: ClassVar[str] = ""
    gaze: ClassVar[Gaze | None] = None

    def __init__(self, source: str, model: transformers.PreTrainedModel, tokenizer: Any, image_processor: Any):
        self.source = source
        self.model: Any = model
        self.config: Any = model.config
        self.tokenizer = tokenizer
        self.image_processor = image_processor

    def __getstate__(self) -> dict[str, Any]:
        """Without the model: what goes to a worker process prepares images and texts there."""
        return {name: value for name, value in self.__dict__.items() if name != "model"}

    @classmethod
    def load(cls, source: str, *, quantization: BitsAndBytesConfig | None = None) -> Self:
        """The model from a hub id or folder, in eval mode on the CPU; BackboneError if the weights are not of this kind.

        Weights are held in fp32, or as `quantization` says.
        """
        loading.read_config(source, cls.model_types)
        model = loading.load_model(cls.model_class, source, quantization, cls.anatomy.unused)
        return cls(source, model, loading.load_tokenizer(source), loading.load_image_processor(source))

    @classmethod
    def skeleton(cls, config: transformers.PreTrainedConfig) -> nn.Module:
        """The model that `config` describes on the meta device, without weights: for counting and matching only."""
        return loading.build_skeleton(cls.model_class, config)

    @classmethod
    def tokens(cls, config: transformers.PreTrainedConfig, caption: int) -> dict[Part, int]:
        """Roughly how many tokens each part reads for one image with a caption of so many tokens; for estimates only."""
        vision: Any = getattr(config, "vision_config", None) or getattr(config, "encoder", None)
        patches = (vision.image_size // vision.patch_size) ** 2 if hasattr(vision, "image_size") else 576
        return {"vision": patches + 1, "bridge": patches, "text": caption}

    @classmethod
    def fingerprint(cls, source: str) -> str:
        """Hex digest of the base weights; the same for every file layout and every quantisation of them."""
        return weights.fingerprint(source)

    @property
    def end_id(self) -> int:
        """The token that ends a caption."""
        return int(self.tokenizer.eos_token_id)

    @property
    def pad_id(self) -> int:
        """The token that fills up shorter rows; never attended to and never a label."""
        return int(self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.end_id)

    @property
    def positions(self) -> int:
        """The longest sequence that the decoder takes: the head, the caption and its end."""
        return int(self.config.get_text_config(decoder=True).max_position_embeddings)

    @property
    def image_tokens(self) -> int:
        """How many places in `head` stand for the image; they do not count as text."""
        return 0

    @property
    def label_shift(self) -> int:
        """How many places before a label the logits stand that predict it."""
        return 1

    @abstractmethod
    def head(self, prompt: str) -> list[int]:
        """The tokens that stand before every caption, the prompt among them."""

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts as token ids, without special tokens."""
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def token_spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """For each of `token_ids`, where it stands in its text: (start, end) in characters."""
        read = self.tokenizer(list(texts), add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        return [[(int(start), int(end)) for start, end in spans] for spans in read["offset_mapping"]]

    def readable(self, text: str) -> str:
        """A decoded caption as people write it."""
        return text.strip()

    def pixel_values(self, images: Sequence[Image]) -> torch.Tensor:
        """RGB images of any size as the model's input, batch first, [B, 3, H, W] for most models."""
        values: torch.Tensor = self.image_processor(list(images), return_tensors="pt")["pixel_values"]
        return values

    def image_settings(self) -> dict[str, Any]:
        """All that decides how an image becomes pixel values, for keys; JSON's types only."""
        return {"class": type(self.image_processor).__name__, **json.loads(self.image_processor.to_json_string())}

    def view(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The rectangle (left, top, right, bottom) that the model sees of an image, in the image's own pixels.

        It ends inside the image where that is cropped, and beyond it where it is padded.
        """
        return seen_rectangle(self.image_settings(), width, height)

    def text_batch(self, captions: Sequence[str], *, prompt: str = "", max_tokens: int = 128) -> TextBatch:
        """Rows of head, caption, end and padding, cut to `max_tokens`; only caption and end are labels."""
        head = self.head(prompt)
        room = self.room(len(head), max_tokens)
        rows = [[*head, *ids[:room], self.end_id] for ids in self.token_ids(captions)]
        input_ids, mask = padded(rows, self.pad_id)
        labels = input_ids.masked_fill(mask == 0, -100)
        labels[:, : len(head)] = -100
        return TextBatch(input_ids, mask, labels)

    def room(self, head: int, max_tokens: int) -> int:
        """How many caption tokens fit behind `head` tokens, the end not counted; ConfigError if none do."""
        longest = min(max_tokens + self.image_tokens, self.positions)
        if longest - head - 1 < 1:
            head, longest = head - self.image_tokens, longest - self.image_tokens
            raise ConfigError(
                f"The prompt takes {head} of {longest} tokens and leaves none. Shorten it or raise max_text_tokens."
            )
        return longest - head - 1

    def encode(self, pixel_values: torch.Tensor, *, prompt: str = "") -> torch.Tensor:
        """Features at the last seam, [B, S, C]."""
        return self.through(self.seams, pixel_values, prompt=prompt)

    def through(self, seams: Sequence[Seam], inputs: torch.Tensor, *, prompt: str) -> torch.Tensor:
        """Features at the last of successive `seams`, [B, S, C], from those at the seam below the first one."""
        for seam in seams:
            inputs = self.stage(seam.name, inputs, prompt=prompt)
        return inputs

    @abstractmethod
    def stage(self, seam: str, inputs: torch.Tensor, *, prompt: str) -> torch.Tensor:
        """Features at `seam`, [B, S, C], from those at the seam below it, or from pixel values if it is the first."""

    @abstractmethod
    def decode(self, features: torch.Tensor, text: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean loss over the labels that are not -100, logits [B, T, V])."""

    def loss(self, features: torch.Tensor, text: TextBatch) -> torch.Tensor:
        """The loss of `decode`, by whatever is the quickest way to it."""
        return self.decode(features, text)[0]

    def generate(
        self, features: torch.Tensor, *, prompt: str = "", options: GenerationConfig = GenerationConfig()
    ) -> list[str]:
        """One caption for each row of `features`, without the prompt: greedy, or beam search with `num_beams` above 1."""
        inputs = self.generation_inputs(len(features), features.device, prompt, options)
        return self.captions(self.continuation(features, *inputs))

    def generation_inputs(
        self, rows: int, device: torch.device, prompt: str, options: GenerationConfig
    ) -> tuple[torch.Tensor, transformers.GenerationConfig]:
        """What `continuation` takes beside the features of so many images."""
        head = self.head(prompt)
        input_ids = torch.tensor([head], dtype=torch.long, device=device).repeat(rows, 1)
        decoding = transformers.GenerationConfig(
            **options.model_dump(exclude={"max_new_tokens"}),
            max_new_tokens=max(min(options.max_new_tokens, self.positions - len(head)), 1),
            do_sample=False,
            eos_token_id=self.end_id,
            pad_token_id=self.pad_id,
        )
        return input_ids, decoding

    def captions(self, ids: torch.Tensor) -> list[str]:
        """The tokens [B, N] of `continuation` as people write them."""
        return [self.readable(text) for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @abstractmethod
    def continuation(
        self, features: torch.Tensor, input_ids: torch.Tensor, decoding: transformers.GenerationConfig
    ) -> torch.Tensor:
        """The new tokens [B, N] that the model says behind the head `input_ids` [B, T]."""

    def sight(self, features: torch.Tensor, text: TextBatch) -> tuple[int, slice]:
        """How the attention of `gaze.words` is read.

        What is added to a label's place to get the row that predicts it, and the columns of the image's tokens: by default
        where those stand in the prompt, or all of `features` as in cross-attention if they do not.
        """
        image = features.shape[1]
        first = int((text.input_ids[0] == self.config.image_token_id).nonzero()[0]) if self.image_tokens else 0
        return -1, slice(first, first + image)

    @contextmanager
    def weights_shown(self) -> Iterator[None]:
        """Compute attention step by step inside the block, so that attention modules return their weights."""
        fused = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.model.set_attn_implementation(fused)

    def untrained(self, seed: int = 0) -> Self:
        """The same architecture with random weights, in fp32: a control for whatever is read off the trained one."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = loading.build_random(self.model_class, self.config)
        other = copy.copy(self)
        other.model = model.to(next(self.model.parameters()).device).eval()
        return other


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids as (ids, mask), both [B, T] with T the longest row, padded on the right."""
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows], dtype=torch.long)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], dtype=torch.long)
    return ids, mask


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of logits [B, T, V] for labels [B, T] one place on, where those are not -100."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
