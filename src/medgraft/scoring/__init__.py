"""Captions of a run or from files, and their scores."""

from medgraft.scoring.layouts import export_predictions
from medgraft.scoring.predictions_file import PredictionsFile
from medgraft.scoring.run_captions import RunCaptions, captions_of, collapse, read_captions, shuffled, write_captions
from medgraft.scoring.scores import CaptionScores, score

__all__ = [
    "CaptionScores", "PredictionsFile", "RunCaptions", "captions_of", "collapse", "export_predictions", "read_captions",
    "score", "shuffled", "write_captions",
]  # fmt: skip
