"""Computing what frozen parts make of the training images before the first step."""

from __future__ import annotations

from collections.abc import Sequence

from medgraft import hardware
from medgraft.config import RunConfig
from medgraft.heap import kept_heap
from medgraft.prepare import Prepared, uses_bf16
from medgraft.types import Example


@kept_heap()
def build_features(prepared: Prepared, config: RunConfig, examples: Sequence[Example], *, progress: bool) -> None:
    """Have the stored features of a run be those of `examples`, as far as they fit; nothing is done if none are stored."""
    cached = prepared.features
    if cached is None or not examples:
        return
    with hardware.autocast(hardware.device(), uses_bf16(config)):
        paths = [example.image for example in examples]
        cached.build(hardware.share(paths), batch_size=config.train.per_device_train_batch_size, progress=progress)
    hardware.wait_for_everyone()
    cached.store.refresh()
