"""Computing what frozen parts make of the training images before the first step."""

from __future__ import annotations

from collections.abc import Sequence

from medgraft import hardware
from medgraft.backbones import Backbone, prompt_for
from medgraft.config import RunConfig
from medgraft.features import CachedFeatures, ReusablePrefix, open_cached_features
from medgraft.heap import kept_heap
from medgraft.training.trainer import uses_bf16
from medgraft.types import Example


@kept_heap()
def prepare_features(
    backbone: Backbone, config: RunConfig, examples: Sequence[Example], *, progress: bool, base: str | None = None
) -> tuple[CachedFeatures | None, ReusablePrefix]:
    """Cached features for a model with its strategy applied, those of `examples` built; and the prefix that gives them.

    None for the features if nothing can be reused: then every batch is computed from its pixels. `base` is the fingerprint of
    the weights if the caller has loaded them itself (see `features.reusable_prefix.prefix_key`).
    """
    if not config.features.enabled:
        return None, ReusablePrefix(None, "features.enabled is false")
    bf16 = uses_bf16(config)
    where = hardware.device()
    backbone.model.to(where)
    backbone.model.eval()
    prompt = prompt_for(backbone, config.train.prompt)
    cached, prefix = open_cached_features(backbone, bf16=bf16, prompt=prompt, max_gb=config.features.max_gb, base=base)
    if cached is not None and examples:
        with hardware.autocast(where, bf16):
            batch = config.train.per_device_train_batch_size
            paths = [example.image for example in examples]
            cached.build(hardware.share(paths), batch_size=batch, progress=progress)
        hardware.wait_for_everyone()
        cached.store.refresh()
    return cached, prefix
