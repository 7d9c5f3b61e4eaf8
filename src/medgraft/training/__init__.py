"""Training on transformers.Trainer, timed."""

from medgraft.training.clock import Clock
from medgraft.training.module import CaptioningModule
from medgraft.training.prefix import build_features
from medgraft.training.trainer import TrainResult, fit

__all__ = ["CaptioningModule", "Clock", "TrainResult", "build_features", "fit"]
