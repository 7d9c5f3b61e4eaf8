"""Training on transformers.Trainer, with timings."""

from medgraft.training.module import CaptioningModule
from medgraft.training.prefix import build_features
from medgraft.training.trainer import Checkpoints, TrainResult, fit

__all__ = ["CaptioningModule", "Checkpoints", "TrainResult", "build_features", "fit"]
