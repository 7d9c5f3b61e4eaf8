"""Words for clinical content: negation, sides, measurements; and the facts of phantoms."""

from dataclasses import asdict

import numpy as np
import pytest

from medgraft.data.phantoms.captions import write_caption
from medgraft.data.phantoms.facts import draw_facts
from medgraft.metrics import CaptionSet, UnavailableError
from medgraft.metrics.clinical import Clinical, content
from medgraft.metrics.facts import FIELDS, PhantomFacts, stated_facts
from medgraft.metrics.imageclef import Rouge1, preprocess


def _denied(*names):
    return {(name, False) for name in names}


@pytest.mark.parametrize(
    ("caption", "findings"),
    [
        ("No pleural effusion is seen.", {("effusion", False)}),
        ("A nodule. There is no pneumothorax.", {("nodule", True), ("pneumothorax", False)}),
        ("CT without mass, or lymphadenopathy, but with a cyst", {("mass", False), ("lymphadenopathy", False), ("cyst", True)}),
        ("Tumor and tumour and neoplasm", {("mass", True)}),
        ("Fractured rib with a massive meal", {("fracture", True)}),
        ("Resolution of the consolidation; new effusion", {("consolidation", False), ("effusion", True)}),
        ("", set()),
        ("No focal consolidation, pleural effusion, or pneumothorax.", _denied("consolidation", "effusion", "pneumothorax")),
        ("No nodules, masses or pleural effusions were seen.", _denied("nodule", "mass", "effusion")),
        ("Without edema, effusion and pneumothorax.", _denied("oedema", "effusion", "pneumothorax")),
        ("The lungs are free of focal consolidation, effusion or oedema.", _denied("consolidation", "effusion", "oedema")),
        ("Neither effusion nor pneumothorax.", _denied("effusion", "pneumothorax")),
        ("No consolidation or effusion, cardiomegaly.", _denied("consolidation", "effusion") | {("cardiomegaly", True)}),
        (
            "No pneumothorax, there is atelectasis or oedema.",
            _denied("pneumothorax") | {("atelectasis", True), ("oedema", True)},
        ),
        ("No effusion, small nodule.", _denied("effusion") | {("nodule", True)}),
        ("Pneumothorax is not seen. The effusion has resolved.", _denied("pneumothorax", "effusion")),
        ("No interval change in the effusion, no pneumothorax.", {("effusion", True), ("pneumothorax", False)}),
        ("CT without contrast shows a mass.", {("mass", True)}),
        ("Not only a cyst but also a mass.", {("cyst", True), ("mass", True)}),
        ("FINDINGS: No effusion. IMPRESSION: Cardiomegaly.", {("effusion", False), ("cardiomegaly", True)}),
    ],
)
def test_findings_are_grouped_by_meaning_and_negation(caption, findings):
    assert content(caption).findings == findings


NOTES = {  # how real notes begin, and what they say of findings
    "No nodules, nodes or pleural effusions were seen": _denied("nodule", "effusion"),
    "No pleural effusions or lobar consolidation": _denied("effusion", "consolidation"),
    "No focal collapse or consolidation": _denied("atelectasis", "consolidation"),
    "without evidence of alveolar consolidation or pleural effusion": _denied("consolidation", "effusion"),
    "evidence of focal consolidation and stable mild cardiomegaly": {("consolidation", False), ("cardiomegaly", True)},
    "persistent nodular pattern with no interstitial oedema": {("nodule", True), ("oedema", False)},
    "but no clear consolidation seen": _denied("consolidation"),
    "Slight increasing of the opacity in the right lower lung field, without changes": {("opacity", True)},
    "did not show abnormal pleuropulmonary": {("pneumonia", True)},  # of its cause: the sentence's first half
    "No pneumothorax is evident": _denied("pneumothorax"),
}


def test_negation_in_sentences_of_real_notes(shared_data):
    files = sorted((shared_data / "cxr-notes").glob("*/radiology/captions.txt"))
    notes = [line.partition("\t")[2] for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    sentences = [sentence for note in notes for sentence in note.split(". ")]
    for part, findings in NOTES.items():
        found = [content(sentence).findings for sentence in sentences if part in sentence]
        assert found and all(findings <= each for each in found), part
        assert all((name, not present) not in each for each in found for name, present in findings), part


def test_modalities_sides_and_sizes():
    found = content("Axial contrast-enhanced CT: 1.4 cm lesion and 8mm stone in the left kidney")
    assert found.modalities == {"computed tomography"}
    assert found.sides == {"left"}
    assert found.millimetres == {14.0, 8.0}


def _scores(metric, *pairs, **more):
    return metric.measure(CaptionSet(tuple(p for p, _ in pairs), tuple((r,) for _, r in pairs), **more)).scores


def test_clinical_scores_by_hand():
    scores = _scores(
        Clinical(),
        ("CT of the chest: 5 mm nodule in the left lung", "Chest CT with a nodule of the right lung, no effusion"),
        ("Chest X-ray with effusion", "MRI with effusion in the left knee"),
    )
    assert scores["modality_accuracy"] == 0.5
    assert scores["side_contradicted"] == 0.5
    assert scores["side_omitted"] == 0.5
    assert scores["finding_precision"] == 1.0
    assert scores["finding_recall"] == pytest.approx(2 / 3)
    assert scores["finding_f1"] == pytest.approx(0.8)
    assert scores["unsupported_measurement"] == 0.5
    assert scores["finding_coverage"] == 1.0


def test_a_denied_finding_is_not_the_finding():
    assert _scores(Clinical(), ("Pleural effusion.", "No pleural effusion."))["finding_f1"] == 0.0


def test_every_fact_of_phantoms_captions_is_read():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        facts = draw_facts(rng, unseen=bool(rng.random() < 0.3))
        caption = write_caption(facts, rng)
        stated = stated_facts(caption)
        assert stated["finding"] == facts.finding, caption
        for field in FIELDS:
            assert stated[field] in (None, asdict(facts)[field]), (field, caption)


def test_facts_are_scored_where_the_reference_states_them():
    shown = {"study": "chest-xray", "view": "PA", "finding": "nodule", "side": "left", "site": "upper", "size_mm": 14}
    reference = "Chest X-ray showing a nodule in the left upper lobe."  # neither view nor size
    scores = _scores(PhantomFacts(), ("Chest radiograph with a nodule in the right upper lobe", reference), facts=(shown,))
    assert scores["fact_study"] == scores["fact_finding"] == scores["fact_site"] == 1.0
    assert scores["fact_side"] == scores["fact_all"] == 0.0
    assert np.isnan(scores["fact_view"]) and np.isnan(scores["fact_size"])


def test_facts_need_a_data_set_that_knows_them():
    with pytest.raises(UnavailableError, match="has no facts of its images"):
        _scores(PhantomFacts(), ("a", "b"))


@pytest.mark.parametrize(
    ("caption", "kept"),
    [
        ("CT, 14 mm.", "ct number mm"),
        ("T2-weighted (1.5 T)", "tnumberweighted numbernumber t"),
        ("left-sided; X-ray", "leftsided xray"),
        ("œdème 3°", "œdème number°"),
        ("", ""),
    ],
)
def test_imageclefs_preprocessing(caption, kept):
    assert preprocess(caption) == kept


def test_rouge_1_by_hand():
    assert _scores(Rouge1(), ("a mass in the lung", "mass in the left lung"))["rouge_1"] == pytest.approx(0.8)
    assert _scores(Rouge1(), ("the the the", "the"))["rouge_1"] == pytest.approx(0.5)
    assert _scores(Rouge1(), ("", "x"))["rouge_1"] == 0.0
