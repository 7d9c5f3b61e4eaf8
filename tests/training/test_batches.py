"""Batches: filled up, of features in the device's memory, made by workers; the losses are the same."""

import logging
import pickle
from types import SimpleNamespace

import pytest
import torch
import transformers

from medgraft.acceleration.cuda_graphs import StepGraphs
from medgraft.acceleration.lora import _gradients, _gradients_in_three_kernels
from medgraft.clock import Clock
from medgraft.config import run_config
from medgraft.data.collate import CaptionPairs, PixelCache
from medgraft.data.roco import Roco
from medgraft.features import load_resident, open_cached_features
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare, prepare_model
from medgraft.strategies import get_strategy
from medgraft.training import CaptioningModule, Checkpoints, build_features, fit
from medgraft.training.batches import prepare_batches
from medgraft.training.collator import Collator
from medgraft.training.step_timer import StepTimer
from medgraft.training.workers import worker_count
from medgraft.types import CaptionData


@pytest.fixture
def run(blip_folder, phantoms_folder, tmp_path, plugins):
    """`run(strategy, *settings)` gives the losses of six steps."""

    def losses(strategy, *settings):
        transformers.set_seed(0)
        fixed = ("train.max_steps=6", "train.per_device_train_batch_size=4", "train.bf16=false")
        config = run_config(
            backbone=f"blip:{blip_folder}", strategy=strategy, data=f"roco:{phantoms_folder}", overrides=[*fixed, *settings]
        )
        model = prepare(config, plugins=plugins, strategy=get_strategy(strategy, plugins=plugins))
        data = CaptionData("phantoms", tuple([e for e in Roco().read(phantoms_folder) if e.split == "train"][:16]))
        if model.features is not None:
            build_features(model.features, config, data.examples)
        losses.model = model
        checkpoints = Checkpoints(tmp_path / "out", written=False)
        return fit(model.backbone, model.applied, config, data, checkpoints, Clock(), model.features).losses

    return losses


@pytest.fixture(scope="module")
def parts(blip_folder, phantoms_folder):
    """(backbone, module, pairs) of a BLIP whose encoder is frozen."""
    plugins = PluginManager()
    strategy = get_strategy("encoder-frozen", plugins=plugins)
    backbone, applied, _ = prepare_model(f"blip:{blip_folder}", strategy, plugins=plugins)
    return (
        backbone,
        CaptioningModule(backbone, applied).train(),
        CaptionPairs([e for e in Roco().read(phantoms_folder) if e.split == "train"]),
    )


def test_filling_up_captions_leaves_the_loss_as_it_is(parts):
    backbone, module, pairs = parts
    rows, cache = [pairs[i] for i in range(4)], PixelCache(backbone, 10**9)
    plain, filled = (Collator(backbone, cache, "", 64, pad_to_multiple_of=n)(rows) for n in (1, 16))
    length = plain["input_ids"].shape[1]
    assert length % 16 and filled["input_ids"].shape[1] == filled["labels"].shape[1] == -(-length // 16) * 16
    assert filled["attention_mask"].sum() == plain["attention_mask"].sum()
    assert module(**filled)["loss"].item() == pytest.approx(module(**plain)["loss"].item(), rel=1e-6)


def test_filling_up_stops_at_the_decoders_last_position(parts):
    backbone, _, pairs = parts
    rows = [(pairs[0][0], "word " * 900)]
    assert Collator(backbone, PixelCache(backbone, 0), "", 9999, pad_to_multiple_of=100)(rows)["input_ids"].shape == (1, 512)


def test_features_in_the_devices_memory_give_the_same_losses(run):
    assert run("encoder-frozen", "features.device_gb=1") == run("encoder-frozen", "features.device_gb=0")


def test_features_that_are_too_large_stay_in_the_store(parts, phantoms_folder, blip_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDGRAFT_FEATURES", str(tmp_path))
    backbone, _, pairs = parts
    config = run_config(backbone=f"blip:{blip_folder}", strategy="encoder-frozen", data=f"roco:{phantoms_folder}")
    examples = pairs.examples
    cached, _ = open_cached_features(backbone, dtype=torch.float32, prompt="", max_gb=1)
    build_features(cached, config, examples[:5])
    paths, where = [example.image for example in examples], torch.device("cpu")
    size = cached.stored(paths)[0].nbytes
    assert load_resident(cached, paths[:5], where, 5 * size - 1) is None
    resident = load_resident(cached, paths[:6], where, 5 * size)
    assert list(resident.rows) == paths[:5]  # the sixth was not built
    assert torch.equal(resident.take(torch.tensor([4, 0])), torch.stack(cached.stored([paths[4], paths[0]])))
    collator = Collator(backbone, PixelCache(backbone, 0), "", 32, cached, resident.rows)
    assert collator([pairs[4], pairs[0]])["feature_rows"].tolist() == [4, 0]
    mixed = collator([pairs[4], pairs[5]])
    assert mixed["feature_rows"].tolist() == [0] and len(mixed["pixel_values"]) == 1


def test_rows_of_features_and_of_pixels_come_to_their_places(parts):
    backbone, module, pairs = parts
    text = backbone.text_batch([pairs[i][1] for i in range(4)])
    pixels = PixelCache(backbone, 0).batch([pairs[i][0].image for i in range(4)])
    with torch.no_grad():
        features = backbone.encode(pixels)
    whole = module._features(pixels, None, None, "")
    module.prefix = backbone.seams[0]
    mixed = module._features(pixels[[0, 3]], features[[2, 1]], torch.tensor([2, 1]), "")
    module.prefix = None
    torch.testing.assert_close(mixed, whole, rtol=1e-5, atol=1e-6)
    assert len(text.input_ids) == 4


def test_workers_give_the_same_losses(run):
    assert run("lora", "train.dataloader_num_workers=2") == run("lora", "train.dataloader_num_workers=0")


AUGMENTED = "augmentation.preset=radiology"


def test_augmented_images_are_the_same_in_workers_and_the_epochs_are_counted(run, monkeypatch):
    epochs, begin_epoch = [], CaptionPairs.begin_epoch
    monkeypatch.setattr(CaptionPairs, "begin_epoch", lambda pairs, epoch: (epochs.append(epoch), begin_epoch(pairs, epoch)))
    augmented = run("lora", AUGMENTED)
    assert epochs == [0, 1]
    assert augmented == run("lora", AUGMENTED, "train.dataloader_num_workers=2") != run("lora")


def test_the_store_steps_aside_for_augmented_images_and_says_so(run, logged):
    with logged() as lines:
        losses = run("encoder-frozen", AUGMENTED)
    assert "augmentation: rotation 10, crop 0.1, contrast 0.2, brightness 0.1, noise 0.02" in lines
    assert (run.model.features.found, run.model.features.built) == (0, 0)
    assert "augmented anew in every epoch (features.views=K stores K views of each)" in str(run.model.prefix)
    assert losses == run("encoder-frozen", AUGMENTED, "features.enabled=false")


def test_fixed_views_from_the_store_give_the_losses_of_computed_ones(run):
    fixed = ("encoder-frozen", AUGMENTED, "features.views=2")
    computed = run(*fixed, "features.enabled=false")
    stored = run(*fixed, "features.device_gb=0", "train.dataloader_num_workers=2")
    assert run.model.features.found + run.model.features.built == 32
    assert "2 augmented views of each training image are stored" in str(run.model.prefix)
    assert stored == pytest.approx(computed, rel=1e-6)
    assert run(*fixed, "features.device_gb=1") == stored


def test_a_flip_warns_once(run, logged):
    with logged() as lines:
        run("encoder-frozen", "augmentation.horizontal_flip=true", "train.max_steps=1")
    (line,) = (line for line in lines if "horizontal_flip swaps left and right" in line)
    assert " of 16 training captions say left or right" in line


def test_workers_are_for_accelerators_and_as_many_as_their_batches_fit(parts, monkeypatch, blip_folder, phantoms_folder):
    monkeypatch.setattr("medgraft.hardware.cores_per_process", lambda: 16)
    assert worker_count(torch.device("cpu"), 1000) == 0
    assert worker_count(torch.device("cuda"), 1000) == 8
    monkeypatch.setattr("medgraft.training.workers.shutil.disk_usage", lambda path: SimpleNamespace(free=10_000))
    assert worker_count(torch.device("cuda"), 1000) == 3  # each with two batches ready and one under way
    assert worker_count(torch.device("cuda"), 100_000) == 0
    backbone, _, pairs = parts
    config = run_config(backbone=f"blip:{blip_folder}", strategy="full", data=f"roco:{phantoms_folder}")
    assert prepare_batches(backbone, config, pairs.examples, "", None, None).workers == 0


def test_a_collator_goes_to_a_worker_without_the_model(parts):
    backbone, _, pairs = parts
    collator = Collator(backbone, PixelCache(backbone, 10**6), "", 32, pad_to_multiple_of=16)
    again = pickle.loads(pickle.dumps(collator))
    assert not hasattr(again.backbone, "model")
    batch, expected = again([pairs[0]]), collator([pairs[0]])
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in batch)


def test_graphs_that_are_named_are_left_out_without_a_gpu(run, blip_folder, plugins):
    strategy = get_strategy("encoder-frozen", plugins=plugins)
    backbone, _, acceleration = prepare_model(f"blip:{blip_folder}", strategy, plugins=plugins, kernels=("cuda_graphs",))
    assert acceleration.installed == () and backbone.step_replayer is None
    assert run("encoder-frozen", "acceleration.kernels=cuda_graphs") == run("encoder-frozen", "acceleration.kernels=none")


def test_steps_that_cannot_be_recorded_are_eager_and_one_line_says_so(monkeypatch, caplog):
    tried = []

    def fails(self, inputs):
        tried.append(inputs)
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(StepGraphs, "_record", fails)
    graphs = StepGraphs([], lambda inputs: inputs["x"].sum(), deterministic=True)
    batch = {"x": torch.ones(2)}
    with caplog.at_level(logging.WARNING, "medgraft"):
        assert graphs.step(batch) is None and not tried  # the first of its shape
        assert graphs.step(batch) is None and len(tried) == 1
        assert graphs.step(batch) is None and len(tried) == 1
    assert graphs.problem == "operation not permitted"
    assert [record.message for record in caplog.records] == [
        "Training steps are not replayed as CUDA graphs: operation not permitted"
    ]


def test_gradients_of_lora_in_three_kernels_are_the_same():
    grad, x, hidden, b = torch.randn(40, 24), torch.randn(40, 16), torch.randn(40, 4), torch.randn(24, 4)
    ours = _gradients_in_three_kernels(grad, x, hidden, b, 0.5, (True, True))
    for mine, other in zip(ours, _gradients(grad, x, hidden, b, 0.5, (True, True)), strict=True):
        torch.testing.assert_close(mine, other)
    assert _gradients_in_three_kernels(grad, x, hidden, b, 0.5, (False, False))[1:] == (None, None)


def test_seconds_of_steps_on_a_cpu_are_the_clocks(monkeypatch):
    moments = iter([10.0, 10.5, 12.0])
    monkeypatch.setattr("medgraft.training.step_timer.time.perf_counter", lambda: next(moments))
    timer = StepTimer(torch.device("cpu"))
    timer.start()
    timer.lap()
    timer.lap()
    assert timer.seconds() == (0.5, 1.5)
