"""The layers of a part, counted in the module tree, and those that a plan selects."""

from __future__ import annotations

import math
import re

from torch import nn

from medgraft.errors import StrategyError
from medgraft.strategies.base import PartPlan, layer_ranges
from medgraft.types import Anatomy, Part


def part_layers(model: nn.Module, anatomy: Anatomy, part: Part) -> tuple[str, ...]:
    """Names of the layers of `part`: the items of its outermost module lists that contain attention, in the tree's order.

    Those of an encoder and a decoder in one part (T5) follow each other; the layers of a Swin are its stages.
    """
    attention = re.compile(anatomy.pattern(part, ("attn",)) or "(?!)")
    heads = [name for name, _ in model.named_modules() if attention.fullmatch(name)]
    lists: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and not inside and any(head.startswith(f"{name}.") for head in heads):
            lists.append(name)
    return tuple(f"{name}.{number}" for name in lists for number, _ in enumerate(model.get_submodule(name).children()))


def selected_layers(model: nn.Module, anatomy: Anatomy, part: Part, plan: PartPlan) -> tuple[str, ...] | None:
    """Names of the layers that `plan` selects, None for the whole part; StrategyError for none, or some that it lacks."""
    if plan.layers is None:
        return None
    layers, ranges = part_layers(model, anatomy, part), layer_ranges(plan.layers)
    numbers = [n for n in range(len(layers)) if any(first <= n <= last for first, last in ranges)]
    lacking = any(end >= len(layers) for several in ranges for end in several if math.isfinite(end))
    if lacking or not numbers:
        problem = "lie outside" if lacking else "are none"
        count = f"{len(layers)} layers, 0 to {len(layers) - 1}" if layers else "no layers to choose from"
        raise StrategyError(f"strategy.{part}.layers={plan.layers} {problem}: part {part!r} of this backbone has {count}.")
    return tuple(layers[n] for n in numbers)
