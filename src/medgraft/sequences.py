"""Some items of a sequence, taken when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, overload

T = TypeVar("T")


@dataclass(frozen=True)
class Chosen(Sequence[T], Generic[T]):
    """Those of `items` at `places`, in that order; an item is taken from `items` each time that it is asked for."""

    items: Sequence[T]
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        if isinstance(index, slice):
            return tuple(self._item(place) for place in range(len(self))[index])
        return self._item(range(len(self))[index])

    def _item(self, number: int) -> T:
        return self.items[self.places[number]]
