"""`medgraft score`: scores captions in files against references in files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from medgraft.cli.options import add_json
from medgraft.errors import ScoringError

NAME = "score"
SUMMARY = "score captions in a JSON file against references in another"
EXAMPLE = "medgraft score --predictions predictions.json --references references.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("--predictions", type=Path, required=True, metavar="P.json", help="{id: caption}")
    parser.add_argument("--references", type=Path, required=True, metavar="R.json", help="{id: [captions]}")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    predictions = _read(arguments.predictions, "{id: caption}")
    references = _read(arguments.references, "{id: [captions]}")
    for key, value in predictions.items():
        if not isinstance(value, str):
            raise ScoringError(f"{arguments.predictions}: {key!r} is not a caption but {type(value).__name__}.")
    for key, value in references.items():
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ScoringError(f"{arguments.references}: {key!r} is not a list of captions.")
        references[key] = texts
    from medgraft.metrics import score
    from medgraft.plugin import PluginManager

    numbers = score(predictions, references, metrics=("bleu", "rouge_l", "cider"), plugins=PluginManager.from_environment())
    if arguments.json:
        print(json.dumps(numbers, indent=2))
    else:
        for name, value in numbers.items():
            print(f"{name:<8} {value:.6f}")
    return 0


def _read(path: Path, form: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ScoringError(f"There is no file {path}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ScoringError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or not content:
        raise ScoringError(f"{path} is not a JSON object of the form {form}.")
    return content
