"""What the processes of one run do together, those that accelerate or torchrun started; a single process does it alone.

Every process has to call these functions, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from accelerate.utils import gather_object

from medgraft import hardware
from medgraft.errors import MedgraftError

T = TypeVar("T")


def one_first() -> AbstractContextManager[None]:
    """Run the block in one process of each machine, then in the others, which find the files that it left."""
    first: AbstractContextManager[None] = hardware.processes().local_main_process_first()
    return first


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over the processes; does not wait for a GPU."""
    return total(values) / hardware.process_count()


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over the processes; does not wait for a GPU."""
    if hardware.process_count() == 1:
        return values
    values = values.clone()
    torch.distributed.all_reduce(values)
    return values


def gathered(value: T) -> list[T]:
    """What each process gives to this function, by process."""
    every: list[T] = gather_object([value])
    return every


def in_turn(count: int, own: Iterator[T]) -> Iterator[T]:
    """The results of `count` pieces of work, in order, in every process.

    Of W processes the one with index p does the pieces p, p + W, ...; `own` gives their results as they are made. A
    MedgraftError in one process is raised in all.
    """
    together = hardware.process_count()
    if together == 1:
        yield from own
        return
    for _ in range(0, count, together):
        for result, error in gathered(_next(own)):
            if error is not None:
                raise error
            if result is not None:
                yield result
    next(own, None)  # what it does at its end


def _next(results: Iterator[T]) -> tuple[T | None, MedgraftError | None]:
    try:
        return next(results, None), None
    except MedgraftError as error:
        return None, error
