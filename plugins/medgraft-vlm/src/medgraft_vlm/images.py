"""A checkpoint's processor with PIL images, and how images have to be made alike for it."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from typing import Any, Literal

import transformers
from PIL import Image, ImageOps
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from medgraft.plugin_api import BackboneError

SIDE = 448  # pixels of the square, for models that read images at their own size
_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels", "pixel_values")
_SAME = {"SmolVLMProcessor": "Idefics3Processor"}  # does the same with images, and needs no library for videos
_logger = logging.getLogger("medgraft.vlm")

Fit = Literal["as it is", "squared", "resized"]


@dataclass(frozen=True)
class Geometry:
    """How images are made alike, so that all have the same number of tokens, and what the processor gives for one of them.

    `squared` pads to a square, `resized` makes that square `SIDE` pixels wide. `shape` are the dimensions of one image's
    pixel values, `given` what the model wants beside them.
    """

    fit: Fit
    shape: tuple[int, ...]
    given: dict[str, Any]

    def fitted(self, image: Image.Image) -> Image.Image:
        """The image that the processor gets."""
        if self.fit == "as it is":
            return image
        side = SIDE if self.fit == "resized" else max(image.size)
        return ImageOps.pad(image, (side, side), method=Image.Resampling.BICUBIC)


def load_processor(source: str, model_type: str, tokenizer: Any, image_processor: Any) -> Any:
    """The checkpoint's own processor around the tokenizer and the image processor, without its part for videos."""
    name = getattr(image_processor, "_processor_class", None) or tokenizer.init_kwargs.get("processor_class")
    name = name or PROCESSOR_MAPPING_NAMES.get(model_type)
    kind = getattr(transformers, _SAME.get(name, name) or "", None)
    if kind is None:
        raise BackboneError(f"{source} has no processor that is known: its files and model type {model_type!r} name {name!r}.")
    settings, _ = kind.get_processor_dict(source)
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


def find_geometry(source: str, processor: Any) -> Geometry:
    """The least change that makes all images have the same number of tokens; logged if it is one."""
    tried: tuple[tuple[Fit, tuple[tuple[int, int], ...]], ...] = (
        ("as it is", ((640, 480), (480, 640), (1000, 250))),
        ("squared", ((200, 200), (1000, 1000))),
        ("resized", ((SIDE, SIDE),)),
    )
    for fit, sizes in tried:
        found = [processed(processor, Image.new("RGB", size)) for size in sizes]
        if all(_outline(one) == _outline(found[0]) for one in found):
            break
    pixels, tokens = found[0]["pixel_values"], found[0]["input_ids"].shape[1]
    if fit != "as it is":
        size = f" of {SIDE} px" if fit == "resized" else ""
        _logger.info("images are padded to a square%s, so that each has the same number of tokens (%d)", size, tokens)
    given = {n: v for n, v in found[0].items() if n not in _TEXT and hasattr(v, "shape")}
    return Geometry(fit, tuple(pixels.shape), given)


def _outline(made: dict[str, Any]) -> tuple[Any, ...]:
    others = [v.tolist() for n, v in sorted(made.items()) if n not in _TEXT and hasattr(v, "shape") and v.numel() < 100]
    return tuple(made["pixel_values"].shape), tuple(made["input_ids"].shape), others
