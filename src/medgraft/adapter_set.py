"""Several adapters on one base in memory, switched by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medgraft import hardware
from medgraft.adapter import MANIFEST, BaseOptions, LoadedAdapter, load_adapter, read_manifest
from medgraft.adapter.locating import locate_adapter
from medgraft.adapter.sharing import share_weights
from medgraft.api import caption
from medgraft.backbones import Backbone
from medgraft.config import GenerationConfig
from medgraft.errors import AdapterError, ConfigError, UnknownNameError, suggestion
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_captioner
from medgraft.strategies import Quantization, Strategy
from medgraft.train_config import Dtype


class AdapterSet:
    """Adapters by name, on one base whose weights are in memory once. `load_adapters` makes it.

    Every adapter has modules and kernels of its own and computes what its own `load_adapter` gives, to the bit, so a switch
    changes no weight. A base loaded in several precisions is in memory once for each of them.
    """

    def __init__(self, adapters: Mapping[str, LoadedAdapter], quantization: Quantization, plugins: PluginManager):
        self._adapters: dict[str | None, LoadedAdapter] = dict(adapters.items())
        self._quantization, self._plugins = quantization, plugins
        self.names = tuple(adapters)
        self.active: str | None = self.names[0]

    def use(self, name: str | None) -> LoadedAdapter:
        """Make the adapter `name`, or the bare base for None, the active one, and return it for medgraft's functions.

        The bare base is loaded when it is first used, quantised as the first adapter's. UnknownNameError for another name.
        """
        found = self._get(name)
        self.active = name
        return found

    def caption(
        self,
        images: Sequence[str | Path],
        *,
        adapters: Sequence[str | None] | None = None,
        generation: GenerationConfig | None = None,
        progress: bool = False,
    ) -> list[str]:
        """One caption for each image file, by the active adapter, or by the one in `adapters` for each image.

        Images of the same adapter are captioned together.
        """
        names = [self.active] * len(images) if adapters is None else list(adapters)
        if len(names) != len(images):
            raise ConfigError(f"adapters has {len(names)} names for {len(images)} images; give one for each image.")
        captions: dict[int, str] = {}
        for name, adapter in {name: self._get(name) for name in names}.items():
            own = [number for number, wanted in enumerate(names) if wanted == name]
            texts = caption([images[i] for i in own], adapter=adapter, generation=generation, progress=progress)
            captions |= dict(zip(own, texts, strict=True))
        return [captions[number] for number in range(len(images))]

    def _get(self, name: str | None) -> LoadedAdapter:
        if name is None and None not in self._adapters:
            first = self._adapters[self.names[0]]
            settings = first.manifest.strategy_settings if first.manifest else Strategy(quantization=self._quantization)
            size = first.manifest.image_size if first.manifest else None
            quantization = settings.model_dump(include={"quantization", "double_quantization", "compute_dtype"})
            backbone = prepare_captioner(
                first.base,
                Strategy(**quantization),
                plugins=self._plugins,
                dtype=first.asked and first.dtype,
                image_size=size,
            )
            assert isinstance(backbone, Backbone)
            backbone.model.requires_grad_(False)  # only frozen weights are shared
            _share(backbone, self._adapters.values())
            self._adapters[None] = LoadedAdapter(
                backbone, backbone.model, None, given_prompt=first.given_prompt, base=first.base, asked=first.asked
            )
        if name not in self._adapters:
            raise UnknownNameError(
                f"There is no adapter {name!r}.{suggestion(str(name), self.names)} Known: {', '.join(self.names)}."
            )
        return self._adapters[name]


def load_adapters(
    folders: Mapping[str, str | Path],
    *,
    backbone: str | None = None,
    allow_base_mismatch: bool = False,
    quantization: Quantization = "none",
    dtype: Dtype | None = None,
    prompt: str | None = None,
    plugins: PluginManager | None = None,
) -> AdapterSet:
    """The adapters in `folders`, by name, with the weights of their base in memory once; the first one is active.

    The options are those of `load_adapter`, for each adapter. AdapterError if the adapters are of different bases, unless
    `allow_base_mismatch` puts them on one `backbone`. While an adapter is loaded, the base is in memory twice.
    """
    manager = plugins or PluginManager.from_environment()
    if not folders:
        raise AdapterError("There is no adapter to load; give their folders by name.")
    if not (backbone and allow_base_mismatch):
        _check_bases(folders)
    loaded: dict[str, LoadedAdapter] = {}
    for name, folder in folders.items():
        adapter = load_adapter(
            folder, plugins=manager, backbone=backbone, allow_base_mismatch=allow_base_mismatch,
            options=BaseOptions(quantization, dtype),
        )  # fmt: skip
        _share(adapter.backbone, loaded.values())
        loaded[name] = replace(adapter, given_prompt=prompt)
    return AdapterSet(loaded, quantization, manager)


def _check_bases(folders: Mapping[str, str | Path]) -> None:
    """AdapterError if the bases in the adapters' manifests have different weights."""
    located = {name: locate_adapter(folder) for name, folder in folders.items()}
    manifests = {name: read_manifest(folder) for name, folder in located.items() if (folder / MANIFEST).is_file()}
    first = next(iter(manifests), None)
    for name, manifest in manifests.items():
        if first is not None and manifest.base_fingerprint != manifests[first].base_fingerprint:
            raise AdapterError(
                f"{first} and {name} are of different bases ({manifests[first].backbone} with weights "
                f"{manifests[first].base_fingerprint[:12]}, {manifest.backbone} with {manifest.base_fingerprint[:12]}). "
                "Load only adapters of one base together."
            )


def _share(backbone: Backbone, others: Iterable[LoadedAdapter]) -> None:
    """Move the model to this process's device and share the weights of `others`."""
    backbone.model.to(hardware.device())
    share_weights(backbone.model, [other.backbone.model for other in others])
