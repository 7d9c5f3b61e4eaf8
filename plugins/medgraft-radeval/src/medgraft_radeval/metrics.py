"""The metrics: each gives every image the value of the reference that fits its caption best.

What a scorer gives for a pair of texts is that of radeval itself; resampling, tests and subgroups are medgraft's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medgraft.plugin_api import CaptionMetric, CaptionSet, ConfigError, Measured, UnavailableError, means
from medgraft_radeval.chest_films import chest_film_notes
from medgraft_radeval.scorers import contained, scorer

Array = npt.NDArray[np.floating[Any]]


class _PairMetric(CaptionMetric):
    """A metric whose scores are means of values of a caption and a reference; the first value chooses the reference."""

    scorer_name: str

    def measure(self, captions: CaptionSet) -> Measured:
        """See CaptionMetric."""
        loaded = scorer(self.scorer_name)
        each = [
            [(prediction.strip(), text.strip()) for text in texts]
            for prediction, texts in zip(captions.predictions, captions.references, strict=True)
        ]
        pairs = list(dict.fromkeys(pair for several in each for pair in several))
        with contained(), torch.no_grad():
            columns = self.values(loaded, [prediction for prediction, _ in pairs], [text for _, text in pairs])
        rows = dict(zip(pairs, zip(*columns.values(), strict=True), strict=True))
        best = [max((rows[pair] for pair in several), key=lambda row: row[0]) for several in each]
        measured = means(dict(zip(columns, zip(*best, strict=True), strict=True)))
        return replace(measured, notes=chest_film_notes(captions))

    @abstractmethod
    def values(self, loaded: Any, predictions: list[str], references: list[str]) -> Mapping[str, Sequence[float]]:
        """By score, the value of each prediction and the reference in its place, both without outer spaces."""


class RadGraphF1(_PairMetric):
    """`radgraph_partial`, `radgraph_simple`, `radgraph_complete`: F1 of the entities; 0 where a text is empty or has none."""

    summary = __doc__ or ""
    citation = "Delbrouck et al. 2022, Findings of EMNLP, 2022.findings-emnlp.319"
    signature = "radgraph|radeval:2|model:radgraph-xl|references:best"
    scorer_name = "radgraph"

    def values(self, loaded: Any, predictions: list[str], references: list[str]) -> Mapping[str, Sequence[float]]:
        """See _PairMetric."""
        found = np.zeros((3, len(predictions)))
        if full := [i for i, texts in enumerate(zip(predictions, references, strict=True)) if all(texts)]:
            _, levels, *_ = loaded(refs=[references[i] for i in full], hyps=[predictions[i] for i in full])
            found[:, full] = levels
        simple, partial, complete = found.tolist()
        return {"radgraph_partial": partial, "radgraph_simple": simple, "radgraph_complete": complete}


class RaTEScore(_PairMetric):
    """`ratescore`, and `ratescore_no_entity`: the share of images where a text has no entity, which radeval scores 0.5."""

    summary = __doc__ or ""
    citation = "Zhao et al. 2024, EMNLP, 2024.emnlp-main.836"
    signature = "ratescore|radeval:2|ner:RaTE-NER-Deberta|synonyms:BioLORD-2023-C|weights:long|references:best"
    scorer_name = "ratescore"

    def values(self, loaded: Any, predictions: list[str], references: list[str]) -> Mapping[str, Sequence[float]]:
        """See _PairMetric; a text of which radeval keeps no sentence has no entity, and would shift the texts after it."""
        from radeval.metrics.RaTEScore.utils import sentence_split

        has_sentence = {text: bool(sentence_split([text])[0]) for text in {*predictions, *references}}
        scores, without = np.full(len(predictions), 0.5), np.ones(len(predictions))
        pairs = zip(predictions, references, strict=True)
        if scorable := [i for i, (a, b) in enumerate(pairs) if has_sentence[a] and has_sentence[b]]:
            scores[scorable], *entities = loaded.compute_score(
                [predictions[i] for i in scorable], [references[i] for i in scorable]
            )
            without[scorable] = [
                not (of_prediction and of_reference) for of_prediction, of_reference in zip(*entities, strict=True)
            ]
        return {"ratescore": scores.tolist(), "ratescore_no_entity": without.tolist()}


class Green(_PairMetric):
    """`green`, and `green_unreadable`: the share of images whose judgement lists no matched findings, which counts as 0.

    Its model is loaded by code that comes with it from the hub, which only `green:trust_remote_code` runs.
    """

    summary = __doc__ or ""
    citation = "Ostmeier et al. 2024, Findings of EMNLP, 2024.findings-emnlp.21"
    signature = "green|radeval:2|model:GREEN-radllama2-7b|references:best"
    scorer_name = "green"

    def __init__(self, allowed: str = ""):
        if allowed not in ("", "trust_remote_code"):
            raise ConfigError(f"Metric green:{allowed}: after the colon it takes trust_remote_code alone.")
        self._trusted = bool(allowed)

    def measure(self, captions: CaptionSet) -> Measured:
        """See CaptionMetric."""
        if not self._trusted:
            raise UnavailableError("it runs code that comes with its model from the hub; green:trust_remote_code allows that")
        return super().measure(captions)

    def values(self, loaded: Any, predictions: list[str], references: list[str]) -> Mapping[str, Sequence[float]]:
        """See _PairMetric."""
        _, _, scores, _ = loaded(references, predictions)
        unreadable = [float("[Matched Findings]:" not in text) for text in loaded.completions]
        return {"green": [float(score) for score in scores], "green_unreadable": unreadable}


class CheXbertF1(CaptionMetric):
    """F1 of the findings that CheXbert labels positive or uncertain, micro and macro, of all 14 and of the 5 commonest.

    Of several references the one counts whose labels agree most with the caption's.
    """

    summary = __doc__ or ""
    citation = "Smit et al. 2020, EMNLP, 2020.emnlp-main.117"
    signature = "chexbert|radeval:2|uncertain:positive|no finding:a label|references:best"

    def measure(self, captions: CaptionSet) -> Measured:
        """See CaptionMetric."""
        loaded = scorer("chexbert")
        texts = list(dict.fromkeys([*captions.predictions, *(text for several in captions.references for text in several)]))
        with contained(), torch.no_grad():
            labels = dict(zip(texts, np.array(loaded.get_labels(texts)), strict=True))  # each [14] of 0 and 1
        rows = np.stack(
            [
                max((_counts(labels[prediction], labels[text]) for text in several), key=_agreement)
                for prediction, several in zip(captions.predictions, captions.references, strict=True)
            ]
        )  # [N, 3, 14]

        def combine(sums: Array) -> dict[str, Array]:
            return f1_scores(sums.reshape(*sums.shape[:-1], *rows.shape[1:]), loaded.top5_idx)

        flat = rows.reshape(len(rows), -1)
        alone = {name: values for name, values in combine(flat).items() if "micro" in name}
        return Measured(flat, combine, alone, chest_film_notes(captions))


def f1_scores(counts: Array, commonest: Sequence[int]) -> dict[str, Array]:
    """Scores [...] of counts [..., 3, 14]: true positives, false positives and false negatives of each label.

    Micro F1 is NaN where nothing is positive; in macro F1 such a label counts as 0, as in scikit-learn.
    """
    found = {}
    for name, some in (("14", counts), ("5", counts[..., list(commonest)])):
        hits, wrong = 2 * some[..., 0, :], some[..., 1, :] + some[..., 2, :]
        with np.errstate(invalid="ignore"):
            found[f"chexbert_{name}_micro_f1"] = hits.sum(-1) / (hits + wrong).sum(-1)
        found[f"chexbert_{name}_macro_f1"] = (hits / np.maximum(hits + wrong, 1)).mean(-1)
    return found


def _counts(prediction: Array, reference: Array) -> Array:
    return np.stack([prediction * reference, prediction * (1 - reference), (1 - prediction) * reference]).astype(np.float64)


def _agreement(counts: Array) -> float:
    return -float(counts[1:].sum())
