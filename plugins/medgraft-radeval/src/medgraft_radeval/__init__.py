"""Clinical metrics of radiology reports, by the package `radeval`."""

from collections.abc import Iterator

import medgraft
from medgraft import ScoreSpec

_F1 = "findings of {} that CheXbert reads in both reports, F1 over {}, 0 to 1"
_14, _5 = "CheXpert's 14", "the 5 commonest"
_SCORES = {
    "radgraph": (
        ScoreSpec("radgraph_partial", "entities in both reports, related or not in both, F1, 0 to 1", label="RadGraph F1"),
        ScoreSpec("radgraph_simple", "entities in both reports, F1, 0 to 1", detail=True),
        ScoreSpec("radgraph_complete", "entities in both reports with the same relations, F1, 0 to 1", detail=True),
    ),
    "ratescore": (
        ScoreSpec("ratescore", "entities of like meaning, weighed by their types and denials, 0 to 1", label="RaTEScore"),
        ScoreSpec("ratescore_no_entity", "images without an entity in caption or reference, scored 0.5", None, detail=True),
    ),
    "chexbert": (
        ScoreSpec("chexbert_14_micro_f1", _F1.format(_14, "all images together"), label="CheXbert F1"),
        ScoreSpec("chexbert_14_macro_f1", _F1.format(_14, "each finding, then their mean"), detail=True),
        ScoreSpec("chexbert_5_micro_f1", _F1.format(_5, "all images together"), detail=True),
        ScoreSpec("chexbert_5_macro_f1", _F1.format(_5, "each finding, then their mean"), detail=True),
    ),
    "green": (
        ScoreSpec(
            "green", "findings that match, of these and the significant errors, by a language model, 0 to 1", label="GREEN"
        ),
        ScoreSpec("green_unreadable", "images whose judgement has no list of matches, scored 0", None, detail=True),
    ),
}


@medgraft.hookimpl
def medgraft_metrics() -> Iterator[medgraft.MetricSpec]:
    """The four for reports of chest films; neither radeval nor torch is imported before one is computed."""
    for name, summary, target in (
        ("radgraph", "RadGraph F1 by radeval: entities and relations", "RadGraphF1"),
        ("ratescore", "RaTEScore by radeval: entities by their meaning", "RaTEScore"),
        ("chexbert", "CheXbert F1 by radeval: CheXpert's 14 findings", "CheXbertF1"),
        ("green", "GREEN by radeval: a judge of 7 B parameters", "Green"),
    ):
        yield medgraft.MetricSpec(name, summary, f"medgraft_radeval.metrics:{target}", _SCORES[name])
