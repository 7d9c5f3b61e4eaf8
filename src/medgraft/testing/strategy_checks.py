"""Checks a strategy on a backbone: exactly the declared parameters train, and the adapter saves, loads and merges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from medgraft.adapter import Manifest, in_place_digests, load_adapter, save_weights, write_package
from medgraft.backbones import Backbone
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_model
from medgraft.strategies import Applied, Strategy, bare_name, changes_base
from medgraft.testing.findings import Finding, require, run_checks
from medgraft.testing.samples import CAPTIONS, images
from medgraft.training import CaptioningModule
from medgraft.types import lies_in

STEPS = 3  # of training; LoRA's A only changes in the second, since B starts at zero


def check_strategy(strategy: Strategy, backbone: str, *, plugins: PluginManager | None = None) -> None:
    """ConformanceError unless `strategy` passes every check on the backbone `NAME:SOURCE`."""
    require(strategy_findings(strategy, backbone, plugins=plugins or PluginManager.from_environment()))


def strategy_findings(strategy: Strategy, backbone: str, *, plugins: PluginManager, name: str = "") -> Iterator[Finding]:
    """The result of each check of a strategy on a backbone."""
    checks = _Checks(strategy, backbone, plugins)
    training = (checks.trains_its_scope, checks.loads_as_saved, checks.merges) if strategy.trains else ()
    yield from run_checks(f"{name or strategy.method} on {backbone.partition(':')[0]}", "strategy", (checks.applies, *training))


class _Checks:
    def __init__(self, strategy: Strategy, backbone: str, plugins: PluginManager):
        self.strategy, self.name, self.plugins = strategy, backbone, plugins
        self._trained: tuple[Backbone, Applied, dict[str, str]] | None = None

    def _fresh(self) -> tuple[Backbone, Applied]:
        torch.manual_seed(0)
        backbone, applied, _ = prepare_model(self.name, self.strategy, plugins=self.plugins)
        return backbone, applied

    def _batch(self, backbone: Backbone) -> dict[str, Any]:
        where = _device(backbone)
        text = backbone.text_batch(CAPTIONS, prompt=backbone.default_prompt, max_tokens=160).to(where)
        return {
            "pixel_values": backbone.pixel_values(images(2)).to(where), "input_ids": text.input_ids,
            "attention_mask": text.attention_mask, "labels": text.labels,
        }  # fmt: skip

    def _logits(self, backbone: Backbone) -> torch.Tensor:
        backbone.model.eval()
        prompt, where = backbone.default_prompt, _device(backbone)
        text = backbone.text_batch(CAPTIONS, prompt=prompt, max_tokens=160).to(where)
        with torch.no_grad():
            return backbone.decode(backbone.encode(backbone.pixel_values(images(2)).to(where), prompt=prompt), text)[1]

    def _loss(self, module: CaptioningModule) -> float:
        module.eval()  # turns dropout off
        with torch.no_grad():
            return float(module(**self._batch(module.backbone))["loss"])

    def applies(self) -> None:
        """Can be applied, and quantises what it declares."""
        _, applied = self._fresh()
        trained = [p for p in applied.model.parameters() if p.requires_grad]
        assert sum(p.numel() for p in trained) == applied.trainable_parameters, "the count of trained parameters is wrong"
        assert bool(trained) == self.strategy.trains, "strategy.trains and the trainable parameters disagree"
        count = len(applied.quantized)
        assert bool(count) == (self.strategy.quantization != "none"), f"{count} modules are in {self.strategy.quantization}"

    def trains_its_scope(self) -> None:
        """Trained parameters change; all others stay bit-identical, and frozen parts in eval mode."""
        backbone, applied = self._fresh()
        untrained = in_place_digests(applied)
        module = CaptioningModule(backbone, applied, backbone.default_prompt)
        start = self._loss(module)
        module.train()
        for name, child in backbone.model.named_modules():
            part = backbone.anatomy.part_of(name)
            assert not (part in applied.frozen_parts and child.training), f"{name} of frozen part {part!r} is in training mode"
        before = {n: p.detach().clone() for n, p in module.named_parameters()}
        optimizer = torch.optim.AdamW(
            [p for p in module.parameters() if p.requires_grad], lr=self.strategy.learning_rate, weight_decay=0.0
        )
        for _ in range(STEPS):
            module(**self._batch(backbone))["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        self._trained = backbone, applied, untrained
        moved = {n for n, p in module.named_parameters() if not torch.equal(p.detach(), before[n])}
        trainable = {n for n, p in module.named_parameters() if p.requires_grad}
        assert not moved - trainable, f"{sorted(moved - trainable)[0]} is frozen but changed"
        still = sorted(trainable - moved)
        odd = [n for n in still if not lies_in(bare_name(n.removeprefix("model.")), backbone.anatomy.no_gradient)]
        assert not odd, (
            f"{len(odd)} of {len(trainable)} trained tensors did not change: {odd[:3]}. "
            "Modules that the loss does not depend on belong into the anatomy's never_run or no_gradient"
        )
        loss = self._loss(module)
        assert loss < start, f"the loss does not fall: {start} before {STEPS} steps, {loss} after them"

    def loads_as_saved(self) -> None:
        """After saving and loading, logits are bit-identical, or equal to 1e-3 if the initialisation changed the base."""
        assert self._trained is not None, "it could not be trained"
        backbone, applied, untrained = self._trained
        with TemporaryDirectory() as folder:
            manifest = _manifest(self.name, backbone, applied)
            write_package(Path(folder), manifest, lambda new: save_weights(new, applied, untrained))
            expected = self._logits(backbone)
            loaded = load_adapter(Path(folder), plugins=self.plugins, backbone=self.name)
            found, tolerance = self._logits(loaded.backbone), 1e-3 if changes_base(self.strategy) else 0.0
            assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance), "logits differ after loading"

    def merges(self) -> None:
        """After merging into the base, logits agree to 1e-3."""
        if not self.strategy.uses_adapter or self.strategy.quantization != "none":
            return
        assert self._trained is not None, "it could not be trained"
        backbone, applied, _ = self._trained
        expected = self._logits(backbone)
        model: Any = applied.model
        backbone.model = model.merge_and_unload()
        torch.testing.assert_close(self._logits(backbone), expected, rtol=1e-3, atol=1e-3)


def _device(backbone: Backbone) -> torch.device:
    """The model's device: an accelerator, if there is one, for a quantised model."""
    where: torch.device = next(backbone.model.parameters()).device
    return where


def _manifest(name: str, backbone: Backbone, applied: Applied) -> Manifest:
    training = {
        "steps": STEPS, "seconds": 0.0, "images": 2, "learning_rate": 1e-2, "hardware": "",
        "in_place": len(applied.direct),
        "trainable_parameters": applied.trainable_parameters, "parts": list(backbone.anatomy.parts),
    }  # fmt: skip
    return Manifest(
        backbone=name, base_fingerprint=backbone.fingerprint(backbone.source), strategy="check",
        strategy_settings=applied.strategy, data={"name": "check"}, prompt=backbone.default_prompt, max_text_tokens=64,
        dtype="fp32", seed=0, training=training, metrics={}, evaluation={}, versions={}, files={},
    )  # fmt: skip
