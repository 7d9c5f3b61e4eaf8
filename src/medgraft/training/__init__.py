"""Training on transformers.Trainer, timed."""

from medgraft.training.module import CaptioningModule
from medgraft.training.precision import prepare_linear
from medgraft.training.prefix import build_features
from medgraft.training.trainer import Checkpoints, TrainResult, fit, uses_bf16

__all__ = ["CaptioningModule", "Checkpoints", "TrainResult", "build_features", "fit", "prepare_linear", "uses_bf16"]
