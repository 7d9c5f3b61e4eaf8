"""Training on transformers.Trainer, with timings."""

from medgraft.training.checkpoints import Checkpoints, damage, done_and_wanted, progress_of, trainer_state
from medgraft.training.identity import identity_of
from medgraft.training.interruption import sigterm_raises
from medgraft.training.module import CaptioningModule
from medgraft.training.prefix import build_features
from medgraft.training.sharded import check_sharded
from medgraft.training.trainer import TrainResult, fit

__all__ = [
    "CaptioningModule", "Checkpoints", "TrainResult", "build_features", "check_sharded", "damage", "done_and_wanted", "fit",
    "identity_of", "progress_of", "sigterm_raises", "trainer_state",
]  # fmt: skip
