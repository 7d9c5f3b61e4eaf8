"""`medgraft evaluate`: caption a split and score it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from medgraft.cli.images import list_failed
from medgraft.cli.options import add_generation, add_json, add_metrics, add_model, add_set

NAME = "evaluate"
SUMMARY = "caption a split of a data set, and score the captions"
EXAMPLE = "medgraft evaluate --adapter my-adapter --data roco:/data/roco --split test"
_SECTIONS = ("data", "model", "image", "generation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    add_model(parser)
    parser.add_argument("--data", required=True, metavar="NAME[:PATH]")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--max-images", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--predictions", type=Path, metavar="FILE", help="also write {id: caption} there, as captions are made")
    add_set(parser, "data.K=V, an option of the data set, model.K=V, image.size=N or generation.K=V; may be repeated")
    add_metrics(parser, "the usual ones")
    add_generation(parser, sets=False)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft import api
    from medgraft.cli.models import generation, load_model
    from medgraft.cli.scores import print_evaluation
    from medgraft.config import RunSettings, data_config
    from medgraft.metrics import check_metrics, with_task_metrics
    from medgraft.plugin import KnownScores, PluginManager

    data = data_config(arguments.data, arguments.overrides, arguments.max_images, _SECTIONS)
    plugins = PluginManager.from_environment()
    metrics = with_task_metrics(RunSettings(), [data], arguments.metrics_added, plugins=plugins).metrics
    check_metrics(metrics, plugins)
    adapter, backbone = load_model(arguments, _SECTIONS)
    settings = generation(arguments, adapter, _SECTIONS)
    wanted = api.SplitEvaluation(data, arguments.split, metrics, settings, arguments.predictions)
    result = api.evaluate_split(wanted, adapter, backbone)
    report, seen = result.data_report, result.seen_in_training
    if arguments.json:
        content: dict[str, object] = {"adapter": adapter.name if adapter else None}
        content |= {"images": len(result.predictions), "split": arguments.split, "metrics": result.metrics}
        content |= {"intervals": {name: (i.low, i.high) for name, i in result.intervals.items()}, "collapse": result.collapse}
        content |= {"baselines": {name: dict(each.metrics) for name, each in result.baselines.items()}}
        content |= {"unavailable": result.scores.unavailable, "left_out": report.left_out(), "assumptions": report.assumptions}
        content |= {"seen_in_training": asdict(seen) if seen else None}
        content |= {"generated": result.generated.model_dump() if result.generated else None}
        content |= {"generation": settings.model_dump(), "warnings": result.warnings()}
        print(json.dumps(content, indent=2))
    else:
        print(f"{len(result.predictions)} images of {arguments.split}")
        for sentence in report.sentences():
            print(sentence)
        if adapter is not None:
            print(seen or "The adapter's package does not list its training images: these may be among them.")
        if result.generated:
            print(result.generated)
        print_evaluation(result, KnownScores(plugins))
    list_failed((*report.corrupt, *report.missing), "left out")
    return 0
