"""The embedded data set: the same for the same seed, honest about its facts, fair in its splits."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medgraft.data.phantoms import facts as facts_module
from medgraft.data.phantoms import write_phantoms
from medgraft.data.phantoms.facts import STUDIES, Facts, is_held_out
from medgraft.data.phantoms.writer import make, plan
from medgraft.errors import DataError


def _digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(p.relative_to(folder)).encode() + p.read_bytes() for p in files)).hexdigest()


def _facts(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / split / "radiology/facts.jsonl").read_text().splitlines()]


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_phantoms(tmp_path / name, count=12, seed=seed)
    assert _digest(tmp_path / "a") == _digest(tmp_path / "b") != _digest(tmp_path / "c")


def test_layout(phantoms_folder):
    for split, count in (("train", 48), ("validation", 5), ("test", 7)):
        lines = (phantoms_folder / split / "radiology/captions.txt").read_text().splitlines()
        facts = _facts(phantoms_folder, split)
        assert len(lines) == len(facts) == count
        for line, fact in zip(lines, facts, strict=True):
            key, caption = line.split("\t")
            assert key == fact["id"] and caption.startswith(" ") and caption.endswith(".")
            with Image.open(phantoms_folder / split / "radiology/images" / f"{key}.jpg") as image:
                assert image.size == (192, 192)
            if fact["box"]:
                left, top, right, bottom = fact["box"]
                assert 0 <= left < right <= 192 and 0 <= top < bottom <= 192
            assert (fact["box"] is None) == (fact["finding"] is None)


@pytest.mark.slow
def test_patients_do_not_cross_splits_and_unseen_facts_are_in_test_only():
    planned = plan(2000, 0)
    patients = {split: {p.patient for p in planned if p.split == split} for split in ("train", "validation", "test")}
    assert not patients["train"] & patients["test"] and not patients["train"] & patients["validation"]
    rng = np.random.default_rng(0)
    seen = [facts_module.draw_facts(rng, unseen=False) for _ in range(3000)]
    unseen = [facts_module.draw_facts(rng, unseen=True) for _ in range(100)]
    assert not any(is_held_out(facts) for facts in seen)
    keys = {(f.study, f.finding, f.side, f.site) for f in seen}
    assert not any((f.study, f.finding, f.side, f.site) in keys for f in unseen)
    # every word of an unseen combination is known from other combinations
    for part in ("study", "finding", "side", "site"):
        assert {getattr(f, part) for f in unseen} <= {getattr(f, part) for f in seen}
    test = [make(p, 0)[1] for p in planned if p.split == "test"][:60]
    share = sum(map(is_held_out, test)) / len(test)
    assert 0.2 < share < 0.7


@pytest.mark.parametrize("study", STUDIES)
def test_findings_change_the_image_where_their_box_is(study):
    from medgraft.data.phantoms.writer import _RENDERERS

    for kind in STUDIES[study]:
        contrast = facts_module._CONTRASTS[study][0]
        view = "PA" if study == "chest-xray" else "axial"
        side = "left" if kind.sided else None
        size = kind.size_mm[1] if kind.size_mm else None
        site = kind.sites[0]
        with_it = Facts(study, view, contrast, kind.name, side, site, size, False)
        without = Facts(study, view, contrast, None, None, None, None, False)
        if study == "abdomen-us":  # which organ is shown depends on the site
            without = Facts(study, view, contrast, "mass" if kind.name != "mass" else "cyst", None, site, 4, False)
        images = [_RENDERERS[study](facts, np.random.default_rng(3), np.random.default_rng(4)) for facts in (with_it, without)]
        inside = images[0].finding
        assert inside.any()
        # exposure and window differ from image to image: undo that by what lies outside the finding
        slope, offset = np.polyfit(images[1].pixels[~inside], images[0].pixels[~inside], 1)
        difference = np.abs(images[0].pixels - slope * images[1].pixels - offset)
        if kind.name in ("cardiomegaly",) or study == "abdomen-us":
            continue  # these also move or re-window what is around
        assert difference[inside].mean() > 1.5 * difference[~inside].mean(), (study, kind.name)
        columns = np.nonzero(inside)[1]
        if kind.sided and site != "liver" and kind.name != "clavicle fracture":
            assert columns.mean() > 96  # the patient's left is on the image's right


@pytest.mark.slow
def test_captions_say_the_facts():
    for phantom in plan(300, 7):
        _, facts, caption = make(phantom, 7)
        text = caption.lower()
        if facts.finding is None:
            assert "normal" in text or "no " in text or "clear" in text
        if facts.side and facts.finding is not None:
            assert facts.side in text
            assert {"left": "right", "right": "left"}[facts.side] not in text
        if facts.site in ("upper", "lower", "middle", "liver", "kidney", "cerebellum", "frontal", "parietal", "occipital"):
            assert facts.site in text
        if facts.size_mm and " mm " in text:
            assert f"{facts.size_mm} mm" in text
        assert ("arrow" in text) == facts.arrow


@pytest.mark.slow
def test_captions_vary():
    captions = [make(phantom, 1)[2] for phantom in plan(300, 1)]
    assert len(set(captions)) > 280
    lengths = [len(caption.split()) for caption in captions]
    assert min(lengths) <= 6 and max(lengths) >= 20


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="is not empty"):
        write_phantoms(tmp_path, count=3)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_the_cache_is_made_once(tmp_path, monkeypatch, plugins):
    from medgraft.config import DataConfig
    from medgraft.data import load_data

    monkeypatch.setenv("MEDGRAFT_CACHE", str(tmp_path))
    config = DataConfig(name="phantoms", options={"count": 10, "seed": 3})
    first = load_data(config, plugins=plugins)
    stamp = first.examples[0].image.stat().st_mtime_ns
    assert load_data(config, plugins=plugins).examples[0].image.stat().st_mtime_ns == stamp
    assert len(first.examples) == 10
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["phantoms-v1-10-3"]
