"""FLOPs of a training step's matrix products, including the CPU attention kernels that torch's counter leaves out."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

_ON_CPU = {  # functions of tensor shapes
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)  # type: ignore[no-untyped-call]
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g, q, k, v)  # type: ignore[no-untyped-call]
    ),
}


def flop_counter() -> FlopCounterMode:
    """A context that counts the FLOPs inside it; a multiply-add counts as two."""
    return FlopCounterMode(display=False, custom_mapping=_ON_CPU)
