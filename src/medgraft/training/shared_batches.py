"""A Trainer whose processes together do what one process would with their batches put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from medgraft import hardware, processes
from medgraft.errors import ConfigError

_IGNORED, _FILLER = -100, "filler"
_Batch = dict[str, torch.Tensor]


class SharedBatchesTrainer(Trainer):
    """Counts every caption once, and takes losses over all processes.

    accelerate fills the last batches of an epoch up with images of its beginning, so that all processes have batches of one
    size. Here these have no labels.
    """

    def create_accelerator_and_postprocess(self) -> None:
        """The Trainer's; ConfigError where accelerate does not shard the weights that are to be sharded."""
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled != hardware.is_sharded():
            raise ConfigError(f"FSDP: accelerate does not shard over {self.accelerator.distributed_type}; leave FSDP out.")

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The Trainer's, with the loss [] over all processes; the same step has the same loss in each."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        return processes.mean(loss)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        """The Trainer's; of a batch without labels that of its filler, times zero, so that all processes compute one."""
        if _FILLER in inputs:
            inputs, num_items_in_batch = _filled(inputs), torch.tensor(torch.inf, device=self.args.device)
        return super().compute_loss(model, inputs, *args, num_items_in_batch=num_items_in_batch, **kwargs)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The Trainer's, without the labels of captions that stand in another batch."""
        batches = self._without_repeats(epoch_iterator, len(self.train_dataset))
        return super().get_batch_samples(batches, num_batches, device)

    def evaluation_loop(
        self, dataloader: Any, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """The mean loss of the data set's labels; it does not depend on how they are put into batches."""
        model, images = self.model.eval(), len(dataloader.dataset)
        self.callback_handler.eval_dataloader = dataloader
        found = torch.zeros(2, device=self.args.device)
        for batch in self._without_repeats(dataloader, images):
            labels = (batch["labels"] != _IGNORED).sum()
            with torch.no_grad():
                items = torch.inf if _FILLER in batch else 1
                loss = model(**self._prepare_inputs(_filled(batch)), num_items_in_batch=items)["loss"]
            found += torch.stack([loss.float(), labels.float()])
        loss, labels = processes.total(found).tolist()
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_loss": loss / labels}, images)

    def _without_repeats(self, batches: Iterable[_Batch], captions: int) -> Iterator[_Batch]:
        """The batches of a data set of so many captions."""
        together = hardware.process_count()
        for batch in batches:
            left = captions % (len(batch["labels"]) * together)  # in the last batches of all processes
            last = together > 1 and left > 0 and self.accelerator.gradient_state.end_of_dataloader
            yield _first(batch, left - self.args.process_index * len(batch["labels"])) if last else batch


def _first(batch: _Batch, count: int) -> _Batch:
    """`batch` with the labels of its first `count` captions alone."""
    labels = batch["labels"].clone()
    labels[max(count, 0) :] = _IGNORED
    return {**batch, "labels": labels} | ({} if count > 0 else {_FILLER: batch["labels"]})


def _filled(batch: _Batch) -> _Batch:
    """`batch` with its filler, labels that other batches have, in the place of labels that it lacks."""
    rest = {name: tensor for name, tensor in batch.items() if name != _FILLER}
    return rest | ({"labels": batch[_FILLER]} if _FILLER in batch else {})
