"""Prompts of examples and questions about images: one example for each question, several of one image."""

import json
import pickle
from collections import Counter

import pytest
from PIL import Image

from medgraft.adapter import TrainedOn
from medgraft.benchmark.baseline_captions import QUESTION_ONLY, baseline_captions
from medgraft.config import DataConfig, data_config
from medgraft.data import data_fingerprint, load_data
from medgraft.errors import DataError
from medgraft.types import CaptionData, Example

HEAD = "image,question,answer,split,patient\n"
ROWS = "a.png,Is it normal?,yes,train,1\na.png,Which organ?,None,train,1\nb.png,Which organ?,liver,test,2\n"
TEMPLATE = "{question} ({patient})"


@pytest.fixture
def images(tmp_path):
    """A folder with three different images."""
    for number, name in enumerate("abc"):
        image = Image.linear_gradient("L").rotate(90 * number).resize((32, 24 + 4 * number))
        image.save(tmp_path / f"{name}.png")
    return tmp_path


def _read(plugins, name, path, **settings):
    fields = {key: settings.pop(key) for key in ("prompt", "skip_bad_rows") if key in settings}
    return load_data(DataConfig(name=name, path=str(path), options=settings, **fields), plugins=plugins)


def _objects(rows, head):
    return [dict(zip(head.strip().split(","), row.split(","), strict=True)) for row in rows.splitlines()]


def _written(folder, name, rows=ROWS, head=HEAD):
    """The table as a file that reader `name` reads."""
    file = folder / f"t.{ {'hf': 'parquet'}.get(name, name) }"
    if name == "hf":
        import pandas as pd

        pd.DataFrame(_objects(rows, head)).to_parquet(file)
    elif name in ("json", "jsonl"):
        objects = [json.dumps(each) for each in _objects(rows, head)]
        file.write_text(f"[{','.join(objects)}]" if name == "json" else "\n".join(objects))
    else:
        file.write_text((head + rows).replace(",", "\t" if name == "tsv" else ","))
    return file


@pytest.mark.parametrize("name", ["csv", "tsv", "json", "jsonl", "hf"])
def test_prompts_are_filled_from_columns(images, plugins, name):
    rows = ROWS.replace("None", "kidney")  # as captions, "None" is none
    data = _read(plugins, name, _written(images, name, rows), caption="answer", split="split", prompt=TEMPLATE)
    assert [(e.prompt, e.captions) for e in data.examples] == [
        ("Is it normal? (1)", ("yes",)), ("Which organ? (1)", ("kidney",)), ("Which organ? (2)", ("liver",)),
    ]  # fmt: skip
    assert len({e.id for e in data.examples}) == 3 and data.report.leaks == ()


@pytest.mark.parametrize("name", ["csv", "jsonl", "hf"])
@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("{questoin}", r"names 'questoin', which is not there\. Did you mean 'question'\? Names there are: .*question, "),
        ("{question", r"has a stray '\{'; write it twice\. Names there are: .*question, "),
        ("question}", r"has a stray '\}'; write it twice\. Names there are: .*question, "),
        ("{}", r"names '', which is not there"),
    ],
)
def test_a_wrong_template_is_one_line_with_the_names(images, plugins, name, prompt, said):
    with pytest.raises(DataError, match=said) as error:
        _read(plugins, name, _written(images, name), caption="answer", prompt=prompt)
    assert "\n" not in str(error.value)


def test_a_missing_cell_is_a_bad_row(images, plugins):
    file = _written(images, "csv", ROWS + "c.png,,yes,test,3\n")
    with pytest.raises(DataError, match=r"row 5: there is no 'question', which data.prompt names; write it"):
        _read(plugins, "csv", file, caption="answer", prompt=TEMPLATE)
    data = _read(plugins, "csv", file, caption="answer", prompt="{{q}} " + TEMPLATE, skip_bad_rows=True)
    assert len(data.report.bad_rows) == 1 and data.examples[0].prompt == "{q} Is it normal? (1)"


def test_readers_without_columns_fill_prompts_from_facts(phantoms_folder, plugins):
    data = _read(plugins, "phantoms", phantoms_folder, prompt="A {study}:")
    assert data.examples[0].prompt == f"A {data.examples[0].facts['study']}:"
    with pytest.raises(DataError, match=r"names 'question', which is not there.* Names there are: id, patient, study"):
        _read(plugins, "phantoms", phantoms_folder, prompt="{question}")
    assert _read(plugins, "roco", phantoms_folder, prompt="Describe it:").examples[0].prompt == "Describe it:"
    with pytest.raises(DataError, match="Names there are: none"):
        _read(plugins, "roco", phantoms_folder, prompt="{indication}")


def test_an_image_with_several_prompts_or_answers(images, plugins):
    file = _written(images, "csv", ROWS + "a.png,Is it normal?,rather,train,1\n")
    data = _read(plugins, "vqa", file, group="patient")
    assert [(e.id, e.captions, e.group) for e in data.examples] == [
        ("a.png", ("yes", "rather"), "1"), ("a.png#2", ("None",), "1"), ("b.png", ("liver",), "2"),
    ]  # fmt: skip
    assert data.examples[0].facts == {"question": "Is it normal?"}
    alone = _written(images, "csv", ROWS.replace("patient", "x"), HEAD.replace("patient", "x"))
    assert {e.group for e in _read(plugins, "vqa", alone).examples} == {"a.png", "b.png"}  # without a column, the image


def test_questions_of_one_image_stay_together_and_leaks_count_images(images, plugins):
    head, rows = "image,question,answer\n", "a.png,One?,1\na.png,Two?,2\nb.png,One?,1\nc.png,One?,1\n"
    data = _read(plugins, "vqa", _written(images, "csv", rows, head))
    assert len({e.split for e in data.examples if e.image.name == "a.png"}) == 1
    mixed = "a.png,One?,1,train,1\na.png,Two?,2,test,1\na.png,Three?,3,test,1\nb.png,One?,1,train,2\n"
    file = _written(images, "csv", mixed)
    assert [str(leak) for leak in _read(plugins, "vqa", file).report.leaks] == [
        "1 image of test with a byte-equal image in train (such as 'a.png#2' and 'a.png')",
        "1 image of test with an image of their group in train (such as 'a.png#2' and 'a.png')",
    ]
    dropped = load_data(data_config(f"vqa:{file}", ["data.on_leak=drop"], None), plugins=plugins)
    assert dropped.report.leaking == 1 and [e.image.name for e in dropped.split("train")] == ["b.png"]
    seen = TrainedOn.of(dropped.split("test")).seen(dropped.examples)
    assert (seen.total, seen.images) == (2, 1)


def test_answers_of_json_may_be_numbers_and_lists(images, plugins):
    rows = [
        {"image": "a.png", "question": "How many?", "answer": 2},
        {"image": "a.png", "question": "And?", "answer": ["x", "N/A"]},
    ]
    (images / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [e.captions for e in _read(plugins, "vqa", images / "q.jsonl").examples] == [("2",), ("x", "N/A")]
    (images / "q.jsonl").write_text(json.dumps({**rows[0], "answer": True}))
    with pytest.raises(DataError, match="the answer is the value true; it must be a text, a number or a list"):
        _read(plugins, "vqa", images / "q.jsonl")


def test_prompts_change_the_fingerprint(images):
    def print_of(prompt):
        return data_fingerprint([Example("a", images / "a.png", ("x",), "train", prompt=prompt)])

    assert len({print_of(None), print_of("One?"), print_of("Two?")}) == 3


def test_the_question_alone_is_a_baseline(images):
    def example(question, answer, split, kind=None):
        facts = {"question": question, **({"question_type": kind} if kind else {})}
        return Example(question + answer, images / "a.png", (answer,), split, facts=facts, prompt=f"Q: {question}")

    train = [
        *(example("Is it normal?", answer, "train") for answer in ("Yes", "yes", "no")),
        *(example(f"Is it {what}?", "no", "train") for what in ("large", "small")), example("Which organ?", "liver", "train"),
        example("Where?", "left", "train", "POS"),
    ]  # fmt: skip
    asked = [("is it  NORMAL?", None, "yes"), ("Is it wide?", None, "no"), ("Seen from?", "POS", "left"), ("Why?", None, "no")]
    data = CaptionData("x", [*train, *(example(question, "?", "test", kind) for question, kind, _ in asked)])
    found = baseline_captions(QUESTION_ONLY, data.split("train"), data.split("test"))
    assert found == [wanted for *_, wanted in asked]


def _vqa_rad(folder, **changes):
    entry = {
        "qid": 1, "phrase_type": "freeform", "image_name": "a.png", "image_case_url": "https://x/case?id=k1",
        "image_organ": "CHEST", "question": "How many?", "question_type": "COUNT", "answer": 4, "answer_type": "OPEN",
    }  # fmt: skip
    entries = [entry, entry | {"qid": "2", "phrase_type": "test_para", "answer": " Yes", "answer_type": "CLOSED "} | changes]
    (folder / "VQA_RAD Dataset Public.json").write_text(json.dumps(entries))
    (folder / "VQA_RAD Image Folder").mkdir()
    (folder / "a.png").rename(folder / "VQA_RAD Image Folder/a.png")
    return folder


def test_vqa_rad_in_small(images, plugins):
    first, second = _read(plugins, "vqa-rad", _vqa_rad(images)).examples
    assert (first.captions, second.captions, first.split, second.split) == (("4",), ("Yes",), "train", "test")
    assert second.facts == {"question": "How many?", "question_type": "COUNT", "answer_type": "closed", "organ": "CHEST"}
    assert (first.prompt, first.group, first.id) == ("How many?", "k1", "1")
    assert len({e.split for e in _read(plugins, "vqa-rad", images, split="image").examples}) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"phrase_type": "exam"}, "entry 2: the phrase_type is 'exam'; it must be freeform or para"),
        ({"question": None}, "entry 2: the question is null; it must be a text"),
        ({"image_name": 7}, "entry 2: 'image_name' is the value 7; it must be the name of an image"),
        ({"qid": None}, "entry 2: it has no 'qid'"),
    ],
)
def test_wrong_entries_of_vqa_rad(images, plugins, changes, said):
    with pytest.raises(DataError, match=said):
        _read(plugins, "vqa-rad", _vqa_rad(images, **changes))


def test_slake_in_small(images, plugins):
    entry = {
        "img_name": "xmlab1/source.jpg", "qid": 7, "question": "Which?", "answer": "Liver", "q_lang": "en", "modality": "CT",
        "answer_type": "OPEN", "content_type": "Organ", "location": "Abdomen",
    }  # fmt: skip
    (images / "imgs/xmlab1").mkdir(parents=True)
    Image.open(images / "a.png").save(images / "imgs/xmlab1/source.jpg")
    (images / "imgs/xmlab1/detection.json").write_text(
        '[{"Liver": [10.0, 2.4, 5, 6]}, {"Liver": [0, 0, 1, 1]}, {"Heart": [1, 2, 3, 4]}]'
    )
    (images / "test.json").write_text(json.dumps([entry, entry | {"q_lang": "zh", "qid": 8}]))
    (only,) = _read(plugins, "slake", images).examples
    assert only.facts == {
        "question": "Which?", "question_type": "Organ", "answer_type": "open", "modality": "CT", "location": "Abdomen",
        "boxes": {"Liver": [[10, 2, 15, 8], [0, 0, 1, 1]], "Heart": [[1, 2, 4, 6]]},
    }  # fmt: skip
    (images / "imgs/xmlab1/detection.json").write_text('[{"Liver": [10]}]')
    with pytest.raises(DataError, match=r"the box of 'Liver' is \[10\]; it must be \[x, y, width, height\]"):
        _read(plugins, "slake", images)


def test_pathvqa_in_small_and_no_pickle_that_runs_code(images, plugins):
    for folder in ("qas/train", "images/train"):
        (images / "pvqa" / folder).mkdir(parents=True)
    Image.open(images / "a.png").save(images / "pvqa/images/train/train_1.jpg")
    file = images / "pvqa/qas/train/train_qa.pkl"
    rows = [
        {"image": "train_1", "question": "Is it?", "answer": "yes"},
        {"image": "train_1", "question": "Where?", "answer": "here"},
    ]
    file.write_bytes(pickle.dumps(rows))
    examples = _read(plugins, "pathvqa", images).examples
    assert [(e.id, e.group, e.prompt, e.captions) for e in examples] == [
        ("train_1#1", "train_1", "Is it?", ("yes",)), ("train_1#2", "train_1", "Where?", ("here",)),
    ]  # fmt: skip
    file.write_bytes(pickle.dumps(Counter("ab")))
    with pytest.raises(DataError, match=r"names collections\.Counter, and only plain lists of questions are read"):
        _read(plugins, "pathvqa", images)


def test_real_vqa_rad(shared_data, plugins):
    data = _read(plugins, "vqa-rad", shared_data / "vqa-rad")
    counts = {split: (len(data.split(split)), len({e.image for e in data.split(split)})) for split in ("train", "test")}
    assert counts == {"train": (1797, 313), "test": (451, 203)}
    assert [(leak.kind, leak.images) for leak in data.report.leaks] == [("byte_equal", 202), ("group", 202)]
    assert Counter(e.facts["answer_type"] for e in data.examples) == {"closed": 1299, "open": 949}


def test_real_slake(shared_data, plugins):
    data = _read(plugins, "slake", shared_data / "slake")
    assert [len(data.split(split)) for split in ("train", "validation", "test")] == [1631, 440, 1061]
    assert not any(leak.kind == "byte_equal" for leak in data.report.leaks)
    boxes = [box for e in data.examples for several in e.facts.get("boxes", {}).values() for box in several]
    assert len(boxes) > 5000 and all(left < right and top < bottom for left, top, right, bottom in boxes)
