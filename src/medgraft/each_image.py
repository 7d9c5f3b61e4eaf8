"""The images of examples that may have several, one at a time."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

from medgraft.sequences import Chosen
from medgraft.types import Example


@dataclass(frozen=True)
class EachImage(Chosen[Example]):
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
