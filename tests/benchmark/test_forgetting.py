"""Forgetting: the rise of the loss on the base's own captions of general images."""

import csv
import io
import json
import math

import pytest
import torch
from PIL import Image

import medgraft
from medgraft.adapter.locating import locate_adapter
from medgraft.backbones import prompt_for
from medgraft.benchmark import execute, read_record
from medgraft.benchmark.forgetting import _GREEDY, base_captions, forgetting
from medgraft.benchmark.recording import run_id
from medgraft.cli.main import main
from medgraft.config import run_config
from medgraft.data.scenes import general_scenes
from medgraft.errors import ConfigError
from medgraft.forgetting_config import ForgettingConfig
from medgraft.inference import Inference
from medgraft.models import load_model
from medgraft.report import as_csv, html_report, markdown, read_results, rows, terminal
from medgraft.report.peft_layout import peft_results
from medgraft.strategies import apply_strategy, get_strategy


def _config(tiny_folder, phantoms_folder, *overrides, strategy="full"):
    return run_config(
        backbone=":".join(map(str, tiny_folder("blip"))), strategy=strategy, data=f"roco:{phantoms_folder}", max_images=6,
        overrides=[
            "train.max_steps=4", "train.warmup_steps=0", "train.per_device_train_batch_size=4", "train.learning_rate=0.05",
            "train.bf16=false", "generation.max_new_tokens=4", "saliency.maps=0", *overrides,
        ],
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_folder, phantoms_folder, tmp_path_factory):
    """A finished run that measured it, in the folder of a suite."""
    from medgraft.plugin import PluginManager

    out = tmp_path_factory.mktemp("forgetting")
    config = _config(tiny_folder, phantoms_folder, "forgetting.images=5")
    return out, execute(config, out, plugins=PluginManager(), checkpoints=False).record


@torch.no_grad()
def test_it_is_the_difference_of_two_losses(run, plugins):
    out, record = run
    base = medgraft.load_backbone(record.backbone, plugins=plugins)
    trained = medgraft.load_adapter(locate_adapter(out)).backbone
    scenes = general_scenes(5)
    prompt = prompt_for(base, None)
    captions = base.generate(base.encode(base.pixel_values(scenes), prompt=prompt), prompt=prompt, options=_GREEDY)
    losses = []
    for model in (base, trained):
        total, count = 0.0, 0
        for scene, caption in zip(scenes, captions, strict=True):  # one by one, without padding
            text = model.text_batch([caption], prompt=prompt, max_tokens=model.max_positions)
            logits = model.decode(model.encode(model.pixel_values([scene]), prompt=prompt), text)[1]
            labels = text.labels[0, 1:]
            log_probs = logits[0, :-1].log_softmax(-1)[labels != -100]
            total -= float(log_probs.gather(1, labels[labels != -100, None]).sum())
            count += int((labels != -100).sum())
        losses.append(total / count)
    assert record.forgetting == pytest.approx(losses[1] - losses[0], abs=1e-4)
    assert abs(record.forgetting) > 0.01 and record.phase_seconds["forgetting"] > 0


def test_it_is_in_every_output(run, tmp_path, plugins, capsys):
    out, record = run
    shown = f"{record.forgetting:+.2f}"
    other = record.model_copy(update={"strategy": "bitfit", "forgetting": None, "run_id": "x"})
    table = rows([record, other], plugins=plugins)
    text = terminal(table)
    assert shown in text and "forget" in text.splitlines()[2] and "in nats per token" in " ".join(text.split())
    wide = [record.model_copy(update={"metrics": {"cider": 1.0, "pointing_finding": 0.5}, "strategy": "encoder-frozen"}), other]
    assert max(map(len, terminal(rows(wide, plugins=plugins)).splitlines())) <= 80
    assert shown in markdown(table) and "forget" not in markdown(rows([other], plugins=plugins))
    assert [row["forgetting"] for row in csv.DictReader(io.StringIO(as_csv(table)))].count("") == 1
    assert main(["report", str(out), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["forgetting"] == record.forgetting
    page = html_report("x", [record], read_results(out, plugins=plugins, records=[record]), out, plugins=plugins)
    assert f"{record.forgetting:+.3f}</td>" in page
    (exported,) = peft_results([record], plugins=plugins).values()
    assert exported["train_info"]["metrics"][-1]["forgetting"] == record.forgetting
    (exported,) = peft_results([other], plugins=plugins).values()
    assert "forgetting" not in exported["train_info"]["metrics"][-1]
    card = (locate_adapter(out) / "README.md").read_text()
    assert f"changed by {record.forgetting:+.3f} nats per token" in card
    assert read_record(out / "record.json") == record


def test_measuring_changes_neither_training_nor_the_id(run, tiny_folder, phantoms_folder, tmp_path, plugins):
    _, measured = run
    plain = execute(
        _config(tiny_folder, phantoms_folder, "forgetting.images=0"), tmp_path / "a", plugins=plugins, checkpoints=False
    ).record
    assert plain.forgetting is None and plain.train_loss == measured.train_loss and plain.metrics == measured.metrics
    ids = [run_id(_config(tiny_folder, phantoms_folder, *o), None, "", "", {}) for o in ((), ("forgetting.images=0",))]
    assert (
        len({*ids}) == 1 and run_id(_config(tiny_folder, phantoms_folder, "forgetting.images=5"), None, "", "", {}) not in ids
    )


@pytest.mark.parametrize("strategy", ["lora", "peft:FOURIERFT", "peft:ADALORA", "full", "qlora"])
def test_before_training_it_is_the_base(strategy, tiny_folder, plugins):
    """Also where a method's parameters are drawn at random, so that its adapter is no identity."""
    name = ":".join(map(str, tiny_folder("blip")))
    chosen = get_strategy(strategy, plugins=plugins)
    backbone = load_model(name, chosen, plugins=plugins)
    before = base_captions(Inference(backbone), None, ForgettingConfig(images=3))
    assert before is None
    zero = load_model(name, chosen, plugins=plugins)
    features = zero.encode(zero.pixel_values(general_scenes(3)))
    expected = zero.generate(features, options=_GREEDY)
    torch.manual_seed(0)
    applied = apply_strategy(backbone.model, backbone.anatomy, chosen)
    trained = [parameter.requires_grad for parameter in applied.model.parameters()]
    before = base_captions(Inference(backbone, batch_size=2), applied, ForgettingConfig(images=3))
    assert list(before.captions) == expected and math.isfinite(before.loss)
    assert [parameter.requires_grad for parameter in applied.model.parameters()] == trained
    changed = forgetting(Inference(backbone), before)
    assert (abs(changed) > 1e-3) == (strategy == "peft:FOURIERFT"), changed


def test_a_folder_of_images(tiny_folder, tmp_path, plugins):
    backbone = load_model(":".join(map(str, tiny_folder("blip"))), get_strategy("full", plugins=plugins), plugins=plugins)
    applied = apply_strategy(backbone.model, backbone.anatomy, get_strategy("full", plugins=plugins))
    with pytest.raises(ConfigError, match=r"forgetting.folder: .* has no images. Name a folder of general images"):
        base_captions(Inference(backbone), applied, ForgettingConfig(folder=str(tmp_path)))
    for number in range(3):
        Image.new("RGB", (40, 30), (number * 80, 0, 0)).save(tmp_path / f"{number}.png")
    found = base_captions(Inference(backbone), applied, ForgettingConfig(folder=str(tmp_path), images=2))
    assert [image.getpixel((0, 0))[0] for image in found.images] == [0, 80] and len(found.captions) == 2


def test_scenes_are_the_same_everywhere():
    first, again = general_scenes(20), general_scenes(16)
    assert [a.tobytes() for a in first[:16]] == [b.tobytes() for b in again]
    assert len({image.tobytes() for image in first}) == 20
