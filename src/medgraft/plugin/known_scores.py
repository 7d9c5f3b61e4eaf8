"""What the installed metrics declare about their scores: heading, direction, explanation, controls."""

from __future__ import annotations

from collections.abc import Iterable

from medgraft.plugin.manager import PluginManager
from medgraft.plugin.types import MetricSpec, ScoreSpec

MAIN_SCORE = "cider"  # orders tables where a run has it


class KnownScores:
    """The declared scores by name; one that no metric declares has its name as heading and no direction."""

    def __init__(self, plugins: PluginManager):
        metrics = [spec for spec, _ in plugins.specs("metric") if isinstance(spec, MetricSpec)]
        self._declared = {score.name: score for spec in metrics for score in spec.scores}
        self._providers = {
            spec.name.replace("-", "_"): spec for spec in metrics
        }  # an undeclared score may have its metric's name
        self._providers |= {score.name: spec for spec in metrics for score in spec.scores}
        self._controls = {name for score in self._declared.values() for name in score.controls}

    def __getitem__(self, name: str) -> ScoreSpec:
        provider = self._providers.get(name)
        undeclared = ScoreSpec(name, provider.summary if provider else "declared by no installed metric", None)
        return self._declared.get(name, undeclared)

    def shown(self, names: Iterable[str], *, details: bool = True) -> list[str]:
        """`names` without controls and, unless `details`, without scores of detail, each once; the main score is first."""
        kept = [n for n in dict.fromkeys(names) if n not in self._controls and (details or not self[n].detail)]
        return sorted(kept, key=lambda name: name != MAIN_SCORE)

    def main(self, names: Iterable[str]) -> str:
        """The one of `names` that orders a table: MAIN_SCORE, else the first with a direction; MAIN_SCORE if there is none."""
        shown = self.shown(names)
        ranked = sorted((name for name in shown if self[name].sign), key=lambda name: self[name].detail)
        return MAIN_SCORE if MAIN_SCORE in shown or not ranked else ranked[0]

    def metric_of(self, name: str) -> str | None:
        """The metric that reports the score `name`; None if no installed one is known to."""
        return self._providers[name].name if name in self._providers else None
