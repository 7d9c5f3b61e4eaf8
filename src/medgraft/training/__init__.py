"""Training on transformers.Trainer, with timings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgraft.lazy import lazily

if TYPE_CHECKING:
    from medgraft.training.best import LOSS, Best
    from medgraft.training.checkpoints import Checkpoints, damage, done_and_wanted, progress_of, trainer_state
    from medgraft.training.chosen_weights import ChosenWeights
    from medgraft.training.fitting import fit
    from medgraft.training.identity import identity_of
    from medgraft.training.interruption import sigterm_raises
    from medgraft.training.module import CaptioningModule
    from medgraft.training.prefix import build_features
    from medgraft.training.result import TrainResult
    from medgraft.training.sharded import check_sharded
    from medgraft.training.trackers import LOGS, check_trackers
    from medgraft.training.validation import validation_examples
else:
    __getattr__ = lazily(__name__)

__all__ = [
    "Best", "CaptioningModule", "Checkpoints", "ChosenWeights", "LOGS", "LOSS", "TrainResult", "build_features",
    "check_sharded", "check_trackers", "damage", "done_and_wanted", "fit", "identity_of", "progress_of", "sigterm_raises",
    "trainer_state", "validation_examples",
]  # fmt: skip
