"""Matrices as products of two smaller ones, by singular value decomposition (Eckart and Young 1936)."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LowRank:
    """`left` [M, R] times `right` [R, N]; a matrix's singular values are shared equally between both."""

    left: torch.Tensor
    right: torch.Tensor

    @property
    def bytes(self) -> int:
        """The size of both."""
        return self.left.nbytes + self.right.nbytes

    @property
    def rank(self) -> int:
        """R."""
        return int(self.left.shape[1])


def low_rank(matrix: torch.Tensor, rank: int | None, keep: float) -> LowRank:
    """The closest to `matrix` [M, N] of `rank`; if that is None, of the lowest that keeps the share `keep` of its energy.

    The energy is the sum of the squared values, of the matrix or of its singular values.
    """
    left, values, right = torch.linalg.svd(matrix.float(), full_matrices=False)
    if rank is None:
        keep -= 1e-10  # rounding gives every matrix full rank
        share = values.double().square().cumsum(0) / values.double().square().sum()
        rank = int((share < keep).sum()) + 1
    rank = min(rank, len(values))
    root = values[:rank].sqrt()
    return LowRank((left[:, :rank] * root).contiguous(), (root[:, None] * right[:rank]).contiguous())
