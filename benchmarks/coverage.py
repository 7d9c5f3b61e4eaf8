"""How often the intervals hold the truth, and how often equals are called different: `python benchmarks/coverage.py`.

Test sets of 200 patients with one to three images are drawn from many phantoms' captions; what a model says of an image is
its reference with words lost and turned, or another image's. The truth is the mean score of all drawn sets. For the second
question, two strategies are three seeds each of one model whose seeds differ in how many captions they spoil, on the same
images. Writes `benchmarks/results/coverage.json`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from medgraft.data.phantoms.captions import write_caption
from medgraft.data.phantoms.facts import draw_facts
from medgraft.metrics import CaptionSet, Measured, means
from medgraft.metrics.bleu import Bleu
from medgraft.metrics.cider import Cider, cider
from medgraft.metrics.rouge_l import RougeL, rouge_l
from medgraft.stats import Resampling

SETS, PATIENTS, ALPHA = 1000, 200, 0.05
OUT = Path(__file__).parent / "results" / "coverage.json"


def spoilt(reference: str, other: str, rng: np.random.Generator, share: float) -> str:
    """What a model says: the reference with some words lost and two turned, or the other caption."""
    if rng.random() < share:
        return other
    words = [word for word in reference.split() if rng.random() > 0.25]
    if len(words) > 3 and rng.random() < 0.5:
        place = int(rng.integers(len(words) - 2))
        words[place], words[place + 1] = words[place + 1], words[place]
    return " ".join(words)


def captions(count: int, rng: np.random.Generator) -> list[str]:
    """References of phantoms."""
    return [write_caption(draw_facts(rng, unseen=False), rng) for _ in range(count)]


def patients(rng: np.random.Generator) -> list[str]:
    """The patient of each image of one test set."""
    return [str(name) for name in np.repeat(np.arange(PATIENTS), rng.integers(1, 4, PATIENTS))]


def coverage() -> dict[str, float]:
    """The share of test sets whose interval holds the truth, by score."""
    rng = np.random.default_rng(0)
    scores: dict[str, list[float]] = {"bleu_4": [], "cider": [], "rouge_l": []}
    intervals: dict[str, list[tuple[float, float]]] = {name: [] for name in scores}
    for number in tqdm(range(SETS), desc="coverage"):
        groups = patients(rng)
        hard = {group: rng.beta(2, 3) for group in groups}  # images of one patient are alike in how well they are told
        references = captions(len(groups), rng)
        said = [
            spoilt(reference, references[int(rng.integers(len(references)))], rng, hard[group])
            for reference, group in zip(references, groups, strict=True)
        ]
        data = CaptionSet(tuple(said), tuple((reference,) for reference in references))
        resampling = Resampling(groups, seed=number)
        for metric in (Bleu(), Cider(), RougeL()):
            measured = metric.measure(data)
            for name, interval in resampling.intervals(measured).items():
                if name in scores:
                    scores[name].append(measured.scores[name])
                    intervals[name].append((interval.low, interval.high))
    truth = {name: float(np.mean(values)) for name, values in scores.items()}
    return {name: float(np.mean([low <= truth[name] <= high for low, high in intervals[name]])) for name in scores}


def false_alarms() -> dict[str, float]:
    """The share of comparisons of two halves of one model's seeds that are called significant, by score."""
    rng = np.random.default_rng(1)
    called = {"rouge_l": 0, "cider": 0, "rouge_l, images alone": 0, "cider, images alone": 0}
    for number in tqdm(range(SETS), desc="equals"):
        groups = patients(rng)[:150]
        references = captions(len(groups), rng)
        seeds: dict[str, list[Measured]] = {"rouge_l": [], "cider": []}
        for _ in range(6):
            share = float(np.clip(rng.normal(0.4, 0.05), 0, 1))
            others = rng.permutation(len(references))
            said = [spoilt(r, references[int(o)], rng, share) for r, o in zip(references, others, strict=True)]
            meant = [[reference] for reference in references]
            seeds["rouge_l"].append(means({"rouge_l": rouge_l(said, meant)}))
            seeds["cider"].append(means({"cider": cider(said, meant)}))
        resampling = Resampling(groups, resamples=500, seed=number)
        for name, several in seeds.items():
            found = resampling.difference(several[:3], several[3:], name)
            called[name] += found.p < ALPHA
            called[f"{name}, images alone"] += found.p_images < ALPHA
    return {name: count / SETS for name, count in called.items()}


if __name__ == "__main__":
    OUT.parent.mkdir(parents=True, exist_ok=True)
    record = {"sets": SETS, "patients": PATIENTS, "coverage": coverage(), "false_alarms": false_alarms()}
    OUT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))
