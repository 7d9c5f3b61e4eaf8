"""Reads data as a run does; what a run refuses is read again as far as it can be."""

from __future__ import annotations

from dataclasses import dataclass

from medgraft.config import DataConfig
from medgraft.data import RefusedDataError, load_data
from medgraft.plugin import PluginManager
from medgraft.types import CaptionData


@dataclass(frozen=True)
class Reading:
    """What can be read of data. `refusal` is the message with which a run refuses them; None if it does not.

    `second_refusal` is the message with which it refuses them once the bad rows are left out.
    """

    data: CaptionData
    refusal: str | None = None
    second_refusal: str | None = None


def read(config: DataConfig, *, plugins: PluginManager) -> Reading:
    """Read the data, without the bad rows if a run refuses them. DataError if there is nothing at the path."""
    try:
        return Reading(load_data(config, plugins=plugins))
    except RefusedDataError as error:
        refusal = str(error)
    try:
        return Reading(load_data(config.model_copy(update={"skip_bad_rows": True}), plugins=plugins), refusal)
    except RefusedDataError as error:
        return Reading(error.data, refusal, str(error))
