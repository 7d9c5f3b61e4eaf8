"""A checkpoint's processor with PIL images, and how images have to be made alike for it."""

from __future__ import annotations

import inspect
import logging
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from PIL import Image, ImageOps
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from medgraft.plugin_api import BackboneError

SIDE = 448  # pixels of the square, for models that read images at their own size
_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels", "pixel_values")
_logger = logging.getLogger("medgraft.vlm")

Fit = Literal["as it is", "squared", "resized"]


@dataclass(frozen=True)
class Geometry:
    """How images are made alike, so that all have the same number of tokens, and what the processor gives for one of them.

    `squared` pads to a square, `resized` makes that square `side` pixels wide. `shape` are the dimensions of one image's
    pixel values, `given` what the model wants beside them.
    """

    fit: Fit
    side: int
    shape: tuple[int, ...]
    given: dict[str, Any]

    def fitted(self, image: Image.Image) -> Image.Image:
        """The image that the processor gets."""
        if self.fit == "as it is":
            return image
        side = self.side if self.fit == "resized" else max(image.size)
        return ImageOps.pad(image, (side, side), method=Image.Resampling.BICUBIC)


class PixtralTokens(transformers.ProcessorMixin):
    """What transformers' PixtralProcessor does, which needs torchvision: a mark after each row of an image's tokens."""

    def __init__(
        self, image_processor: Any, tokenizer: Any, patch_size: int = 16, spatial_merge_size: int = 1,
        chat_template: str | None = None, image_token: str = "[IMG]",
    ):  # fmt: skip
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.side, self.image_token = patch_size * spatial_merge_size, image_token  # pixels of a token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)

    def _process_images(self, images: Any, **options: Any) -> Any:
        return super()._process_images(images, **{**options, "patch_size": {"height": self.side, "width": self.side}})

    def replace_image_token(self, image_inputs: Any, image_idx: int, **_: Any) -> str:
        """The tokens of one image."""
        rows, columns = (int(edge) // self.side for edge in image_inputs["image_sizes"][image_idx])
        return (self.image_token * columns + "[IMG_BREAK]") * (rows - 1) + self.image_token * columns + "[IMG_END]"


_ALIKE = {
    "SmolVLMProcessor": transformers.Idefics3Processor,
    "PixtralProcessor": PixtralTokens,
}  # without torchvision, num2words


def load_processor(source: str, model_type: str, tokenizer: Any, image_processor: Any) -> Any:
    """The checkpoint's own processor around the tokenizer and the image processor, without its part for videos."""
    settings, _ = transformers.ProcessorMixin.get_processor_dict(source)
    named = settings.get("processor_class"), getattr(image_processor, "_processor_class", None)
    name = next(filter(None, named), None) or PROCESSOR_MAPPING_NAMES.get(model_type) or ""
    kind = _ALIKE.get(name) or getattr(transformers, name, None)
    if kind is None:
        raise BackboneError(f"{source} has no processor that is known: its files and model type {model_type!r} name {name!r}.")
    settings.setdefault("chat_template", tokenizer.chat_template)
    given = {**dict.fromkeys(kind.get_attributes()), "image_processor": image_processor, "tokenizer": tokenizer}
    known = {name: settings[name] for name in inspect.signature(kind.__init__).parameters if name in settings}
    processor = kind.__new__(kind)
    processor.check_argument_for_proper_class = _unchecked  # it would refuse a processor that has none for videos
    try:
        processor.__init__(**{**known, **given})
    except (AttributeError, TypeError, ValueError) as error:
        raise BackboneError(f"{source} has no complete processor ({kind.__name__}): {error}") from error
    return processor


def _unchecked(name: str, part: Any) -> None:
    """Accept any part of a processor."""


def processed(processor: Any, image: Image.Image) -> dict[str, Any]:
    """What the processor makes of one image and its placeholder, as tensors."""
    return dict(processor(text=[processor.image_token], images=[image], return_tensors="pt"))


def find_geometry(source: str, processor: Any, side: int = SIDE) -> Geometry:
    """The least change that makes all images have the same number of tokens; logged if it is one."""
    tried: tuple[tuple[Fit, tuple[tuple[int, int], ...]], ...] = (
        ("as it is", ((30, 20), (480, 640), (1000, 250))),
        ("squared", ((20, 20), (1000, 1000))),
        ("resized", ((side, side),)),
    )
    for fit, sizes in tried:  # noqa: B007 - used after the loop
        found = [processed(processor, Image.new("RGB", size)) for size in sizes]
        if all(_alike(one, found[0]) for one in found):
            break
    pixels, tokens = found[0]["pixel_values"], found[0]["input_ids"].shape[1]
    noise = Image.effect_noise(sizes[0], 100).convert("RGB")
    if not _alike(found[0], processed(processor, noise)):
        raise BackboneError(
            f"{source} reads more of an image than pixel_values: {', '.join(_given(found[0]))}. It needs a backbone of its own."
        )
    if fit != "as it is":
        size = f" of {side} px" if fit == "resized" else ""
        _logger.info("images are padded to a square%s, so that each has the same number of tokens (%d)", size, tokens)
    return Geometry(fit, side, tuple(pixels.shape), _given(found[0]))


def resized_geometry(source: str, processor: Any, now: Geometry, side: int) -> Geometry:
    """The geometry for squares of `side` pixels; BackboneError if the model takes images of one size, or smaller ones alone."""
    images = processor.image_processor
    size = dict(images.size)
    most = size.get("longest_edge")
    if now.fit == "as it is" or (now.fit == "squared" and most is None):
        raise BackboneError(f"{source} takes images of one size: leave image.size out.")
    if now.fit == "squared":  # the processor enlarges every image to this, and cuts it into tiles
        images.size = {**size, "longest_edge": side}
    elif most is not None and side > (limit := math.isqrt(most) if "shortest_edge" in size else most):
        raise BackboneError(f"{source} makes larger images {limit} pixels wide: image.size={side} is more than that.")
    return find_geometry(source, processor, side)


def _given(made: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in made.items() if name not in _TEXT and isinstance(value, torch.Tensor)}


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two images have the same number of tokens and pixel values, and all else the same."""
    first, second = _given(one), _given(other)
    same = all(one[name].shape == other[name].shape for name in ("pixel_values", "input_ids")) and first.keys() == second.keys()
    return same and all(torch.equal(value, second[name]) for name, value in first.items())
