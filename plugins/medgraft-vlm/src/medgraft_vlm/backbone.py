"""Vision-language chat models: a vision tower, a bridge, and a language model whose prompt holds the image's tokens."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Self

import torch
import transformers
from PIL import Image
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from medgraft.plugin_api import Backbone, BackboneError, ConfigError, Part, Prompts, Seam, TextBatch, next_token_loss
from medgraft_vlm.anatomy import attention_layout, find_anatomy
from medgraft_vlm.images import SIDE, Geometry, find_geometry, load_processor, processed, resized_geometry

_OTHER = {"blip", "blip-2", "instructblip", "instructblipvideo", "git", "vision-encoder-decoder", "pix2struct", "janus"}
_MERGES = {"mm_encoder_outputs", "get_image_features"}  # where transformers takes and gives an image's tokens
_ANSWER = "medgraft"  # a word in the place of an answer
_classes: dict[str, Any] = {}


class VlmBackbone(Backbone):
    """Checkpoints of AutoModelForImageTextToText with a chat template, and PaliGemma.

    The prompt is a user's message with the image, the caption the assistant's answer. Anatomy and attention layout are those
    of the checkpoint: `for_source` gives a class that has them.
    """

    model_class = "AutoModelForImageTextToText"
    model_types = tuple(sorted(set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - _OTHER))
    default_prompt = "Describe this medical image in one sentence."

    @classmethod
    def for_config(cls, config: transformers.PreTrainedConfig) -> type[Self]:
        """See Backbone.for_config."""
        if "anatomy" in vars(cls):
            return cls
        key = config.to_json_string(use_diff=False)
        if key not in _classes:
            try:
                model: Any = cls.meta_model(config)
            except ImportError as error:
                raise BackboneError(
                    f"A model of type {config.model_type!r} cannot be built here: {str(error).strip()}".split("\n")[0]
                ) from None
            anatomy, missing = (
                find_anatomy(model),
                _MERGES - {*inspect.signature(model.forward).parameters, *dir(model.base_model)},
            )
            if missing:
                kind = type(model).__name__
                raise BackboneError(
                    f"{kind} does not take features of images ({', '.join(missing)}); it needs its own backbone."
                )
            below = tuple(part for part in anatomy.parts if part != "text")
            head = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
            bridge = anatomy.parts["bridge"].prefixes if "bridge" in below else ()
            own = {
                "anatomy": anatomy, "seams": (Seam("bridge", below),), "attention_layout": attention_layout(anatomy, model),
                "never_quantized": tuple(map(re.escape, (*head, *bridge))), "__doc__": cls.__doc__,
            }  # fmt: skip
            _classes[key] = type(cls.__name__, (cls,), own)
        made: type[Self] = _classes[key]
        return made

    def __init__(self, source: str, model: transformers.PreTrainedModel, tokenizer: Any, image_processor: Any):
        super().__init__(source, model, tokenizer, image_processor)
        self.processor = load_processor(source, self.config.model_type, tokenizer, image_processor)
        self.has_template = bool(self.processor.chat_template)
        if not self.has_template and self.config.model_type != "paligemma":
            raise BackboneError(f"{source} has no chat template that takes images; use an instruction-tuned checkpoint.")
        self._accepts = frozenset(inspect.signature(model.forward).parameters)
        self._use(find_geometry(source, self.processor))

    def _use(self, geometry: Geometry) -> None:
        """Take images as `geometry` says."""
        self.geometry = geometry
        self._prompts: dict[str, list[int]] = {}
        head = self.prompt_ids("")
        self._added = len(head) - len(self._ids(self._text("").replace(self.processor.image_token, "")))
        self._columns = [column for column, token in enumerate(head) if token == self.config.image_token_id]
        side = math.isqrt(len(self._columns))
        whole = self._columns == list(range(self._columns[0], self._columns[0] + side**2))
        self.attention_layout = (
            type(self).attention_layout if whole else None
        )  # with tiles or marks there is no grid of patches

    @classmethod
    def image_step(cls, config: transformers.PreTrainedConfig) -> int | None:
        """See Backbone.image_step; the processor rounds sizes itself."""
        return 1

    def set_image_size(self, size: int) -> None:
        """See Backbone.set_image_size; for models that read images at their own size, or in tiles."""
        self._use(resized_geometry(self.source, self.processor, self.geometry, size))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.config,), self.__getstate__()

    @classmethod
    def tokens(cls, config: transformers.PreTrainedConfig, caption: int) -> dict[Part, int]:
        """See Backbone.tokens."""
        vision: Any = config.vision_config
        size = getattr(vision, "image_size", None)
        side = size if isinstance(size, int) else size[0] if size else SIDE
        patch = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
        patches = (side // patch) ** 2
        known = [getattr(config, name, None) for name in ("mm_tokens_per_image", "image_seq_length")]
        merge = getattr(vision, "spatial_merge_size", 1) * getattr(config, "scale_factor", 1)
        tokens = next((count for count in known if count), patches // merge**2)
        return {"vision": patches, "bridge": tokens, "text": tokens + caption}

    @cached_property
    def end_id(self) -> int:
        """The token after the answer in the chat template; the tokenizer's end token if the template has none."""
        if self.has_template:
            after = self._chat("", _ANSWER).rpartition(_ANSWER)[2]
            ids: list[int] = self.tokenizer(after.strip(), add_special_tokens=False)["input_ids"]
            if ids and ids[0] in self.tokenizer.all_special_ids:
                return ids[0]
        return int(self.tokenizer.eos_token_id)

    @property
    def image_tokens(self) -> int:
        """What the image adds to a prompt: its tokens, and the marks before, between and after them."""
        return self._added

    def _chat(self, prompt: str, answer: str | None = None) -> str:
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        text: str = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer is None)
        return text

    def _text(self, prompt: str) -> str:
        return self._chat(prompt) if self.has_template else f"{self.processor.image_token}{prompt}"

    def _ids(self, text: str, image: Image.Image | None = None) -> list[int]:
        """The processor's tokens of `text`; as in its apply_chat_template, special tokens are added if it does not begin so."""
        begun = self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)
        if image is None:
            made = self.tokenizer([text], add_special_tokens=not begun)
        else:
            made = self.processor(text=[text], images=[image], add_special_tokens=not begun)
        return list(map(int, made["input_ids"][0]))

    @cached_property
    def _before(self) -> tuple[str, int]:
        """The text right before an answer, from the prompt's last character on, and how many tokens of it are the prompt's."""
        if not self.has_template:
            return "", 0
        head, whole = self._chat(""), self._chat("", _ANSWER)
        space = whole[len(head) :].partition(_ANSWER)[0] if whole.startswith(head) else ""
        last = "" if head.endswith(tuple(self.tokenizer.all_special_tokens)) else head[-1]
        return last + (space if space.isspace() else ""), len(super().token_ids([last])[0])

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """See Backbone.token_ids; texts are tokenised as answers in the chat, with the space that its template puts first."""
        before, known = self._before
        return [ids[known:] for ids in super().token_ids([before + text for text in texts])]

    def token_spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """See Backbone.token_spans."""
        before, known = self._before
        rows = [spans[known:] for spans in super().token_spans([before + text for text in texts])]
        return [[(max(start - len(before), 0), max(end - len(before), 0)) for start, end in spans] for spans in rows]

    def prompt_ids(self, prompt: str) -> list[int]:
        """The chat up to where the assistant begins, with the image's tokens as the processor has them."""
        if prompt not in self._prompts:
            text = self._text(prompt)
            if text.count(self.processor.image_token) != 1:
                raise ConfigError(f"The prompt {prompt!r} holds {self.processor.image_token}, which stands for the image.")
            blank = self.geometry.fitted(Image.new("RGB", (SIDE, SIDE)))
            self._prompts[prompt] = self._ids(text, blank)
        return list(self._prompts[prompt])

    def pixel_values(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """What the processor makes of each image, [B, 3, H, W], or [B, tiles, 3, H, W], or patches [B, N, C * P * P]."""
        made = [processed(self.processor, self.geometry.fitted(image))["pixel_values"] for image in images]
        if odd := [tuple(one.shape) for one in made if tuple(one.shape) != self.geometry.shape]:
            raise BackboneError(f"{self.source} makes pixel values {odd[0]} of an image, and {self.geometry.shape} of others.")
        return torch.stack([one[0] if self.geometry.shape[0] == 1 else one for one in made])

    def image_settings(self) -> dict[str, Any]:
        """See Backbone.image_settings."""
        fit = {"fit": self.geometry.fit, "side": self.geometry.side, "processor": type(self.processor).__name__}
        return {**super().image_settings(), **fit, "shape": list(self.geometry.shape)}

    def _given(self, count: int, device: torch.device, wanted: Any) -> dict[str, torch.Tensor]:
        """What the model wants beside pixels, of `count` images, as far as it is in `wanted`."""
        mine = {name: value for name, value in self.geometry.given.items() if name in wanted}
        return {name: value.repeat(count, *[1] * (value.ndim - 1)).to(device) for name, value in mine.items()}

    def _image_output(self, pixels: torch.Tensor) -> Any:
        compute = self.model.base_model.get_image_features
        given = self._given(len(pixels), pixels.device, inspect.signature(compute).parameters)
        return compute(pixel_values=pixels if self.geometry.shape[0] == 1 else pixels.flatten(0, 1), **given)

    def forward_to(self, seam: str, inputs: torch.Tensor, *, prompt: Prompts) -> torch.Tensor:
        """The image's tokens as the language model reads them, [B, S, C], followed by those for its lower layers, if any."""
        output = self._image_output(inputs)
        found = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
        rows = [one if isinstance(one, torch.Tensor) else torch.cat(tuple(one)) for one in found]
        return torch.cat([row.reshape(len(inputs), -1, row.shape[-1]) for row in rows], dim=-1)

    @cached_property
    def _lists(self) -> bool:
        """Whether the model has its images' features as a list."""
        blank = self.pixel_values([Image.new("RGB", (SIDE, SIDE))]).to(self.device)
        with torch.no_grad():
            return not isinstance(self._image_output(blank).pooler_output, torch.Tensor)

    def _inputs(self, features: torch.Tensor, text: TextBatch) -> dict[str, Any]:
        width = self.config.get_text_config().hidden_size
        pooled, *deep = (tuple(part) if self._lists else part for part in torch.split(features, width, dim=-1))
        places = (text.input_ids == self.config.image_token_id).int()
        if not self.has_template:  # a prefix that attends to itself, and a suffix
            places = ((text.labels != -100).cumsum(1) > 0).int()
        kinds: dict[str, Any] = {name: places for name in ("token_type_ids", "mm_token_type_ids") if name in self._accepts}
        image = SimpleNamespace(pooler_output=pooled, **({"deepstack_features": deep} if deep else {}))
        return {
            "input_ids": text.input_ids, "attention_mask": text.attention_mask, "mm_encoder_outputs": {"image": image},
            **kinds, **self._given(len(features), features.device, self._accepts),
        }  # fmt: skip

    def _logits(self, features: torch.Tensor, text: TextBatch, last: int = 0) -> torch.Tensor:
        """Logits at the `last` positions, [B, last, V]; at all of them if it is 0."""
        logits: torch.Tensor = self.model(**self._inputs(features, text), use_cache=False, logits_to_keep=last).logits
        return logits

    def decode(self, features: torch.Tensor, text: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """See Backbone.decode."""
        logits = self._logits(features, text)
        return next_token_loss(logits, text.labels), logits

    def loss(self, features: torch.Tensor, text: TextBatch) -> torch.Tensor:
        """See Backbone.loss; logits are computed from the last image token on, since no label comes before it."""
        after = text.input_ids.shape[1] - self._columns[-1]
        return next_token_loss(self._logits(features, text, last=after), text.labels[:, -after:])

    def generate_ids(
        self, features: torch.Tensor, input_ids: torch.Tensor, decoding: transformers.GenerationConfig
    ) -> torch.Tensor:
        """See Backbone.generate_ids."""
        text = TextBatch(input_ids, torch.ones_like(input_ids), torch.full_like(input_ids, -100))
        ids: torch.Tensor = self.model.generate(**self._inputs(features, text), generation_config=decoding)
        return ids[:, input_ids.shape[1] :]

    def visible_region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """See Backbone.visible_region; the square around the image if it is padded."""
        if self.geometry.fit == "as it is":
            return super().visible_region(width, height)
        side = max(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side


def _unpickled(config: transformers.PreTrainedConfig) -> VlmBackbone:
    kind = VlmBackbone.for_config(config)
    return kind.__new__(kind)
