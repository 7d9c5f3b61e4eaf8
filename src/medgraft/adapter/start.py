"""The adapter that a run goes on from: its strategy and weights, what it was trained on, and what came before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from medgraft.adapter.compact import changed_shapes
from medgraft.adapter.contents import Contents, check_bytes, read_contents
from medgraft.adapter.lineage import ancestor, weights_digest
from medgraft.adapter.loading import attach, base_here
from medgraft.adapter.manifest import TENSORS, TRAINED_ON, Ancestor, Manifest
from medgraft.adapter.trained_on import TrainedOn
from medgraft.backbones import Backbone
from medgraft.config import RunConfig
from medgraft.errors import AdapterError
from medgraft.plugin import PluginManager
from medgraft.strategies import Strategy, options_in, peft_strategy
from medgraft.types import PARTS

_FREE = ("learning_rate", "loraplus_lr_ratio", *(f"{part}.lr_scale" for part in PARTS))  # does not change the adapter
_FREE_OF_PLAIN_PEFT = (*_FREE, "quantization", "double_quantization", "compute_dtype")


@dataclass(frozen=True)
class Start:
    """An adapter whose weights a run starts with; `digest` identifies them.

    `trained_on` is None for a plain PEFT adapter and for a package of an older version.
    """

    contents: Contents
    strategy: Strategy
    digest: str
    trained_on: TrainedOn | None

    @property
    def manifest(self) -> Manifest | None:
        """The package's manifest; None for a plain PEFT adapter."""
        return self.contents.manifest

    def attach(self, base: Backbone) -> nn.Module:
        """Put the weights onto the base, trainable, and return the model; AdapterError if they do not belong to it."""
        return attach(base, self.contents)

    def as_trained(self, config: RunConfig) -> RunConfig:
        """`config` with the prompt and the image size that the adapter was trained with, unless it has others."""
        if self.manifest is None:
            return config
        changes: dict[str, Any] = {}
        if config.train.prompt is None:
            changes["train"] = config.train.model_copy(update={"prompt": self.manifest.prompt})
        if config.image.size is None:
            changes["image"] = config.image.model_copy(update={"size": self.manifest.image_size})
        return config.model_copy(update=changes)

    def in_place(self) -> tuple[str, ...]:
        """Names of the base's tensors that the adapter changes."""
        return (*self.contents.tensors.get(TENSORS, {}), *changed_shapes(self.contents))

    def lineage(self) -> tuple[Ancestor, ...]:
        """The adapters before a run that starts here, the oldest first."""
        return (*(self.manifest.lineage if self.manifest else ()), ancestor(self.contents))


def named_by(start_from: str, backbone: str | None, strategy: str | None) -> tuple[str, str]:
    """The names of backbone and strategy for a run that starts from an adapter; those given have to agree with it."""
    contents = read_contents(start_from)
    folder, manifest = contents.folder, contents.manifest
    own = manifest.strategy if manifest else f"peft:{(contents.settings or {})['peft_type']}"
    if strategy is not None and strategy.lower() != own.lower():
        raise AdapterError(
            f"{folder} was made with strategy {own}, not {strategy}. Leave --strategy out, or train without --from."
        )
    if backbone is not None:
        return backbone, own
    return base_here(contents, plugins=PluginManager.from_environment()), own


def read_start(config: RunConfig) -> Start | None:
    """The adapter that `config` starts from, if it names one.

    Its strategy has the rate that it was trained with, unless `config` has another. AdapterError for a damaged package, and
    for settings that contradict it.
    """
    if config.start_from is None:
        return None
    named_by(config.start_from, config.backbone, config.strategy)
    contents = read_contents(config.start_from)
    check_bytes(contents)
    folder, manifest = contents.folder, contents.manifest
    if manifest is None:
        content = contents.settings or {}
        strategy = peft_strategy(f"peft:{content['peft_type']}")
        strategy = strategy.model_copy(update={"options": options_in(strategy.method, content)})
    else:
        rate = manifest.training.get("learning_rate", manifest.strategy_settings.learning_rate)
        strategy = manifest.strategy_settings.model_copy(update={"learning_rate": rate})
    free = _FREE if manifest else _FREE_OF_PLAIN_PEFT
    for key, value in config.strategy_options.items():
        if key not in free and strategy.with_options({key: value}) != strategy:
            raise AdapterError(
                f"strategy.{key}={value} contradicts {folder}: training goes on with an adapter as it was made. "
                "Leave the setting out, or train without --from."
            )
    strategy = strategy.with_options({key: value for key, value in config.strategy_options.items() if key in free})
    known = manifest is not None and TRAINED_ON in manifest.files
    return Start(contents, strategy, weights_digest(contents), TrainedOn.read(folder) if known else None)
