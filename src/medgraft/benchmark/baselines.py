"""Baselines without a model: the training images' most frequent caption for every image, and a random one for each.

Where examples have prompts of their own, such as questions, a third one answers from the question alone. A model that does not
beat them has learnt how the captions are worded, but does not use the image.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from medgraft import hardware
from medgraft.benchmark.evaluation import evaluated
from medgraft.benchmark.lease import Leases
from medgraft.benchmark.record import Record, read_record, run_id, write_record
from medgraft.config import RunConfig
from medgraft.data import data_fingerprint, load_data
from medgraft.plugin import PluginManager
from medgraft.scoring import captions_of, write_captions
from medgraft.types import SPLITS, CaptionData, Example

_logger = logging.getLogger(__name__)

BASELINE = "baseline"  # the backbone's name in a baseline's record
STRATEGIES = ("most-frequent", "random")
QUESTION_ONLY = "question-only"  # for data with questions


def run_baselines(config: RunConfig, out: Path, *, plugins: PluginManager, leases: Leases) -> tuple[Record, ...]:
    """The record of each baseline on the data of `config`; computes those that are not in `out` yet, each under its lease."""
    data = load_data(config.data, plugins=plugins)
    if not data.split("train") or not data.split(config.eval_split):
        return ()
    fingerprint = data_fingerprint(data.examples)
    records = []
    asks = any(example.prompt is not None for example in data.split(config.eval_split))
    for name in (*STRATEGIES, *([QUESTION_ONLY] if asks else [])):
        own = config.model_copy(update={"backbone": BASELINE, "strategy": name, "strategy_options": {}, "seed": 0})
        identity = run_id(own, None, fingerprint, "", hardware.versions())
        path = out / "records" / f"{identity}.json"
        if not path.is_file():
            with leases.wait(identity, lambda owner: _logger.info("baselines: left to %s, which does them", owner)):
                if not path.is_file():
                    _run(own, identity, data, fingerprint, out, plugins)
        records.append(read_record(path))
    return tuple(records)


def _run(config: RunConfig, identity: str, data: CaptionData, fingerprint: str, out: Path, plugins: PluginManager) -> None:
    captions = captions_of(data.split(config.eval_split), _captions(config.strategy, data, config))
    folder = f"runs/{BASELINE}_{config.strategy}_{config.data.name}_{identity[:8]}"
    write_captions(captions, out / folder)
    record = Record(
        run_id=identity, backbone=BASELINE, strategy=config.strategy, data=config.data.name, seed=0, status="ok",
        trainable_parameters=0, adapter=folder, data_fingerprint=fingerprint,
        images={split: len(data.split(split)) for split in SPLITS}, config=config,
        versions=hardware.versions(), hardware=hardware.describe(), git=hardware.git_revision(),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        **evaluated(captions, metrics=config.metrics, plugins=plugins).for_record(),
    )  # fmt: skip
    write_record(record, out / "records")


def _from_questions(train: Sequence[Example], asked: Sequence[Example]) -> list[str]:
    """For each question the most frequent training answer to the same one, else to those of its type, else to any.

    The type is the data set's, or the question's first word. Neither letter case nor spaces count.
    """
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        for caption in filter(None, example.captions):
            for key in _question_keys(example):
                answers[key][_folded(caption)] += 1
    return [next(answers[key] for key in _question_keys(e) if key in answers).most_common(1)[0][0] for e in asked]


def _question_keys(example: Example) -> tuple[str, str, str]:
    """What training answers are looked up by, the closest first; every question has the last."""
    facts = example.facts or {}
    question = _folded(str(facts.get("question") or example.prompt or ""))
    kind = _folded(str(facts.get("question_type") or question.partition(" ")[0]))
    return f"question {question}", f"type {kind}", "any"


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _captions(name: str, data: CaptionData, config: RunConfig) -> list[str]:
    if name == QUESTION_ONLY:
        return _from_questions(data.split("train"), data.split(config.eval_split))
    captions = [caption for example in data.split("train") for caption in example.captions if caption]
    count = len(data.split(config.eval_split))
    if name == "most-frequent":
        return [Counter(captions).most_common(1)[0][0]] * count
    return [captions[i] for i in np.random.default_rng(0).integers(0, len(captions), count)]
