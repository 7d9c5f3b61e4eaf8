"""`medgraft score`: scores captions in files against references in files."""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgraft.cli.options import add_json, add_metrics
from medgraft.errors import ConfigError, ScoringError

if TYPE_CHECKING:
    from medgraft.scoring import CaptionScores

NAME = "score"
SUMMARY = "score captions in a file against references in another"
EXAMPLE = "medgraft score --predictions results.json --references captions_val.json --metrics cider,bleu --out each.csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument(
        "--predictions", type=Path, required=True, metavar="P",
        help="file with an id and a caption each: {id: caption}, COCO results, JSON lines, CSV; or a run's folder",
    )  # fmt: skip
    parser.add_argument(
        "--references", type=Path, metavar="R", help="the same with one or more captions each; a run's folder has its own"
    )
    parser.add_argument("--metrics", default="bleu,rouge_l,cider", metavar="A,B", help="see `medgraft list metrics`")
    add_metrics(parser, "those of --metrics")
    parser.add_argument(
        "--tokenizer", choices=("ptb", "whitespace"), default="ptb",
        help="ptb: as COCO scores (default); whitespace: bleu, rouge_l, cider, meteor on text split at spaces, as R2Gen scores",
    )  # fmt: skip
    parser.add_argument("--allow-missing", action="store_true", help="score only ids with a prediction and a reference")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the scores of each image: .csv or .jsonl")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    out = arguments.out
    if out and out.suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"--out {out} should be a file that ends in .csv or .jsonl.")
    metrics = [name.strip() for name in arguments.metrics.split(",") if name.strip()]
    if not metrics:
        raise ConfigError("--metrics names no metric. `medgraft list metrics` shows all.")
    from medgraft.cli.scores import print_scores
    from medgraft.config import RunSettings
    from medgraft.metrics import check_metrics, with_task_metrics, with_tokenizer
    from medgraft.plugin import KnownScores, PluginManager
    from medgraft.scoring import score

    plugins = PluginManager.from_environment()
    wanted = with_task_metrics(RunSettings(metrics=tuple(metrics)), (), arguments.metrics_added, plugins=plugins).metrics
    if arguments.tokenizer != "ptb":
        wanted = with_tokenizer(wanted, arguments.tokenizer, plugins)
    check_metrics(wanted, plugins)
    found = score(
        arguments.predictions, arguments.references, metrics=wanted, allow_missing=arguments.allow_missing, plugins=plugins
    )
    if not found.metrics:
        raise ScoringError("; ".join(f"{name}: {reason}" for name, reason in found.unavailable.items()))
    if out:
        _write(found, out)
    images = len(found.captions.ids)
    if arguments.json:
        content = {"images": images, "metrics": found.metrics, "unavailable": found.unavailable, "notes": found.notes}
        content |= {"intervals": {name: (i.low, i.high) for name, i in found.intervals.items()}}
        print(json.dumps(content | {"signatures": found.scores.signatures}, indent=2, ensure_ascii=False))
        return 0
    references = sum(map(len, found.captions.references.values()))
    print(f"{images} images, {references} references")
    for note in found.notes:
        print(note)
    print_scores(found.metrics, found.intervals, found.unavailable, KnownScores(plugins))
    return 0


def _write(found: CaptionScores, path: Path) -> None:
    """One row for each image: id, prediction, references and its scores, empty or null where it has none."""
    rows: list[dict[str, Any]] = []
    for i, key in enumerate(found.captions.ids):
        scores = {name: float(values[i]) if math.isfinite(values[i]) else None for name, values in found.per_image.items()}
        rows.append({"id": key, "prediction": found.captions.predictions[key]} | scores)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
