"""METEOR by hand, concepts by a user's terms, and what is unavailable with its reason."""

import math

import pytest

from medgraft.config import DataConfig
from medgraft.data import load_data
from medgraft.metrics import CaptionSet, UnavailableError, measure
from medgraft.metrics.concepts import Concepts
from medgraft.metrics.meteor import Meteor
from medgraft.metrics.spice import Spice


def _meteor(said, *meant):
    return Meteor().measure(CaptionSet((said,), (meant,))).scores["meteor"]


@pytest.mark.parametrize(
    ("said", "meant", "matches", "said_words", "meant_words", "chunks"),
    [
        ("no pleural effusion", "no pleural effusion", 3, 3, 3, 1),
        ("pleural effusions", "a pleural effusion", 2, 2, 3, 1),  # by stem
        ("effusion pleural", "pleural effusion", 2, 2, 2, 2),
        ("a large mass on the left", "a mass", 2, 6, 2, 2),
        ("stone", "cyst", 0, 1, 1, 0),
    ],
)
def test_meteor_by_hand(said, meant, matches, said_words, meant_words, chunks):
    """Banerjee and Lavie 2005, section 2.2: F = 10PR / (R + 9P), penalty 0.5 (chunks / matches)^3."""
    wanted = 0.0
    if matches:
        precision, recall = matches / said_words, matches / meant_words
        wanted = 10 * precision * recall / (recall + 9 * precision) * (1 - 0.5 * (chunks / matches) ** 3)
    assert _meteor(said, meant) == pytest.approx(wanted, abs=1e-9)


def test_meteor_takes_the_best_reference_and_says_what_matched():
    assert _meteor("a mass", "stone", "a mass") == _meteor("a mass", "a mass")
    assert "synonyms:" in Meteor().signature and "stems:porter" in Meteor().signature


@pytest.fixture
def terms(tmp_path):
    path = tmp_path / "terms.csv"
    path.write_text(
        "cui,term,group\nC0032227,pleural effusion,effusion\nC0013687,effusion,effusion\nC0028259,nodule,\n"
        "C0034079,lung nodule,\nC0332448,arrow,-\n",
        encoding="utf-8",
    )
    return path


def test_concepts_by_hand(terms):
    captions = CaptionSet(
        ("Pleural  effusion (arrow).", "a lung nodule", "stone"),
        (("x",), ("x",), ("x",)),
        concepts=(("C0032227", "C0332448"), ("C0028259", "C9999999"), None),
    )
    scores = Concepts(str(terms)).measure(captions).scores
    # said: effusion | lung nodule | nothing; meant: effusion | nodule | nothing
    assert (scores["concept_precision"], scores["concept_recall"], scores["concept_f1"]) == (0.5, 0.5, 0.5)
    assert scores["concept_coverage"] == 3 / 4


def test_what_is_missing_is_said(terms, tmp_path, plugins):
    plain = CaptionSet(("a",), (("b",),))
    for metric, reason in (
        (Concepts(), "name a list of terms"),
        (Concepts(str(terms)), "has no concepts"),
        (Concepts(str(tmp_path / "none.csv")), "cannot be read"),
    ):
        with pytest.raises(UnavailableError, match=reason):
            metric.measure(plain)
    for text, reason in (("cui,term\nC1,chest, left\n", "in quotes"), ("cui,term,group\nC1,a,x\nC1,b,-\n", "in two groups")):
        (tmp_path / "odd.csv").write_text(text)
        with pytest.raises(UnavailableError, match=reason):
            Concepts(str(tmp_path / "odd.csv")).measure(plain)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UnavailableError, match="columns cui and term"):
        Concepts(str(tmp_path / "other.csv")).measure(CaptionSet(("a",), (("b",),), concepts=(("C1",),)))
    with pytest.raises(UnavailableError, match="SPICE"):
        Spice().measure(plain)
    found = measure(plain, metrics=(f"concepts:{terms}", "spice", "meteor"), plugins=plugins)
    assert set(found.unavailable) == {f"concepts:{terms}", "spice"} and math.isfinite(found.values["meteor"])


def test_concepts_of_real_lists_are_read(shared_data, plugins, tmp_path):
    """ROCO's own cuis.txt, with images put in place of those that are not here."""
    from PIL import Image

    source = shared_data / "roco-v1/validation/radiology"
    folder = tmp_path / "validation/radiology"
    (folder / "images").mkdir(parents=True)
    for name in ("captions.txt", "cuis.txt"):
        lines = (source / name).read_text(encoding="utf-8").split("\n")[:20]
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    for line in (folder / "captions.txt").read_text(encoding="utf-8").splitlines():
        Image.new("L", (8, 8)).save(folder / "images" / f"{line.split()[0]}.jpg")
    data = load_data(DataConfig(name="roco", path=str(tmp_path)), plugins=plugins, splits=("validation",))
    first = data.examples[0]
    assert first.id == "ROCO_00020" and first.concepts[:2] == ("C4300092", "C0040395")


def test_rocov2_concepts_are_read(tmp_path, plugins):
    from PIL import Image

    (tmp_path / "test_images").mkdir()
    for key in "ab":
        Image.new("L", (8, 8)).save(tmp_path / "test_images" / f"{key}.jpg")
    (tmp_path / "test_captions.csv").write_text("ID,Caption\na,one\nb,two\n")
    (tmp_path / "test_concepts.csv").write_text("ID,CUIs\na,C0000001;C0000002\n")
    data = load_data(DataConfig(name="rocov2", path=str(tmp_path)), plugins=plugins, splits=("test",))
    assert [example.concepts for example in data.examples] == [("C0000001", "C0000002"), None]
