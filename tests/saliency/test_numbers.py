"""Pointing, energy, overlap, deletion and insertion: by hand, and in a run."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from medgraft.backbones import get_backbone
from medgraft.benchmark import execute, read_captions
from medgraft.benchmark.saliency import score_saliency
from medgraft.config import RunConfig
from medgraft.data import open_image
from medgraft.features import open_cached_features
from medgraft.inference import Inference
from medgraft.metrics import CaptionSet, UnavailableError
from medgraft.metrics.facts import stated_facts, where_stated
from medgraft.metrics.faithfulness import Faithfulness
from medgraft.metrics.localization import Localization
from medgraft.metrics.saliency_scores import THRESHOLDS, Curves, Pointing, SaliencyScores
from medgraft.models import load_model
from medgraft.saliency import CaptionMaps, WordMap, faithfulness, read_maps
from medgraft.saliency.localization import localize, pointing
from medgraft.saliency.words import words_of
from medgraft.stats import Resampling
from medgraft.strategies import apply_strategy, get_strategy
from medgraft.types import Example

GRID = np.array([[0.1, 0.3], [0.0, 0.2]])


def test_pointing_by_hand():
    found = pointing(GRID, (5, 0, 10, 5), (0, 0, 10, 10))  # the box is the top right patch
    assert (found.hit, found.energy) == (1.0, pytest.approx(0.5))
    # from a tenth of 0.3 on: three patches; above a third of it two; above two thirds one
    by_hand = [1 / 3 if t <= 1 / 3 else 1 / 2 if t <= 2 / 3 else 1 for t in THRESHOLDS]
    assert found.iou == pytest.approx(by_hand)
    assert (found.uniform_hit, found.uniform_energy, found.uniform_iou) == (0.25, 0.25, 0.25)
    other = pointing(GRID, (0, 5, 5, 10), (0, 0, 10, 10))
    assert (other.hit, other.energy, max(other.iou)) == (0, 0, 0)


def test_a_box_smaller_than_a_patch_is_hit_by_the_patch_it_touches():
    found = pointing(GRID, (6, 1, 7, 2), (0, 0, 10, 10))
    assert found.hit == 1 and found.energy == pytest.approx(0.5 * 0.04)
    assert found.iou[-1] == pytest.approx(0.04)
    assert found.uniform_energy == pytest.approx(0.01)


def test_features_that_the_store_lacks_are_computed_in_the_runs_precision(blip_folder, plugins, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDGRAFT_FEATURES", str(tmp_path / "store"))
    Image.new("RGB", (40, 40), "gray").save(tmp_path / "a.png")
    examples = [Example("a", tmp_path / "a.png", ("a nodule.",), "test")]
    strategy = get_strategy("zero-shot", plugins=plugins)
    backbone = load_model(f"blip:{blip_folder}", strategy, plugins=plugins)
    apply_strategy(backbone.model, backbone.anatomy, strategy)
    cached, _ = open_cached_features(backbone, dtype=torch.bfloat16, prompt="", max_gb=1)
    first, second = (
        score_saliency(
            Inference(backbone, dtype=torch.bfloat16, features=known),
            examples,
            {"a": "a small nodule."},
            pointing=False,
            curves=0,
            maps=1,
        ).maps
        for known in (None, cached)
    )
    cached.store.flush()
    assert cached.built == 1
    assert first == second


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("A 20 mm nodule in the left upper lobe.", {"finding": "nodule", "side": "left", "site": "upper"}),
        ("No effusion. Right-sided pneumothorax.", {"finding": "pneumothorax", "side": "right"}),
        ("Gallstone on ultrasound", {"finding": "gallstone", "site": "gallstone"}),
        ("Normal chest X-ray on the left.", {}),
        ("There is no nodule in the left lung.", {}),
    ],
)
def test_words_that_name_things_are_found_in_place(caption, named):
    assert {what: caption[a:b].lower() for what, (a, b) in where_stated(caption).items()} == named
    assert stated_facts(caption)["finding"] == (None if not named else stated_facts(named["finding"])["finding"])


def test_only_maps_of_named_things_are_measured():
    caption = "mass in the left lung"
    maps = CaptionMaps(
        caption, (WordMap("mass", 0, 4, GRID, 1), WordMap("left", 12, 16, GRID.T, 1), WordMap("lung", 17, 21, GRID, 1)), "x"
    )
    found = localize(maps, {"box": [5, 0, 10, 5]}, (0, 0, 10, 10))
    assert set(found) == {"finding", "side"}
    assert found["finding"].energy == pytest.approx(0.5) and found["side"].hit == 0.0


def test_words_and_the_tokens_that_spell_them():
    text = "left-sided X-ray, 3.5 mm (effusion)."
    spans = [(0, 4), (4, 5), (5, 10), (10, 16), (16, 17), (17, 19), (19, 21), (21, 24), (24, 26), (26, 34), (34, 36)]
    words = words_of(text, spans, len(spans))
    assert [(w.text, w.tokens) for w in words] == [
        ("left-sided", (0, 1, 2)), ("X-ray", (3,)), ("3.5", (5, 6)), ("mm", (7,)), ("effusion", (9,)),
    ]  # fmt: skip
    assert [w.text for w in words_of(text, spans, 3)] == ["left-sided"]  # the rest was cut off
    assert words_of("", [], 0) == ()


def _saliency(hit, energy, iou):
    one = Pointing(hit, energy, iou, 0.2, 0.1, 0.1)
    return SaliencyScores({"finding": one}, {"finding": Pointing(0.0, 0.1, (0.1,) * 9, 0.2, 0.1, 0.1)}, None)


def test_the_metric_by_hand():
    first, second = (0.1, 0.2, 0.5, 0.2, 0.1, 0.0, 0.0, 0.0, 0.0), (0.1, 0.6, 0.1, 0.2, 0.1, 0.0, 0.0, 0.0, 0.0)
    saliency = (_saliency(1.0, 0.5, first), None, _saliency(0.0, 0.1, second))
    measured = Localization().measure(CaptionSet(("a",) * 3, (("b",),) * 3, saliency=saliency))
    scores = measured.scores
    assert scores["pointing_finding"] == 0.5 and scores["energy_finding"] == pytest.approx(0.3)
    assert scores["iou_finding"] == pytest.approx(0.4)  # at the second threshold, (0.2 + 0.6) / 2
    assert scores["pointing_finding_uniform"] == pytest.approx(0.2) and scores["pointing_finding_untrained"] == 0
    assert np.isnan(scores["pointing_side"])
    assert np.isnan(measured.per_image["pointing_finding"][1])
    assert measured.per_image["iou_finding"].tolist()[::2] == [0.2, 0.6]
    interval = Resampling([None] * 3).intervals(measured)["pointing_finding"]
    assert interval.low == 0 and interval.high == 1


def test_metrics_without_looks_say_what_is_missing():
    captions = CaptionSet(("a",), (("b",),))
    with pytest.raises(UnavailableError, match="boxes are known"):
        Localization().measure(captions)
    with pytest.raises(UnavailableError, match="no deletion or insertion"):
        Faithfulness().measure(captions)
    saliency = (SaliencyScores({}, {}, Curves(0.1, 0.4, 0.2, 0.3)), SaliencyScores({}, {}, None))
    assert Faithfulness().measure(CaptionSet(("a", "a"), (("b",), ("b",)), saliency=saliency)).scores["insertion"] == 0.4


@torch.no_grad()
def _chance(backbone, image, caption):
    text = backbone.text_batch([caption])
    loss = backbone.decode(backbone.encode(backbone.pixel_values([image])), text)[0]
    return float(torch.exp(-loss))


def test_deletion_and_insertion_of_a_map_that_knows_what_matters(blip_folder, phantoms_folder, plugins):
    """The map of what each patch's graying does to the caption is more faithful than its opposite."""
    backbone = get_backbone("blip:x", plugins=plugins)[0].load(str(blip_folder))
    image = open_image(next(iter(sorted((phantoms_folder / "test/radiology/images").glob("*.jpg")))))
    caption, view, side = "a mass in the liver", (0.0, 0.0, *map(float, image.size)), 4
    whole = _chance(backbone, image, caption)
    pixels = np.asarray(image).astype(float)
    grid = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            changed = pixels.copy()
            box = [slice(i * n // side, (i + 1) * n // side) for i, n in ((row, image.size[1]), (column, image.size[0]))]
            changed[box[0], box[1]] = pixels.mean((0, 1))
            grid[row, column] = whole - _chance(backbone, Image.fromarray(changed.astype(np.uint8)), caption)

    def probability(images):
        return np.exp(Inference(backbone).log_likelihood(images, caption))

    right, wrong = (faithfulness(probability, image, g, view, seed=0) for g in (grid, -grid))
    assert right.deletion < wrong.deletion and right.insertion > wrong.insertion
    assert right.deletion_random == wrong.deletion_random  # the same random order
    assert right.deletion == pytest.approx(whole, rel=0.05)


def test_likelihoods_are_those_of_the_loss(tiny_folder, plugins):
    """Also where a T5's caption has as many tokens as its prompt."""
    for name in ("blip", "blip2-opt", "instructblip-t5", "git", "qwen2.5-vl"):
        kind, folder = tiny_folder(name)
        backbone = get_backbone(f"{kind}:{folder}", plugins=plugins)[0].load(str(folder))
        image, prompt = Image.new("RGB", (40, 40), "gray"), "ab"
        caption = "x" * max(len(backbone.prompt_ids(prompt)) - 1, 2)
        text = backbone.text_batch([caption], prompt=prompt, max_tokens=backbone.max_positions)
        with torch.no_grad():
            loss = backbone.decode(backbone.encode(backbone.pixel_values([image]), prompt=prompt), text)[0]
        found = Inference(backbone, prompt).log_likelihood([image, image], caption)
        assert found == pytest.approx([-float(loss)] * 2, rel=1e-4), name


def test_maps_never_cost_a_run(blip_folder, phantoms_folder, plugins, tmp_path, monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr("medgraft.benchmark.evaluation.score_saliency", fails)
    config = RunConfig.model_validate(
        {
            "backbone": f"blip:{blip_folder}", "strategy": "zero-shot", "generation": {"max_new_tokens": 4},
            "data": {"name": "phantoms", "path": str(phantoms_folder), "max_images": 3}, "metrics": ["cider", "localization"],
        }
    )  # fmt: skip
    record = execute(config, tmp_path / "out", plugins=plugins).record
    assert record.status == "ok" and "cider" in record.metrics
    assert record.unavailable["localization"] == "out of memory"


@pytest.fixture(scope="module")
def run(blip_folder, phantoms_folder, tmp_path_factory):
    from medgraft.plugin import PluginManager

    out = tmp_path_factory.mktemp("run") / "out"
    config = RunConfig.model_validate(
        {
            "backbone": f"blip:{blip_folder}",
            "strategy": "encoder-frozen",
            "data": {"name": "phantoms", "path": str(phantoms_folder)},
            "train": {"max_steps": 2, "per_device_train_batch_size": 4},
            "generation": {"max_new_tokens": 6},
            "metrics": ["cider", "localization", "faithfulness"],
            "saliency": {"maps": 3, "curves": 2},
        }
    )
    return execute(config, out, plugins=PluginManager()), out


def test_a_run_measures_where_it_looks(run):
    done, out = run
    record = done.record
    assert {"pointing_finding", "energy_side", "iou_site", "pointing_finding_untrained", "deletion"} <= set(record.metrics)
    low, high = record.intervals["energy_finding"]
    assert low <= record.metrics["energy_finding"] <= high
    assert record.phase_seconds["saliency"] > 0
    assert "localization" in record.signatures and not record.unavailable
    assert not [name for name in record.collapse if "pointing" in name]
    kept = read_captions(out)
    assert sum(saliency.curves is not None for saliency in kept.saliency.values()) == 2
    again = Localization().measure(kept.caption_set()).scores
    assert again["iou_finding"] == pytest.approx(record.metrics["iou_finding"], abs=1e-3)


def test_a_run_keeps_maps_for_the_report(run):
    done, out = run
    maps = read_maps(out)
    assert len(maps) <= 3 and set(maps) <= set(done.evaluation.predictions)
    for key, packed in maps.items():
        assert packed["caption"] == done.evaluation.predictions[key] and packed["view"] == [0, 0, 1, 1]
    assert json.loads((out / "maps.json").read_text()) == maps
    assert read_maps(out / "nowhere") == {}


def test_data_without_boxes_leaves_localization_out(blip_folder, phantoms_folder, plugins, tmp_path):
    config = RunConfig.model_validate(
        {
            "backbone": f"blip:{blip_folder}", "strategy": "zero-shot", "generation": {"max_new_tokens": 4},
            "data": {"name": "roco", "path": str(phantoms_folder), "max_images": 3}, "metrics": ["cider", "localization"],
            "saliency": {"maps": 0},
        }
    )  # fmt: skip
    record = execute(config, tmp_path / "out", plugins=plugins).record
    assert "boxes are known" in record.unavailable["localization"] and "cider" in record.metrics
