"""Boxes of organs and findings by name: what texts name, unions of boxes, and a run on questions in SLAKE's layout."""

import json

import numpy as np
import pytest
from PIL import Image

from medgraft.benchmark import execute
from medgraft.config import RunConfig
from medgraft.metrics import CaptionSet
from medgraft.metrics.localization import Localization
from medgraft.metrics.saliency_scores import THRESHOLDS, Pointing, SaliencyScores
from medgraft.report import attention_markdown, read_results
from medgraft.saliency import CaptionMaps, WordMap, can_be_localized
from medgraft.saliency.geometry import disjoint
from medgraft.saliency.localization import localize, pointing
from medgraft.saliency.named_boxes import named_boxes

VIEW = (0, 0, 40, 40)  # four patches of 20 pixels
LEFT, RIGHT, LIVER, CANCER = [0, 0, 20, 20], [20, 0, 40, 20], [0, 20, 20, 40], [20, 20, 40, 40]
BOXES = {"Left Lung": [LEFT], "Right Lung": [RIGHT], "Liver": [LIVER], "Liver Cancer": [CANCER, [30, 30, 35, 35]]}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Liver Cancer, left lung", {"Liver Cancer": ["Liver Cancer"], "left lung": ["Left Lung"]}),
        ("the liver", {"liver": ["Liver"]}),
        ("Both lungs", {"lungs": ["Left Lung", "Right Lung"]}),
        ("lower right lung", {"right lung": ["Right Lung"]}),
        ("delivery of the plunger", {}),
        ("no", {}),
    ],
)
def test_what_a_text_names(text, named):
    found = {text[start:end]: list(boxes) for start, end, boxes in named_boxes(text, BOXES)}
    assert found == {words: [box for name in names for box in BOXES[name]] for words, names in named.items()}
    assert can_be_localized(text, {"boxes": BOXES}) == can_be_localized("no", {"boxes": BOXES, "question": text}) == bool(named)
    assert not can_be_localized(text, {}) and not named_boxes(text, {})


def test_several_boxes_count_as_their_union():
    boxes = [(0, 0, 30, 30), (20, 20, 40, 40), (5, 5, 10, 10), (20, 20, 40, 40)]
    covered = np.zeros((40, 40))
    for left, top, right, bottom in boxes:
        covered[top:bottom, left:right] = 1
    again = np.zeros((40, 40))
    for left, top, right, bottom in disjoint(boxes):
        again[top:bottom, left:right] += 1
    assert (again == covered).all()
    shares = covered.reshape(2, 20, 2, 20).mean((1, 3))
    grid = np.array([[0.1, 0.2], [0.3, 0.4]])
    found = pointing(grid, boxes, VIEW)
    assert found.energy == pytest.approx((grid * shares).sum()) and found.uniform_energy == pytest.approx(shares.mean())
    overlap = shares[grid >= THRESHOLDS[4] * 0.4].sum()  # patches from 0.2 on: three
    assert found.iou[4] == pytest.approx(overlap / (shares.sum() + 3 - overlap))


def _word(text, start, *patches):
    grid = np.array(patches, dtype=float).reshape(2, 2)
    return WordMap(text, start, start + len(text), grid / grid.sum(), 1.0)


def test_answers_are_scored_at_the_words_that_name_and_at_all_words_for_the_question():
    words = (
        _word("liver", 0, 0, 0, 1, 0),
        _word("and", 6, 1, 0, 0, 0),
        _word("left", 10, 0, 3, 1, 0),
        _word("lung", 15, 0, 3, 1, 0),
    )
    maps = CaptionMaps("liver and left lung", words, "x")
    found = localize(maps, {"boxes": BOXES, "question": "Which of liver and liver cancer?"}, VIEW)
    # the liver's word points at it; the lung's words point at the other one, without a share on their own
    assert (found["answer"].hit, found["answer"].energy) == (0.5, 0.5)
    assert found["answer"].iou == pytest.approx([0.5] * 9)
    assert found["answer"].uniform_energy == 0.25
    # all words: (0.25, 0.375, 0.375, 0); what the question names are the two lower patches
    assert found["asked"].energy == pytest.approx(0.375) and found["asked"].uniform_hit == 0.5
    assert set(localize(maps, {"boxes": BOXES, "question": "which?"}, VIEW)) == {"answer"}
    assert localize(CaptionMaps("", (), "x"), {"boxes": BOXES, "question": "liver?"}, VIEW) == {}


def test_the_metric_has_the_scores_of_answers_where_there_are_any():
    one = Pointing(1.0, 0.6, (0.5,) * 9, 0.25, 0.2, 0.2)
    saliency = (SaliencyScores({"answer": one}, {}, None), SaliencyScores({"asked": one}, {"asked": one}, None), None)
    scores = Localization().measure(CaptionSet(("a",) * 3, (("b",),) * 3, saliency=saliency)).scores
    assert (scores["pointing_answer"], scores["energy_asked"], scores["iou_answer_uniform"]) == (1, 0.6, 0.2)
    assert scores["pointing_asked_untrained"] == 1 and np.isnan(scores["pointing_answer_untrained"])
    assert "pointing_finding" not in scores


@pytest.mark.slow
def test_a_run_on_questions_measures_whether_it_looks_at_what_they_name(tiny_folder, plugins, tmp_path):
    data = tmp_path / "slake"
    asked = [("Is the liver healthy?", "Yes"), ("Which organ is seen?", "Liver"), ("Which modality?", "CT")]
    for number, split in enumerate(("train", "test")):
        image = data / f"imgs/xmlab{number}/source.png"
        image.parent.mkdir(parents=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (64, 64), dtype=np.uint8)).save(image)
        (image.parent / "detection.json").write_text('[{"Liver": [8, 8, 30, 20]}, {"Heart": [40, 40, 20, 20]}]')
        common = {"img_name": f"{image.parent.name}/{image.name}", "q_lang": "en"}
        rows = [common | {"qid": 10 * number + i, "question": q, "answer": a} for i, (q, a) in enumerate(asked)]
        (data / f"{split}.json").write_text(json.dumps(rows))
    config = RunConfig.model_validate(
        {
            "backbone": "blip-vqa:" + str(tiny_folder("blip-vqa")[1]), "strategy": "lora",
            "data": {"name": "slake", "path": str(data)}, "train": {"max_steps": 2},
            "generation": {"max_new_tokens": 4}, "metrics": ["vqa", "localization"], "saliency": {"maps": 0},
        }
    )  # fmt: skip
    done = execute(config, tmp_path / "out", plugins=plugins)
    pointed = {key: set(each.pointing) for key, each in done.evaluation.captions.saliency.items()}
    assert pointed == {"10": {"asked"}, "11": {"answer"}}
    metrics = done.record.metrics
    assert {"pointing_answer", "iou_asked", "energy_answer_untrained", "vqa_exact"} <= set(metrics)
    assert metrics["pointing_answer_uniform"] == metrics["pointing_asked_uniform"] == 6 / 16
    table = attention_markdown(read_results(tmp_path / "out", plugins=plugins))
    assert "| named in answer: hit |" in table and "| *untrained decoder* |" in table and "finding" not in table
