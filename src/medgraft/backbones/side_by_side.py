"""Several images of a study: their features side by side along the tokens, and backbones that do not take them refuse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch

from medgraft.backbones.base import Backbone
from medgraft.backbones.remote import RemoteCaptioner
from medgraft.errors import BackboneError
from medgraft.plugin import PluginManager


def side_by_side(features: torch.Tensor, counts: Sequence[int]) -> Iterator[tuple[list[int], torch.Tensor]]:
    """For each number of images n: the rows of the studies that have so many, and their features [rows, n S, C].

    `features` [images, S, C] are those of the studies' images, one after the other; `counts` has the number of each study.
    So a decoder needs no mask for studies of fewer images than others.
    """
    ends = list(accumulate(counts))
    for count in dict.fromkeys(counts):
        rows = [row for row, own in enumerate(counts) if own == count]
        images = [image for row in rows for image in range(ends[row] - count, ends[row])]
        chosen = features if len(rows) == len(counts) else features[images]
        yield rows, chosen if count == 1 else chosen.reshape(len(rows), -1, chosen.shape[-1])


def refuse_several_images(captioner: type[Backbone] | type[RemoteCaptioner], plugins: PluginManager | None = None) -> None:
    """BackboneError if the backbone sees one image at a time, with the names of those that see several together."""
    if _takes_several(captioner):
        return
    kinds = {spec.name: spec.resolve() for spec, _ in (plugins or PluginManager.from_environment()).specs("backbone")}
    have = ", ".join(name for name, kind in kinds.items() if _takes_several(kind))
    raise BackboneError(
        f"{captioner.__name__} sees one image at a time, and a study has several together: set data.images=first, or use a "
        f"backbone that takes them: {have}."
    )


def _takes_several(captioner: type[Backbone] | type[RemoteCaptioner]) -> bool:
    return issubclass(captioner, Backbone) and captioner.several_images
