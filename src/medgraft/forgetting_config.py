"""The settings of forgetting."""

from __future__ import annotations

from pydantic import Field

from medgraft.strict_model import StrictModel


class ForgettingConfig(StrictModel):
    """What training costs on general images: the base's loss on its own captions of them, before and after."""

    images: int = Field(default=16, ge=0, description="number of general images; 0: not measured")
    folder: str | None = Field(default=None, description="folder with general images; default: drawn scenes")
