"""Answers are compared as the evaluator of VQA v2 compares them; scores by hand, open and closed apart."""

import math

import pytest

from medgraft.metrics import CaptionSet, UnavailableError, measure
from medgraft.metrics.facts import PhantomFacts
from medgraft.metrics.vqa import Vqa, bleu_1, token_f1
from medgraft.metrics.vqa_answers import normalized_answer


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("Yes.", "yes"),
        (" The left\n lung\t", "left lung"),
        ("two", "2"),
        ("None", "0"),  # processDigitArticle's map
        ("ten or eleven", "10 or eleven"),
        ("An x-ray", "x ray"),  # a mark between letters becomes a space
        ("x - ray", "x ray"),
        ("left-sided - mild", "leftsided mild"),  # and is removed everywhere if a space stands beside one
        ("liver/spleen", "liver spleen"),
        ("liver, spleen", "liver spleen"),
        ("1,000 mL/min", "1000 ml/min".replace("/", "")),  # a number with a comma removes all marks
        ("3.5 cm.", "3.5 cm"),  # a period stays before a digit alone
        ("a.p.", "ap"),
        ("Dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),  # the evaluator's own slip
        ("lets", "lets"),  # maps to itself there
        ("patient's: 5%", "patient's: 5%"),  # apostrophes, colons and percent signs stay
        ("the", ""),
    ],
)
def test_answers_take_the_form_of_the_vqa_v2_evaluator(answer, wanted):
    assert normalized_answer(answer) == wanted


@pytest.mark.parametrize(
    ("said", "right", "f1", "bleu"),
    [
        ("left lung", ["left lung"], 1, 1),
        ("left", ["left lung"], 2 / 3, math.exp(-1)),
        ("in left left lung", ["left lung"], 2 * 2 / 6, 2 / 4),  # the second "left" is not in the answer
        ("liver", ["left lung"], 0, 0),
        ("", ["left lung"], 0, 0),
        ("left lobe", ["left lung", "upper lobe of it"], 0.5, 1),  # BLEU takes words from all, the length of the closest
    ],
)
def test_f1_and_bleu_by_hand(said, right, f1, bleu):
    answers = [answer.split() for answer in right]
    assert max(token_f1(said.split(), answer) for answer in answers) == pytest.approx(f1)
    assert bleu_1(said.split(), answers) == pytest.approx(bleu)


FACTS = (
    {"answer_type": "closed", "question_type": "PRES, SIZE", "modality": "X-Ray"},
    {"answer_type": "CLOSED ", "question_type": "PRES"},
    {"answer_type": "open", "question_type": "SIZE", "modality": "X-Ray"},
    {"question_type": ""},
    None,
)
ANSWERS = CaptionSet(
    ("Yes, it is.", "axial", "two", "no", "Yes or no"), (("yes",), ("Axial",), ("2 cm", "2"), ("No",), ("no",)), FACTS
)


def test_open_and_closed_answers_are_scored_apart(plugins):
    found = measure(ANSWERS, metrics=("vqa",), plugins=plugins)
    scores = found.values
    assert (scores["vqa_exact"], scores["vqa_open_exact"], scores["vqa_closed_exact"]) == (3 / 5, 1, 2 / 4)
    assert scores["vqa_yes_no"] == pytest.approx(2 / 3)  # "Yes, it is." is right, "Yes or no" is not
    by_group = {name: value for name, value in scores.items() if "_type_" in name or "_modality_" in name}
    assert by_group == {"vqa_exact_modality_x_ray": 1 / 2, "vqa_exact_type_pres": 1 / 2, "vqa_exact_type_size": 1 / 2}
    each = found.measured["vqa"].per_image["vqa_open_exact"]
    assert each[2] == 1 and all(math.isnan(value) for place, value in enumerate(each) if place != 2)
    assert "VQA v2 evaluator, version 1" in found.signatures["vqa"]


def test_without_facts_an_answer_says_what_the_question_was():
    scores = Vqa().measure(CaptionSet(("no", "liver"), (("no",), ("spleen",)))).scores
    assert (scores["vqa_closed_exact"], scores["vqa_open_exact"]) == (1, 0)


def test_facts_of_questions_are_not_those_of_phantoms():
    with pytest.raises(UnavailableError, match="as phantoms have"):
        PhantomFacts().measure(ANSWERS)
