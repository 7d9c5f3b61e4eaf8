"""What the command line does, for Python: the functions that `import medgraft` offers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from medgraft import adapter as adapters
from medgraft import hardware
from medgraft.adapter import LoadedAdapter
from medgraft.backbones import Backbone, RemoteCaptioner, prompt_for
from medgraft.benchmark import Record, execute
from medgraft.benchmark import run_suite as run_suite_runs
from medgraft.benchmark.evaluation import Evaluation, evaluate_examples, generation_of
from medgraft.captioning import caption_images
from medgraft.config import METRICS, DataConfig, GenerationConfig, SaliencyConfig, SuiteConfig, load_suite, run_config
from medgraft.data import load_data
from medgraft.errors import BackboneError, ConfigError
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_captioner
from medgraft.saliency import Explanation, Method, explain_images
from medgraft.saliency.maps import attention_layout_of
from medgraft.strategies import Strategy, get_strategy
from medgraft.training import Clock
from medgraft.types import Split


def load_backbone(
    name: str, *, strategy: str | None = None, plugins: PluginManager | None = None
) -> Backbone | RemoteCaptioner:
    """The backbone `NAME` or `NAME:SOURCE`, a hub id or folder; held quantised if `strategy` says so.

    A name that stands for a model behind an API gives its client.
    """
    manager = plugins or PluginManager.from_environment()
    held = get_strategy(strategy, plugins=manager) if strategy else Strategy()
    return prepare_captioner(name, held, plugins=manager)


def train(
    *,
    backbone: str,
    strategy: str,
    data: str,
    out: str | Path,
    seed: int = 0,
    overrides: Iterable[str] = (),
    max_images: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    plugins: PluginManager | None = None,
) -> Record:
    """Train, package and evaluate; `overrides` are as for `--set`, such as `"strategy.r=8"` or `"train.max_steps=100"`."""
    config = run_config(backbone=backbone, strategy=strategy, data=data, seed=seed, max_images=max_images, overrides=overrides)
    manager = plugins or PluginManager.from_environment()
    done = execute(config, Path(out), plugins=manager, resume=resume, overwrite=overwrite, progress=progress)
    return done.record


def load_adapter(folder: str | Path, *, backbone: str | None = None, plugins: PluginManager | None = None) -> LoadedAdapter:
    """The adapter in `folder` on its base; `backbone` (`NAME:SOURCE`) says where the base lies here."""
    return adapters.load_adapter(Path(folder), plugins=plugins or PluginManager.from_environment(), backbone=backbone)


def caption(
    images: Sequence[str | Path],
    *,
    adapter: LoadedAdapter | str | Path | None = None,
    backbone: Backbone | RemoteCaptioner | str | None = None,
    generation: GenerationConfig | None = None,
    progress: bool = False,
    plugins: PluginManager | None = None,
) -> list[str]:
    """One caption for each image file, by an adapter (an object or its folder) or by a bare backbone."""
    model, loaded = _model(adapter, backbone, plugins or PluginManager.from_environment())
    return _caption([Path(image) for image in images], model, loaded, generation, progress)


def _caption(
    images: Sequence[Path],
    model: Backbone | RemoteCaptioner,
    loaded: LoadedAdapter | None,
    generation: GenerationConfig | None,
    progress: bool,
) -> list[str]:
    return caption_images(
        model,
        images,
        options=generation or (generation_of(loaded) if loaded else GenerationConfig()),
        prompt=loaded.prompt if loaded else None,
        bf16=_bf16(loaded),
        progress=progress,
    )


def explain(
    image: str | Path,
    *,
    adapter: LoadedAdapter | str | Path | None = None,
    backbone: Backbone | RemoteCaptioner | str | None = None,
    caption: str | None = None,
    method: Method = "attention",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    generation: GenerationConfig | None = None,
    plugins: PluginManager | None = None,
) -> Explanation:
    """Where a model looks while it says each word of an image's caption, its own or the one given.

    `method` is one of medgraft.saliency.METHODS. `layers` and `heads`, counted from 0, choose attention; all by default.
    """
    model, loaded = _model(adapter, backbone, plugins or PluginManager.from_environment())
    attention_layout_of(model, method)  # before a caption is asked for
    assert isinstance(model, Backbone)
    text = caption or _caption([Path(image)], model, loaded, generation, progress=False)[0]
    found = explain_images(
        model, [Path(image)], [text], prompt=prompt_for(model, loaded.prompt if loaded else None), bf16=_bf16(loaded),
        method=method, layers=layers, heads=heads,
    )[0]  # fmt: skip
    if not found.maps.words:
        raise BackboneError(f"The caption of {image} is {text!r}: there are no words to explain. Give one with --caption.")
    return found


def evaluate(
    data: str | DataConfig,
    *,
    adapter: LoadedAdapter | str | Path | None = None,
    backbone: Backbone | RemoteCaptioner | str | None = None,
    split: Split = "test",
    metrics: tuple[str, ...] = METRICS,
    generation: GenerationConfig | None = None,
    progress: bool = False,
    plugins: PluginManager | None = None,
) -> Evaluation:
    """Caption a split of `NAME[:PATH]` and score it."""
    manager = plugins or PluginManager.from_environment()
    config = data if isinstance(data, DataConfig) else DataConfig.parse(data)
    model, loaded = _model(adapter, backbone, manager)
    examples = load_data(config, plugins=manager, splits=(split,)).split(split)
    return evaluate_examples(
        model, examples, generation=generation or (generation_of(loaded) if loaded else GenerationConfig()),
        prompt=loaded.prompt if loaded else None, metrics=metrics, batch_size=32, bf16=_bf16(loaded), plugins=manager,
        clock=Clock(), progress=progress, saliency=SaliencyConfig(maps=0),
    )  # fmt: skip


def run_suite(
    suite: str | Path | SuiteConfig, out: str | Path, *, overrides: Iterable[str] = (), plugins: PluginManager | None = None
) -> tuple[Record, ...]:
    """Do every run of a suite (a TOML file) that has no record in `out` yet; all its records."""
    config = suite if isinstance(suite, SuiteConfig) else load_suite(Path(suite), overrides)
    return run_suite_runs(config, Path(out), plugins=plugins or PluginManager.from_environment())


def _model(
    adapter: LoadedAdapter | str | Path | None, backbone: Backbone | RemoteCaptioner | str | None, plugins: PluginManager
) -> tuple[Backbone | RemoteCaptioner, LoadedAdapter | None]:
    if isinstance(adapter, str | Path):
        adapter = load_adapter(adapter, backbone=backbone if isinstance(backbone, str) else None, plugins=plugins)
    if adapter is not None:
        return adapter.backbone, adapter
    if backbone is None:
        raise ConfigError("Name an adapter or a backbone.")
    return (load_backbone(backbone, plugins=plugins) if isinstance(backbone, str) else backbone), None


def _bf16(loaded: LoadedAdapter | None) -> bool:
    wanted = loaded.manifest.bf16 if loaded and loaded.manifest else True
    return wanted and hardware.bf16_supported(hardware.device().type)
