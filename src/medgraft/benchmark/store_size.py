"""The size of the features that a suite stores, from the shapes of its models."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from PIL import Image

from medgraft import hardware
from medgraft.backbones import get_backbone, prompt_for
from medgraft.benchmark.plan import apply_to_meta, expand
from medgraft.config import RunConfig, SuiteConfig
from medgraft.errors import MedgraftError
from medgraft.features import find_reusable_prefix, stored_dtype
from medgraft.plugin import PluginManager
from medgraft.strategies import Strategy, get_strategy
from medgraft.types import CaptionData


def store_bytes(
    suite: SuiteConfig, data: Mapping[str, CaptionData | None], here: set[str], plugins: PluginManager
) -> int | None:
    """Bytes of the features that the suite stores, those of one base, data set and seam once; None if there are none.

    `here` are the backbones whose files are on this machine; others are not counted.
    """
    each: dict[tuple[str, str, str, str], int] = {}
    seen: set[tuple[str, str, str]] = set()
    for config in expand(suite):
        images, row = data[config.data.model_dump_json()], (config.backbone, config.strategy, str(config.data))
        if row in seen or images is None or config.backbone not in here:
            continue
        seen.add(row)
        strategy = get_strategy(config.strategy, config.strategy_options, plugins=plugins)
        with suppress(MedgraftError):  # told elsewhere
            if found := _feature_bytes(config, strategy, images.prompted, plugins):
                splits = config.needed_splits(strategy.trains)
                key = (config.backbone, str(config.data), found[0], strategy.quantization)
                stored = len({image for example in images.split(*splits) for image in example.images})
                each[key] = max(each.get(key, 0), found[1] * stored)
    return sum(each.values()) or None


def _feature_bytes(config: RunConfig, strategy: Strategy, prompted: bool, plugins: PluginManager) -> tuple[str, int] | None:
    """The seam at which a run stores features and their bytes for an image, None if it stores none; needs the base's files."""
    if not config.features.enabled:
        return None
    captioner, source = get_backbone(config.backbone, plugins=plugins)
    applied = apply_to_meta(config.backbone, strategy, plugins=plugins)
    if applied is None:
        return None
    backbone = captioner.from_model(source, applied.model.eval())
    if config.image.size is not None:
        backbone.set_image_size(config.image.size)
    seam = find_reusable_prefix(backbone, prompted=prompted).seam
    if seam is None:
        return None
    pixels = backbone.pixel_values([Image.new("RGB", (64, 64))]).to("meta")
    below = backbone.seams[: backbone.seams.index(seam) + 1]
    shape = backbone.forward_through(below, pixels, prompt=prompt_for(backbone, config.train.prompt)).shape
    return seam.name, shape[1:].numel() * stored_dtype(backbone, seam, hardware.compute_dtype(config.train.dtype)).itemsize
