"""SPICE (Anderson et al. 2016, arXiv 1607.08822), computed by COCO's own program where it can run.

It needs java, `pycocoevalcap`, and the two jars of Stanford CoreNLP 3.6.0 in that package's `spice/lib`. Nothing is
downloaded: without any of them it is unavailable.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from pathlib import Path

from medgraft.metrics.base import CaptionMetric
from medgraft.metrics.measured import CaptionSet, Measured, UnavailableError, ratios

_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


class Spice(CaptionMetric):
    """`spice`: the mean F1 over the images whose scene graphs can be parsed."""

    summary = __doc__ or ""
    citation = "Anderson et al. 2016, arXiv 1607.08822"
    signature = "spice|pycocoevalcap|corenlp:3.6.0"

    def measure(self, captions: CaptionSet) -> Measured:
        """See CaptionMetric."""
        _require()
        from pycocoevalcap.spice.spice import Spice as Program

        # the program returns scores ordered by their ids as text
        texts = {f"{i:09d}": list(references) for i, references in enumerate(captions.references)}
        _, each = Program().compute_score(
            texts, {f"{i:09d}": [prediction] for i, prediction in enumerate(captions.predictions)}
        )
        scores = [float(score["All"]["f"]) for score in each]
        known = [float(math.isfinite(score)) for score in scores]
        return ratios({"spice": ([score if math.isfinite(score) else 0.0 for score in scores], known)})


def _require() -> None:
    if shutil.which("java") is None:
        raise UnavailableError("SPICE needs java, which is not installed")
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or package.origin is None:
        raise UnavailableError("SPICE needs pycocoevalcap: pip install pycocoevalcap")
    library = Path(package.origin).parent / "spice" / "lib"
    if absent := [name for name in _JARS if not (library / name).is_file()]:
        raise UnavailableError(f"SPICE needs Stanford CoreNLP 3.6.0: put {' and '.join(absent)} into {library}")
