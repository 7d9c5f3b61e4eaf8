"""Training on transformers.Trainer, timed."""

from medgraft.training.clock import Clock
from medgraft.training.module import CaptioningModule
from medgraft.training.precision import prepare_linear
from medgraft.training.prefix import prepare_features
from medgraft.training.trainer import TrainResult, fit, uses_bf16

__all__ = ["CaptioningModule", "Clock", "TrainResult", "fit", "prepare_features", "prepare_linear", "uses_bf16"]
