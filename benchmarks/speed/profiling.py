"""Where a training step's time goes, by kind of kernel, and how many operations its matrix products have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch.profiler import ProfilerActivity, profile

KINDS = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn_linear", "_mkldnn_linear"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "softmax": ("softmax",),
    "norm": ("layer_norm",),
    "gelu": ("gelu",),
    "casts and copies": ("copy_", "clone", "contiguous", "fill_", "zero_", "cat", "stack"),
    "quantisation": ("quantize", "bitsandbytes"),
    "optimiser": ("adamw", "adam", "foreach", "norm_"),
}


@contextmanager
def counted_kernels(found: dict[str, float]) -> Iterator[None]:
    """Add to `found` the seconds of each kind of kernel in the block, each kernel's own time, and `flops`."""
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiled:
        yield
    seconds: Counter[str] = Counter()
    for event in profiled.key_averages():
        seconds[_kind(event.key)] += event.self_cpu_time_total / 1e6
        seconds["flops"] += event.flops or 0
    found |= dict(seconds)


def _kind(operation: str) -> str:
    name = operation.removeprefix("aten::").removeprefix("autograd::engine::evaluate_function: ")
    for kind, parts in KINDS.items():
        if name in parts or any(part in name for part in parts if len(part) > 6):
            return kind
    return "other"
