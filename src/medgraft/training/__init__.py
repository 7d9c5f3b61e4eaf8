"""Training on transformers.Trainer, with timings."""

from medgraft.training.checkpoints import Checkpoints, done_and_wanted, trainer_state
from medgraft.training.module import CaptioningModule
from medgraft.training.prefix import build_features
from medgraft.training.trainer import TrainResult, fit

__all__ = ["CaptioningModule", "Checkpoints", "TrainResult", "build_features", "done_and_wanted", "fit", "trainer_state"]
