"""Operations of attention on a CPU, which torch's own counter leaves out."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from medgraft.training.flops import flop_counter


@pytest.mark.parametrize(("batch", "heads", "length", "width"), [(2, 3, 65, 16), (1, 1, 7, 8)])
def test_attention_is_counted_by_hand(batch, heads, length, width):
    """Two products forwards and five backwards, of 2 T^2 D operations each."""
    query, key, value = (torch.randn(batch, heads, length, width, requires_grad=True) for _ in range(3))
    with flop_counter() as counter:
        scaled_dot_product_attention(query, key, value).sum().backward()
    assert counter.get_total_flops() == batch * heads * 2 * length**2 * width * (2 + 5)
