"""Training on transformers.Trainer, with timings."""

from medgraft.training.best import LOSS, Best, ChosenWeights
from medgraft.training.checkpoints import Checkpoints, damage, done_and_wanted, progress_of, trainer_state
from medgraft.training.identity import identity_of
from medgraft.training.interruption import sigterm_raises
from medgraft.training.module import CaptioningModule
from medgraft.training.prefix import build_features
from medgraft.training.trackers import LOGS, check_trackers
from medgraft.training.trainer import TrainResult, fit
from medgraft.training.validation import validation_examples

__all__ = [
    "LOGS", "LOSS", "Best", "CaptioningModule", "Checkpoints", "ChosenWeights", "TrainResult", "build_features",
    "check_trackers", "damage", "done_and_wanted", "fit", "identity_of", "progress_of", "sigterm_raises", "trainer_state",
    "validation_examples",
]  # fmt: skip
