"""The interface of a backbone: a captioning model with its processor, its anatomy, and the seams between its stages."""

from __future__ import annotations

import copy
import inspect
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
import transformers

from medgraft import hardware
from medgraft.backbones import loading
from medgraft.backbones.from_checkpoint import FromCheckpoint, overrides
from medgraft.backbones.text_batch import TextBatch, padded
from medgraft.backbones.visible_region import resize_to, visible_rectangle
from medgraft.config import GenerationConfig
from medgraft.errors import ConfigError
from medgraft.generation_config import SAMPLING
from medgraft.model_config import ModelConfig
from medgraft.seeds import seeded
from medgraft.types import AttentionLayout, Part, Prompts, Seam, prompt_of_each

if TYPE_CHECKING:
    from PIL.Image import Image


GenerateIds = Callable[[torch.Tensor, torch.Tensor, transformers.GenerationConfig], torch.Tensor]
"""(features [B, S, C], input ids [B, T], options) -> new tokens [B * num_return_sequences, N], as `Backbone.generate_ids`."""


def sampling(options: GenerationConfig, batch: int = 0) -> AbstractContextManager[None]:
    """Random numbers for sampling a batch, by its number and the seed; the caller's random state is restored at the end."""
    if not options.do_sample:
        return nullcontext()
    return seeded(int(np.random.SeedSequence([options.seed, batch]).generate_state(1)[0]))


class Backbone(FromCheckpoint):
    """A captioning model whose forward pass is split at `seams`: `forward_to` computes a seam from the one below it.

    `decode` and `generate` start from the last seam. Strategies change `model` in place, so every method has to access the
    layers through `self.model`. `never_quantized` and `keep_in_fp32` are patterns for modules that are exempt whatever the
    strategy requests. `attention_layout` describes where attention maps come from; None if the model has none. With
    `several_images`, `decode` and `generate_ids` take features [B, n S, C] of studies of n images, side by side.
    """

    seams: ClassVar[tuple[Seam, ...]]
    never_quantized: ClassVar[tuple[str, ...]] = ()
    default_source: ClassVar[str | None] = None
    default_prompt: ClassVar[str] = ""
    several_images: ClassVar[bool] = False
    attention_layout: AttentionLayout | None = None
    computes_in: torch.dtype | None = None  # set on loading for captioning; None: what the hardware is fastest in
    step_replayer: Any = None  # set by a kernel that replays training steps
    placement: ModelConfig = ModelConfig()  # where the weights are to lie; set on loading

    def __getstate__(self) -> dict[str, Any]:
        """State for worker processes, which prepare images and texts: without the model and methods that kernels replaced."""
        kind = type(self)
        return {n: v for n, v in self.__dict__.items() if n != "model" and not inspect.isfunction(getattr(kind, n, None))}

    @classmethod
    def tokens(cls, config: transformers.PreTrainedConfig, caption: int) -> dict[Part, int]:
        """Approximate number of tokens that each part processes for one image and `caption` caption tokens; for estimates."""
        vision: Any = getattr(config, "vision_config", None) or getattr(config, "encoder", None)
        size = getattr(vision, "image_size", None) or (384, 384)  # Donut's has two sides
        height, width = (size, size) if isinstance(size, int) else size
        patch = getattr(vision, "patch_size", 16) if hasattr(vision, "image_size") else 16
        patches = (height // patch) * (width // patch)
        return {"vision": patches + 1, "bridge": patches, "text": caption}

    @classmethod
    def image_step(cls, config: transformers.PreTrainedConfig) -> int | None:
        """With `image.size`, an image's side in pixels is a multiple of this; None if the model takes images of one size."""
        return None

    @classmethod
    def has_image_sizes(cls) -> bool:
        """Whether `image.size` can be set, for some of the class's checkpoints at least."""
        return overrides(cls, Backbone, "image_step")

    @property
    def device(self) -> torch.device:
        """Where inputs have to be."""
        where: torch.device = hardware.device() if self.placement.spreads else next(self.model.parameters()).device
        return where

    def to_device(self) -> None:
        """Move the model to this process's device, unless a device map says where its weights lie; in eval mode.

        Weights that are to be divided among processes stay on the CPU, as a device has no room for all.
        """
        self.model.eval()
        if not self.placement.spreads:
            self.model.to("cpu" if hardware.is_sharded() else hardware.device())

    @property
    def end_id(self) -> int:
        """The token that ends a caption."""
        return int(self.tokenizer.eos_token_id)

    @property
    def pad_id(self) -> int:
        """The padding token; never attended to and never a label."""
        return int(self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.end_id)

    @property
    def max_positions(self) -> int:
        """The decoder's maximum sequence length: prompt, caption and end token."""
        return int(self.config.get_text_config(decoder=True).max_position_embeddings)

    @property
    def image_tokens(self) -> int:
        """The number of image placeholder tokens in `prompt_ids`; they do not count as text."""
        return 0

    @property
    def logits_offset(self) -> int:
        """The number of positions between the logits that predict a label and the label itself."""
        return 1

    @abstractmethod
    def prompt_ids(self, prompt: str) -> list[int]:
        """The tokens before every caption: special tokens and the prompt."""

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts as token ids, without special tokens."""
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def token_spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """The (start, end) character offsets in its text of each token of `token_ids`."""
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        return [[(int(start), int(end)) for start, end in spans] for spans in encoded["offset_mapping"]]

    def readable(self, text: str) -> str:
        """A decoded caption with normal spacing."""
        return text.strip()

    def pixel_values(self, images: Sequence[Image]) -> torch.Tensor:
        """Preprocess RGB images of any size; batch first, [B, 3, H, W] for most models."""
        values: torch.Tensor = self.image_processor(list(images), return_tensors="pt")["pixel_values"]
        return values

    def image_settings(self) -> dict[str, Any]:
        """All settings that affect `pixel_values`, as JSON values; part of cache keys."""
        return {"class": type(self.image_processor).__name__, **json.loads(self.image_processor.to_json_string())}

    def set_image_size(self, size: int) -> None:
        """Prepare images as squares of `size` pixels from now on; `size` is a multiple of `image_step`."""
        resize_to(self.image_processor, size)

    @staticmethod
    def interpolates(pixel_values: torch.Tensor, image_size: int | Sequence[int]) -> bool:
        """Whether pixel values [B, 3, H, W] are of another size than the `image_size` of the position embeddings."""
        own = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        return tuple(pixel_values.shape[-2:]) != own

    def visible_region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The rectangle (left, top, right, bottom) of an image that the model sees, in the image's own pixels.

        It is smaller than the image if preprocessing crops, and larger if it pads.
        """
        return visible_rectangle(self.image_settings(), width, height)

    def text_batch(self, captions: Sequence[str], *, prompt: Prompts = "", max_tokens: int = 128) -> TextBatch:
        """Rows of prompt, caption, end token and padding, truncated to `max_tokens`; only caption and end token are labels.

        A truncated caption has no end token, because it does not end there. ConfigError if a prompt leaves no room for one.
        """
        heads = self.heads(prompt, len(captions))
        rows = [
            [*head, *[*ids, self.end_id][: self.max_caption_tokens(len(head), max_tokens)]]
            for head, ids in zip(heads, self.token_ids(captions), strict=True)
        ]
        input_ids, mask = padded(rows, self.pad_id)
        labels = input_ids.masked_fill(mask == 0, -100)
        for row, head in enumerate(heads):
            labels[row, : len(head)] = -100
        return TextBatch(input_ids, mask, labels)

    def heads(self, prompt: Prompts, rows: int) -> list[list[int]]:
        """The `prompt_ids` of each of `rows` rows."""
        prompts = prompt_of_each(prompt, rows)
        known = {text: self.prompt_ids(text) for text in dict.fromkeys(prompts)}
        return [known[text] for text in prompts]

    def max_caption_tokens(self, head: int, max_tokens: int) -> int:
        """How many tokens of a caption and its end token fit after `head` prompt tokens; ConfigError if fewer than two do."""
        longest = min(max_tokens + self.image_tokens, self.max_positions)
        if longest - head - 1 < 1:
            head, longest = head - self.image_tokens, longest - self.image_tokens
            raise ConfigError(
                f"The prompt takes {head} of {longest} tokens and leaves none. Shorten it or raise max_text_tokens."
            )
        return longest - head

    def encode(self, pixel_values: torch.Tensor, *, prompt: Prompts = "") -> torch.Tensor:
        """Features at the last seam, [B, S, C]."""
        return self.forward_through(self.seams, pixel_values, prompt=prompt)

    def forward_through(self, seams: Sequence[Seam], inputs: torch.Tensor, *, prompt: Prompts) -> torch.Tensor:
        """Features [B, S, C] at the last of consecutive `seams`; `inputs` are those below the first seam, or pixel values."""
        for seam in seams:
            inputs = self.forward_to(seam.name, inputs, prompt=prompt)
        return inputs

    @abstractmethod
    def forward_to(self, seam: str, inputs: torch.Tensor, *, prompt: Prompts) -> torch.Tensor:
        """Features [B, S, C] at `seam` from features at the seam below it; from pixel values for the first seam.

        `prompt` matters to seams that depend on it; it may be a list with a prompt for each row.
        """

    @abstractmethod
    def decode(self, features: torch.Tensor, text: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean loss over the labels that are not -100, logits [B, T, V])."""

    def loss(self, features: torch.Tensor, text: TextBatch) -> torch.Tensor:
        """The loss of `decode`; subclasses and kernels override this with faster computations."""
        return self.decode(features, text)[0]

    def generate(
        self, features: torch.Tensor, *, prompt: Prompts = "", options: GenerationConfig = GenerationConfig()
    ) -> list[str]:
        """`options.num_return_sequences` captions for each row of `features`, one after the other, without the prompt.

        Prompts of several rows have to be of equally many tokens.
        """
        inputs = self.generation_inputs(len(features), features.device, prompt, options)
        with sampling(options):
            return self.captions(self.generate_ids(features, *inputs))

    def generation_inputs(
        self, rows: int, device: torch.device, prompt: Prompts, options: GenerationConfig
    ) -> tuple[torch.Tensor, transformers.GenerationConfig]:
        """The arguments (input_ids [rows, T], options) of `generate_ids` for features of `rows` images."""
        input_ids = torch.tensor(self.heads(prompt, rows), dtype=torch.long, device=device)
        limit = max(min(options.max_new_tokens, self.max_positions - input_ids.shape[1]), 1)
        unread = set() if options.do_sample else set(SAMPLING)
        decoding = transformers.GenerationConfig(
            **options.model_dump(exclude={"max_new_tokens", "min_new_tokens", "seed", *unread}),
            max_new_tokens=limit,
            min_new_tokens=min(options.min_new_tokens, limit) or None,
            eos_token_id=self.end_id,
            pad_token_id=self.pad_id,
        )
        return input_ids, decoding

    def captions(self, ids: torch.Tensor) -> list[str]:
        """Decode the tokens [B, N] of `generate_ids` to captions."""
        return [self.readable(text) for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @abstractmethod
    def generate_ids(
        self, features: torch.Tensor, input_ids: torch.Tensor, decoding: transformers.GenerationConfig
    ) -> torch.Tensor:
        """Generate the new tokens [B * num_return_sequences, N] after the prompt `input_ids` [B, T]."""

    @contextmanager
    def generating(self) -> Iterator[GenerateIds]:
        """Yield `generate_ids`, or a kernel's faster version of it; weights must not change inside the block."""
        yield self.generate_ids

    def attention_index(self, features: torch.Tensor, text: TextBatch) -> tuple[int, slice]:
        """How to index the attention weights of the `attention_layout.words` modules: (row offset, image columns).

        The row offset is added to a label's position to get the row that predicts it. The columns are those of the image
        tokens: by default their positions in the prompt, or all of `features` (cross-attention) if the prompt has none.
        """
        image = features.shape[1]
        first = int((text.input_ids[0] == self.config.image_token_id).nonzero()[0]) if self.image_tokens else 0
        return -1, slice(first, first + image)

    @contextmanager
    def eager_attention(self) -> Iterator[None]:
        """Use eager attention inside the block, so that attention modules return their weights."""
        fused = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.model.set_attn_implementation(fused)

    def randomly_initialized(self, seed: int = 0) -> Self:
        """The same architecture with random weights in fp32, as a control for measurements on the trained model."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = loading.build_random(self.model_class, self.config)
        other = copy.copy(self)
        other.placement = ModelConfig()
        other.model = model.to(self.device).eval()
        return other
