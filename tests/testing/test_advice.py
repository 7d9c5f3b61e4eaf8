"""A check that fails says what to write, by names that exist and that the plugins' page describes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from medgraft.backbones import Backbone
from medgraft.plugin_api import CaptionMetric, Dataset, Example, UnavailableError, means
from medgraft.testing import dataset_findings, metric_findings
from medgraft.testing.advice import DECIDED_BY, advice
from medgraft.testing.backbone_checks import _Checks as BackboneChecks
from medgraft.testing.findings import ConformanceError, require, run_checks
from medgraft.testing.strategy_checks import _Checks as StrategyChecks

PAGE = (Path(__file__).parents[2] / "docs/plugins.md").read_text(encoding="utf-8")


def test_a_failed_check_says_what_decides_it():
    def is_readable():
        """Gives examples."""
        raise AssertionError("none came")

    (finding,) = run_checks("Mine", "dataset", [is_readable])
    assert finding.implement == "read (docs/plugins.md, Other kinds)"
    try:
        require([finding])
    except ConformanceError as error:
        assert str(error) == "Mine: Gives examples: none came See read (docs/plugins.md, Other kinds)."


class _Short(CaptionMetric):
    def measure(self, captions):
        return means({"short": [1.0] * (len(captions.predictions) - 1)})


class _Plain(CaptionMetric):
    def measure(self, captions):
        return {"plain": 1.0}


class _Divides(CaptionMetric):
    def measure(self, captions):
        return means({"divides": [1 / len(text) for text in captions.predictions]})


class _Unavailable(CaptionMetric):
    def measure(self, captions):
        raise UnavailableError("no weights")


def test_an_unavailable_metric_is_told_once():
    (finding,) = metric_findings(_Unavailable)
    assert (finding.check, finding.problem) == ("can be computed here", "no weights")


@pytest.mark.parametrize(
    ("metric", "problem"),
    [
        (_Short, r"_Short\.measure gave 3 rows for 4 images\. Give a value for each image, in their order\."),
        (_Plain, r"_Plain\.measure gave dict, not Measured\. Return means\(.+"),
        (_Divides, r"ZeroDivisionError: .+ \(line \d+ of .+test_advice\.py: return means\(.+\)"),
    ],
)
def test_a_broken_metric_is_told_what_is_wrong(metric, problem):
    assert any(re.fullmatch(problem, finding.problem) for finding in metric_findings(metric) if finding.problem)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"split": "val"}, "'1' is of split 'val'; splits are train, validation, test"),
        ({"captions": "a nodule"}, "the captions of '1' are a text; give a tuple of texts, such as (text,)"),
        ({"image": "1.png"}, "the image of '1' is a text; give a Path, such as path / '1.png'"),
    ],
)
def test_a_broken_reader_is_told_what_is_wrong(change, problem, tmp_path):
    class Reader(Dataset):
        def read(self, path):
            yield replace(Example("1", path / "1.png", ("a nodule",), "train"), **change)

    assert next(dataset_findings(Reader, tmp_path, {})).problem == problem


def test_every_check_names_what_exists_and_is_described():
    assert set(DECIDED_BY["backbone"]) <= set(dir(BackboneChecks)) and set(DECIDED_BY["strategy"]) <= set(vars(StrategyChecks))
    names = {name for decided in DECIDED_BY["backbone"].values() for name in decided.split(", ")}
    declared = {*dir(Backbone), *Backbone.__annotations__, "model_class", "model_types", "anatomy"}
    assert names <= declared, names - declared
    assert {name for name in names if not re.search(rf"`{name}\b", PAGE)} == set()
    for kind, decided in DECIDED_BY.items():
        for check in decided:
            section = re.search(r"docs/plugins\.md, (.+)\)", advice(kind, check))[1]
            assert f"\n## {section}\n" in PAGE
