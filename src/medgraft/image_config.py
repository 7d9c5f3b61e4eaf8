"""The settings of images."""

from __future__ import annotations

from pydantic import Field

from medgraft.strict_model import StrictModel


class ImageConfig(StrictModel):
    """How the model takes images."""

    size: int | None = Field(
        default=None,
        gt=0,
        le=8192,
        description="pixels of an image's side, for Qwen-VL of its longest side; position embeddings are interpolated; "
        "default: the checkpoint's own, for Qwen-VL at most 448",
    )
