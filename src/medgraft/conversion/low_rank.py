"""Matrices in fewer numbers, by singular value decomposition (Eckart and Young 1936).

The energy of a matrix is the sum of its squared values, which is the sum of its squared singular values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LowRank:
    """A matrix [M, N] as `left` [M, R] times `right` [R, N], except for the `rows` [K], which have `values` [K, N].

    The singular values are shared equally between both factors.
    """

    left: torch.Tensor
    right: torch.Tensor
    rows: torch.Tensor
    values: torch.Tensor

    @property
    def rank(self) -> int:
        """R."""
        return int(self.left.shape[1])

    @property
    def numel(self) -> int:
        """How many numbers are stored."""
        return self.left.numel() + self.right.numel() + self.values.numel()


def low_rank(matrix: torch.Tensor, rank: int | None, keep: float) -> LowRank:
    """The closest to `matrix` [M, N] of `rank`; if that is None, of the lowest that keeps the share `keep` of its energy."""
    left, values, right = torch.linalg.svd(matrix.float(), full_matrices=False)
    if rank is None:
        share = values.double().square().cumsum(0) / values.double().square().sum()
        rank = int((share < keep - 1e-10).sum()) + 1  # rounding gives every matrix full rank
    return _low_rank(matrix, left, values, right, min(rank, len(values)), torch.zeros(len(matrix), dtype=torch.bool))


def low_rank_table(matrix: torch.Tensor, rank: int | None, keep: float) -> LowRank:
    """`matrix` [M, N] in low rank, with the rows whole that would keep less than the share `keep` of their own energy.

    Without `rank` it is the one that needs the fewest numbers; with it a row is whole if it would keep less than half. This is
    for tables of embeddings, where training moves most rows by the same offset, which has most of the energy, and the few rows
    of tokens in use each in a direction of its own.
    """
    left, values, right = torch.linalg.svd(matrix.float(), full_matrices=False)
    energy = (left * values).double().square().cumsum(1)
    share = energy / energy[:, -1:].clamp_min(torch.finfo(torch.float64).tiny)  # [M, ranks]
    whole = (share < (keep if rank is None else 0.5) - 1e-10) & matrix.any(1, keepdim=True)
    if rank is None:
        numbers = torch.arange(1, len(values) + 1) * sum(matrix.shape) + whole.sum(0) * matrix.shape[1]
        rank = int(numbers.argmin()) + 1
    rank = min(rank, len(values))
    return _low_rank(matrix, left, values, right, rank, whole[:, rank - 1])


def _low_rank(
    matrix: torch.Tensor, left: torch.Tensor, values: torch.Tensor, right: torch.Tensor, rank: int, whole: torch.Tensor
) -> LowRank:
    root = values[:rank].sqrt()
    factors = (left[:, :rank] * root).contiguous(), (root[:, None] * right[:rank]).contiguous()
    return LowRank(*factors, whole.nonzero()[:, 0].to(torch.int32), matrix[whole].float())
