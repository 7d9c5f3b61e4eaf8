"""Computing what frozen parts make of the training images before the first step."""

from __future__ import annotations

from collections.abc import Sequence

from medgraft import hardware
from medgraft.backbones import Backbone, prompt_for
from medgraft.config import RunConfig
from medgraft.features import Cut, FeatureSupply, open_supply
from medgraft.heap import kept_heap
from medgraft.training.trainer import uses_bf16
from medgraft.types import Example


@kept_heap()
def prepare_features(
    backbone: Backbone, config: RunConfig, examples: Sequence[Example], *, progress: bool
) -> tuple[FeatureSupply | None, Cut]:
    """The supply of features for a model with its strategy applied, those of `examples` built; and where it is cut.

    None for the supply if nothing can be reused: then every batch is computed from its pixels.
    """
    if not config.features.enabled:
        return None, Cut(None, "features.enabled is false")
    bf16 = uses_bf16(config)
    where = hardware.device()
    backbone.model.to(where)
    backbone.model.eval()
    prompt = prompt_for(backbone, config.train.prompt)
    supply, cut = open_supply(backbone, bf16=bf16, prompt=prompt, max_gb=config.features.max_gb)
    if supply is not None and examples:
        with hardware.autocast(where, bf16):
            batch = config.train.per_device_train_batch_size
            paths = [example.image for example in examples]
            supply.build(hardware.share(paths), batch_size=batch, progress=progress)
        hardware.wait_for_everyone()
        supply.store.refresh()
    return supply, cut
