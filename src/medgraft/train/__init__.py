"""Training on transformers.Trainer, timed."""

from medgraft.train.clock import Clock
from medgraft.train.module import CaptioningModule
from medgraft.train.trainer import TrainResult, fit, uses_bf16

__all__ = ["CaptioningModule", "Clock", "TrainResult", "fit", "uses_bf16"]
