"""Examples in compact memory are the same examples, in a fraction of the bytes."""

import multiprocessing
import pickle
import tracemalloc
from pathlib import Path

import pytest

from medgraft.data.collate import CaptionPairs
from medgraft.data.example_table import ExampleTable
from medgraft.types import CaptionData, Example, ImagePart

EXAMPLES = [
    Example("a", Path("/data/one/a.png"), ("one", "two"), "test"),
    Example("b\n\"'\0", Path("b.png"), (), "train", group="p\u2028"),
    Example("c", Path("/data/one/c.png"), ("右肺上叶结节", "\ud800"), "train", concepts=()),
    Example("d", Path("/data/two/\udcff.png"), ("x",), "validation", facts={"box": (1, 2), "deep": {"side": None}}),
    Example("e", ImagePart(Path("/data/x.tar"), "e.png @512+9"), ("x",), "train", concepts=("C1", "C2")),
    Example("f", ImagePart(Path("scan.dcm"), frame=3, window="-600,1500"), ("x",), "test", facts={}),
    Example("g", Path(".."), ("x",), "test", prompt='Is it a "nodule"?\n'),
]


def test_examples_come_back_as_they_were():
    table = ExampleTable(iter(EXAMPLES))
    assert list(table) == EXAMPLES and len(table) == len(EXAMPLES)
    assert [table[place].facts for place in range(len(table))] == [example.facts for example in EXAMPLES]
    assert table[-1] == EXAMPLES[-1] and table[1:6:2] == tuple(EXAMPLES[1:6:2])
    with pytest.raises(IndexError):
        table[len(EXAMPLES)]
    assert list(ExampleTable([])) == []


def test_splits_of_a_data_set_are_in_its_order():
    for examples in (EXAMPLES, ExampleTable(EXAMPLES)):
        data = CaptionData("x", examples)
        assert [e.id for e in data.split("train")] == [EXAMPLES[1].id, "c", "e"]
        assert [e.id for e in data.split("validation", "test")] == ["d", "a", "f", "g"]
        assert data.split("test")[1:] == (EXAMPLES[5], EXAMPLES[6]) and not data.split()


def test_pairs_leave_out_empty_captions():
    pairs = CaptionPairs(ExampleTable([EXAMPLES[0], EXAMPLES[1], Example("h", Path("h"), ("", "y"), "train")]))
    assert [(example.id, caption) for example, caption in (pairs[i] for i in range(len(pairs)))] == [
        ("a", "one"), ("a", "two"), ("h", "y"),
    ]  # fmt: skip


@pytest.mark.parametrize("cache", ["missing", "a file"])
def test_the_cache_may_be_missing_or_unusable(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("MEDGRAFT_CACHE", str(tmp_path / "cache"))
    if cache == "a file":
        (tmp_path / "cache").touch()
    assert list(ExampleTable(EXAMPLES)) == EXAMPLES


def test_an_image_takes_a_few_bytes():
    def made(count):
        for number in range(count):
            yield Example(f"image-{number}", Path(f"/data/{number // 1000}/{number}.png"), ("word " * 25,), "train")

    tracemalloc.start()
    try:
        table = ExampleTable(made(5000))
        assert tracemalloc.get_traced_memory()[0] / len(table) < 20
        pairs = CaptionPairs(table)
        assert tracemalloc.get_traced_memory()[0] / len(pairs) < 40
    finally:
        tracemalloc.stop()


def _last(examples, answers):
    answers.put(examples[-1])


def test_other_processes_get_the_same_examples():
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_last, args=(CaptionData("x", ExampleTable(EXAMPLES)).split("train"), answers))
    child.start()
    assert answers.get() == EXAMPLES[4]
    child.join()
    assert list(pickle.loads(pickle.dumps(ExampleTable(EXAMPLES)))) == EXAMPLES
