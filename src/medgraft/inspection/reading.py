"""Reads data as a run does; what a run refuses is read again as far as it can be."""

from __future__ import annotations

from dataclasses import dataclass

from medgraft.config import DataConfig
from medgraft.data import RefusedDataError, load_data
from medgraft.plugin import PluginManager
from medgraft.types import CaptionData


@dataclass(frozen=True)
class Reading:
    """What can be read. `refusal` is the message with which a run refuses the data.

    `unusable` is the message of a second reading without bad rows, if that is refused too; then no image can be used.
    """

    data: CaptionData
    refusal: str | None = None
    unusable: str | None = None

    @property
    def has_images(self) -> bool:
        """Whether the images of `data` can be used."""
        return self.unusable is None


def read(config: DataConfig, *, plugins: PluginManager) -> Reading:
    """Read the data. DataError if there is nothing at the path."""
    try:
        return Reading(load_data(config, plugins=plugins))
    except RefusedDataError as error:
        refusal = str(error)
    lenient = {"skip_bad_rows": True, "on_leak": "warn" if config.on_leak == "error" else config.on_leak}
    try:
        return Reading(load_data(config.model_copy(update=lenient), plugins=plugins), refusal)
    except RefusedDataError as error:
        return Reading(error.data, refusal, str(error))
