"""Where a training step's time goes, by kind of kernel, and how many operations its matrix products have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback, trainer

KINDS = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn_linear", "_mkldnn_linear"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "softmax": ("softmax",),
    "norm": ("layer_norm",),
    "gelu": ("gelu",),
    "casts and copies": ("copy_", "clone", "contiguous", "fill_", "zero_", "cat", "stack"),
    "quantisation": ("quantize", "bitsandbytes"),
    "optimiser": ("_fused_adamw_", "linalg_vector_norm", "dot", "_foreach_mul_"),
}
WARM = 2  # steps until kernels are compiled, moments made and memory is there


@contextmanager
def counted_kernels(found: dict[str, float]) -> Iterator[None]:
    """Profile every transformers.Trainer in the block from its third step on, whose epochs are of one step.

    `found` gets the seconds of each kind of kernel, each kernel's own time, and how many `flops` and `steps` they are.
    """
    profiler = profile(activities=[ProfilerActivity.CPU], with_flops=True)

    class Profiled(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **_):
            if state.global_step == WARM:
                profiler.start()

        def on_train_end(self, args, state, control, **_):
            profiler.stop()
            found["steps"] = state.global_step - WARM

    trainer.DEFAULT_CALLBACKS.append(Profiled)
    try:
        yield
    finally:
        trainer.DEFAULT_CALLBACKS.remove(Profiled)
    seconds: Counter[str] = Counter()
    for event in profiler.key_averages():
        seconds[_kind(event.key)] += event.self_cpu_time_total / 1e6
        seconds["flops"] += event.flops or 0
    found |= dict(seconds)


def _kind(operation: str) -> str:
    name = operation.removeprefix("aten::").removeprefix("autograd::engine::evaluate_function: ")
    for kind, parts in KINDS.items():
        if name in parts or any(part in name for part in parts if len(part) > 6):
            return kind
    return "other"
