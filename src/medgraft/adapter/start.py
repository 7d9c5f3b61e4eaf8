"""The adapter that a run goes on from: its strategy and weights, what it was trained on, and what came before it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import nn

from medgraft.adapter.base_name import located_base
from medgraft.adapter.loading import attach
from medgraft.adapter.locating import locate_adapter
from medgraft.adapter.manifest import MANIFEST, Ancestor, Manifest, file_entry, read_manifest, verify_files
from medgraft.adapter.saving import ADAPTER_CONFIG, ADAPTER_WEIGHTS, TENSORS
from medgraft.adapter.trained_on import TRAINED_ON, TrainedOn
from medgraft.backbones import Backbone
from medgraft.config import RunConfig
from medgraft.errors import AdapterError
from medgraft.strategies import Strategy, options_in, peft_strategy

_FREE = ("learning_rate",)  # of a strategy: what may change without changing the adapter
_FREE_OF_PLAIN_PEFT = (*_FREE, "quantization", "double_quantization", "compute_dtype")


@dataclass(frozen=True)
class Start:
    """An adapter whose weights a run starts with; `digest` identifies them.

    `manifest` is None for a plain PEFT adapter, `trained_on` also for a package of an older version.
    """

    folder: Path
    manifest: Manifest | None
    strategy: Strategy
    digest: str
    trained_on: TrainedOn | None

    def attach(self, base: Backbone) -> nn.Module:
        """Put the weights onto the base, trainable, and return the model; AdapterError if they do not belong to it."""
        return attach(base, self.folder, self.manifest, trainable=True)

    def with_prompt(self, config: RunConfig) -> RunConfig:
        """`config` with the prompt that the adapter was trained with, unless it has another."""
        if self.manifest is None or config.train.prompt is not None:
            return config
        return config.model_copy(update={"train": config.train.model_copy(update={"prompt": self.manifest.prompt})})

    def in_place(self) -> tuple[str, ...]:
        """Names of the base's tensors that the adapter replaces."""
        if self.manifest is None or TENSORS not in self.manifest.files:
            return ()
        with safe_open(self.folder / TENSORS, framework="pt") as file:
            return tuple(file.keys())

    def lineage(self) -> tuple[Ancestor, ...]:
        """The adapters before a run that starts here, the oldest first."""
        if self.manifest is None:
            return (Ancestor(adapter=self.digest),)
        data, training = self.manifest.data, self.manifest.training
        own = Ancestor(
            adapter=self.digest, data=data["name"], data_fingerprint=data.get("fingerprint"), images=training.get("images"),
            steps=training.get("steps"), epochs=training.get("epochs"), learning_rate=training.get("learning_rate"),
            seed=self.manifest.seed, versions=self.manifest.versions,
        )  # fmt: skip
        return (*self.manifest.lineage, own)


def named_by(start_from: str, backbone: str | None, strategy: str | None) -> tuple[str, str]:
    """The names of backbone and strategy for a run that starts from an adapter; those given have to agree with it."""
    folder = locate_adapter(start_from)
    manifest = _manifest(folder)
    own = manifest.strategy if manifest else f"peft:{_plain_config(folder)['peft_type']}"
    if strategy is not None and strategy.lower() != own.lower():
        raise AdapterError(
            f"{folder} was made with strategy {own}, not {strategy}. Leave --strategy out, or train without --from."
        )
    if manifest is None and backbone is None:
        raise AdapterError(
            f"{folder} is a plain PEFT adapter and does not say which backbone it is for. Add --backbone NAME:SOURCE."
        )
    return backbone or (located_base(folder, manifest) if manifest else ""), own


def read_start(config: RunConfig) -> Start | None:
    """The adapter that `config` starts from, if it names one.

    Its strategy has the rate that it was trained with, unless `config` has another. AdapterError for a damaged package, and
    for settings that contradict it.
    """
    if config.start_from is None:
        return None
    named_by(config.start_from, config.backbone, config.strategy)
    folder = locate_adapter(config.start_from)
    manifest = _manifest(folder)
    if manifest is None:
        content = _plain_config(folder)
        strategy = peft_strategy(f"peft:{content['peft_type']}")
        strategy = strategy.model_copy(update={"options": options_in(strategy.method, content)})
    else:
        verify_files(folder, manifest)
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
    return Start(folder, manifest, strategy, _digest(folder, manifest), TrainedOn.read(folder) if known else None)


def _manifest(folder: Path) -> Manifest | None:
    plain = (folder / ADAPTER_CONFIG).is_file() and not (folder / MANIFEST).is_file()
    return None if plain else read_manifest(folder)


def _plain_config(folder: Path) -> dict[str, object]:
    """The content of PEFT's config."""
    path = folder / ADAPTER_CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("peft_type"), str):
        raise AdapterError(f"{path} names no PEFT method: it has no text `peft_type`.")
    return content


def _digest(folder: Path, manifest: Manifest | None) -> str:
    """SHA-256 over the digests of the files that determine what the adapter does."""
    names = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, TENSORS)
    files = manifest.files if manifest else {name: file_entry(folder / name) for name in names if (folder / name).is_file()}
    lines = "".join(f"{name}:{files[name].sha256}\n" for name in names if name in files)
    return hashlib.sha256(lines.encode()).hexdigest()
