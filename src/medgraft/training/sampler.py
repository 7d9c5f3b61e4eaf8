"""The order of training: batches of captions of like length, in random order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class LengthSampler(Sampler[int]):
    """Indices whose every run of `batch_size` has captions of like length; another order in each epoch, fixed by `seed`.

    transformers' sampler of the same purpose gives the longest batches of an epoch first, and another order after a
    resume.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; called by the Trainer before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch * 1_000_003)
        grouped: list[int] = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        starts = range(0, len(grouped), self.batch_size)
        last = [start for start in starts if start + self.batch_size > len(grouped)]  # the short batch stays last
        whole = [start for start in starts if start not in last]
        order = [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()] + last
        for start in order:
            yield from grouped[start : start + self.batch_size]
