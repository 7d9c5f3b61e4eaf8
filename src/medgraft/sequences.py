"""Sequences whose items are made from those of another one when they are asked for."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar, overload

if TYPE_CHECKING:
    from medgraft.types import Example

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


@dataclass(frozen=True)
class EachImage(Chosen["Example"]):
    """An example for each image: `numbers` says which one of the example at its place. The second has the id `ID#2`."""

    numbers: Sequence[int]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> EachImage:
        """The images of `examples`, those of a study one after the other."""
        counts = array("I", (1 + len(example.more_images) for example in examples))
        places = array("I", (place for place, count in enumerate(counts) for _ in range(count)))
        return cls(examples, places, array("I", (number for count in counts for number in range(count))))

    def _item(self, number: int) -> Example:
        example, which = self.items[self.places[number]], self.numbers[number]
        if not example.more_images:
            return example
        name = f"{example.id}#{which + 1}" if which else example.id
        return replace(example, id=name, image=example.images[which], more_images=())
