"""The settings of augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from medgraft.strict_model import StrictModel

_RADIOLOGY = {"rotation": 10.0, "crop": 0.1, "contrast": 0.2, "brightness": 0.1, "noise": 0.02}


class AugmentationConfig(StrictModel):
    """Random changes to training images, never to images that are captioned; off unless a value or the preset is set."""

    preset: Literal["none", "radiology"] = Field(
        default="none", description="radiology: " + ", ".join(f"{key} {value:g}" for key, value in _RADIOLOGY.items())
    )
    rotation: float = Field(default=0.0, ge=0, le=45, description="turn by up to this many degrees, either way")
    crop: float = Field(default=0.0, ge=0, le=0.5, description="cut off up to this share of width and height, and enlarge")
    contrast: float = Field(default=0.0, ge=0, le=0.9, description="stretch or compress grey levels by up to this share")
    brightness: float = Field(default=0.0, ge=0, le=0.5, description="shift grey levels by up to this share of their range")
    noise: float = Field(default=0.0, ge=0, le=0.25, description="noise with a standard deviation of up to this share")
    horizontal_flip: bool = Field(default=False, description="mirror half of the images: swaps left and right")

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, values: Any) -> Any:
        """Fill in the preset's values, so that records hold all of them."""
        chosen = isinstance(values, Mapping) and values.get("preset") == "radiology"
        return {**_RADIOLOGY, **values} if chosen else values

    @property
    def on(self) -> bool:
        """Whether anything is changed."""
        return bool(self.changes())

    def changes(self) -> dict[str, float]:
        """The values that are not zero; the preset is in them."""
        return {name: value for name, value in self if name != "preset" and value}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in self.changes().items()) or "none"
