"""Against pycocoevalcap, by scores it gave on real captions, and against values worked out by hand."""

import json
import math
import time
from pathlib import Path

import pytest
from captions import perturbed, report_pairs, roco_captions

from medgraft.errors import ConfigError, ScoringError
from medgraft.metrics import CaptionSet, UnavailableError, measure, with_tokenizer
from medgraft.metrics.bleu import Bleu, bleu
from medgraft.metrics.cider import Cider, cider
from medgraft.metrics.ptb import tokenize, tokenize_lines
from medgraft.metrics.rouge_l import RougeL, rouge_l
from medgraft.scoring import score

GOLDEN = json.loads((Path(__file__).parent.parent / "golden/coco_scores.json").read_text())


def _scores(predictions, references, tokenizer="ptb"):
    rouge, consensus = rouge_l(predictions, references, tokenizer), cider(predictions, references, tokenizer)
    return bleu(predictions, references, tokenizer) | {
        "rouge_l": math.fsum(rouge) / len(rouge), "cider": math.fsum(consensus) / len(consensus),
    }  # fmt: skip


@pytest.mark.slow
def test_8000_real_captions_score_as_in_pycocoevalcap_and_fast(shared_data):
    _, captions = roco_captions(shared_data)
    said = perturbed(captions)
    start = time.process_time()
    scores = _scores(said, [[caption] for caption in captions])
    seconds = time.process_time() - start
    assert scores == pytest.approx(GOLDEN["one_reference"], abs=1e-6)
    assert seconds < 10


def test_several_references_score_as_in_pycocoevalcap(shared_data):
    _, captions = roco_captions(shared_data)
    said = perturbed(captions)
    starts = range(0, len(captions) - 3, 3)
    scores = _scores([said[i] for i in starts], [captions[i : i + 3] for i in starts])
    assert scores == pytest.approx(GOLDEN["three_references"], abs=1e-6)


def test_reports_split_at_spaces_score_as_in_pycocoevalcap(shared_data):
    said, notes = report_pairs(shared_data)
    scores = _scores(said, [[note] for note in notes], "whitespace")
    assert len(notes) == 382 and scores == pytest.approx(GOLDEN["split_at_spaces"], abs=1e-6)


def test_the_tokenizer_decides_and_is_in_the_signature(plugins):
    captions = CaptionSet(("Clear lungs.", "no effusion"), (("clear lungs .",), ("no effusion",)))
    names = with_tokenizer(("bleu", "rouge_l", "cider:ptb", "clinical"), "whitespace", plugins)
    assert names == ("bleu:whitespace", "rouge_l:whitespace", "cider:ptb", "clinical")
    found = measure(captions, metrics=names, plugins=plugins)
    assert found.values["bleu_1"] == pytest.approx(2 / 4 * math.exp(1 - 5 / 4))  # "lungs." is no word of "lungs ."
    assert found.values["rouge_l"] == 0.5
    assert found.signatures["bleu:whitespace"].endswith("|tok:whitespace") and found.signatures["cider:ptb"].endswith(
        "|tok:ptb"
    )
    assert measure(captions, metrics=["bleu"], plugins=plugins).values["bleu_1"] == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="The tokenizer of a metric is 'moses'; it must be ptb or whitespace"):
        measure(captions, metrics=["bleu:moses"], plugins=plugins)


def test_the_evaluate_modules_give_the_same_numbers(plugins):
    predictions = {"a": "a nodule in the left lung.", "b": "normal brain."}
    references = {"a": ["a small nodule in the left lung."], "b": ["normal brain.", "no lesion."]}
    together = score(predictions, references, plugins=plugins).metrics
    texts, reference_texts = list(predictions.values()), list(references.values())
    assert together == pytest.approx(_scores(texts, reference_texts))
    for metric in (Bleu(), RougeL(), Cider()):
        found = metric.compute(predictions=texts, references=reference_texts)
        assert found == pytest.approx({name: together[name] for name in found})
        assert metric.as_evaluate().compute(predictions=texts, references=reference_texts) == found
    for wrong in (reference_texts[:1], texts):
        with pytest.raises(ScoringError, match="Give a list of references for each prediction"):
            Bleu().compute(predictions=texts, references=wrong)


def test_by_hand():
    # candidate of 3 words, reference of 4, all 3 words and both bigrams right: p1 = p2 = p3 = 1, brevity exp(1 - 4/3)
    scores = bleu(["the left lung"], [["in the left lung"]])
    for n in (1, 2, 3):
        assert scores[f"bleu_{n}"] == pytest.approx(math.exp(1 - 4 / 3), rel=1e-6)
    assert scores["bleu_4"] == pytest.approx((1e-15 / 1e-9) ** 0.25 * math.exp(1 - 4 / 3), rel=1e-6)  # COCO's constants
    # precision 1, recall 3/4, beta 1.2
    assert rouge_l(["the left lung"], [["in the left lung"]]) == [pytest.approx(2.44 * 0.75 / (0.75 + 1.44))]
    assert rouge_l(["c a b"], [["a b c"]]) == [pytest.approx(2 / 3)]
    assert rouge_l([""], [["a b c"]]) == [0.0]


def test_cider_by_hand():
    # two images, unigrams only: every word is in one of two references, so idf = log 2 and a perfect caption has cosine 1
    assert cider(["heart", "liver"], [["heart"], ["liver"]]) == [pytest.approx(2.5), pytest.approx(2.5)]
    assert cider(["heart"], [["heart"]]) == [0.0]  # one image: log 1 = 0
    # four extra words: 4 more bigrams damp the four-gram-free cosine by exp(-16 / 72)
    long = cider(["a b c d e x y z q", "u"], [["a b c d e"], ["u"]])[0]
    perfect = cider(["a b c d e", "u"], [["a b c d e"], ["u"]])[0]
    assert perfect == pytest.approx(10.0)
    cosines = [5 / math.sqrt(5 * 9), 4 / math.sqrt(4 * 8), 3 / math.sqrt(3 * 7), 2 / math.sqrt(2 * 6)]
    assert long == pytest.approx(10 * sum(cosines) / 4 * math.exp(-16 / 72))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("PA chest X-ray (arrow).", "pa chest x-ray -lrb- arrow -rrb-"),
        ("A 54-year-old's T2-weighted MRI, 1.5-T.", "a 54-year-old 's t2-weighted mri 1.5-t"),
        ("PET/CT of 3.5cm mass; see Fig. 3 and fig. A", "pet/ct of 3.5 cm mass see fig. 3 and fig a"),
        ("It can't be, cannot be “benign”…", "it ca n't be can not be benign"),
        ("18F-FDG – SUVmax = 7.3, ½ dose", "18f-fdg suvmax = 7.3 1/2 dose"),
        ("e.g. the end of panel B. The rest", "e.g. the end of panel b the rest"),
        ("", ""),
        ("\u2028a\u0085b\r\nc\xa0d", "a b c d"),
    ],
)
def test_tokens(text, tokens):
    assert " ".join(tokenize(text)) == tokens


def test_a_closing_letter_depends_on_the_next_line():
    assert tokenize_lines(["ratio of B to A.", "A 22-year-old man"])[0][-1] == "a"
    assert tokenize_lines(["ratio of B to A.", "CT scan"])[0][-1] == "a."


@pytest.mark.parametrize(
    ("references", "reason"),
    [
        ([["the left lung"]], "there is only one image"),
        ([["the left lung", "a mass"]], "there is only one image"),
        ([["the left lung"]] * 3, "all images have the same words in their references"),
        ([["."], ["..."]], "all images have the same words"),  # no words at all
    ],
)
def test_cider_without_weights_is_undefined(references, reason):
    with pytest.raises(UnavailableError, match=reason):
        Cider().measure(CaptionSet(tuple(texts[0] for texts in references), tuple(map(tuple, references))))


def test_cider_that_is_0_for_wrong_captions_is_0():
    assert Cider().measure(CaptionSet(("x", ""), (("heart",), ("liver",)))).scores == {"cider": 0.0}


def test_empty_captions_score_0():
    assert all(value < 1e-6 for value in bleu(["", ""], [["a b"], ["c"]]).values())
    assert rouge_l(["", "c"], [["a b"], ["c"]]) == [0.0, 1.0]
    assert cider(["", "c"], [["a b"], ["c"]]) == [0.0, pytest.approx(2.5)]


def test_what_cannot_be_scored():
    with pytest.raises(ScoringError, match="has no reference"):
        bleu(["x"], [[]])
