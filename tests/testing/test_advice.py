"""A check that fails says what to write, by names that exist and that the plugins' page describes."""

import re
from pathlib import Path

from medgraft.backbones import Backbone
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


def test_every_check_names_what_exists_and_is_described():
    assert set(DECIDED_BY["backbone"]) <= set(vars(BackboneChecks)) and set(DECIDED_BY["strategy"]) <= set(vars(StrategyChecks))
    names = {name for decided in DECIDED_BY["backbone"].values() for name in decided.split(", ")}
    declared = {*dir(Backbone), *Backbone.__annotations__, "model_class", "model_types", "anatomy"}
    assert names <= declared, names - declared
    assert {name for name in names if not re.search(rf"`{name}\b", PAGE)} == set()
    for kind, decided in DECIDED_BY.items():
        for check in decided:
            section = re.search(r"docs/plugins\.md, (.+)\)", advice(kind, check))[1]
            assert f"\n## {section}\n" in PAGE
