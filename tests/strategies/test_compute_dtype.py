"""What 4-bit layers compute in: bf16 where the hardware has it, and not by emulating it."""

import pytest
import torch
from transformers.quantizers import quantizer_bnb_4bit, quantizer_bnb_8bit

from medgraft import hardware
from medgraft.adapter import load_base
from medgraft.backbones.blip import BlipBackbone
from medgraft.strategies import get_strategy, quantization_config


def _dtype(plugins, **options):
    strategy = get_strategy("qlora", options, plugins=plugins)
    return quantization_config(strategy, BlipBackbone.anatomy, BlipBackbone.never_quantized).bnb_4bit_compute_dtype


@pytest.mark.parametrize(
    ("kind", "has_bf16", "dtype"),
    [
        ("cpu", True, torch.bfloat16),
        ("cpu", False, torch.float32),
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),
    ],
)
def test_the_machine_decides(kind, has_bf16, dtype, plugins, monkeypatch):
    monkeypatch.setattr(hardware, "device", lambda: torch.device(kind))
    monkeypatch.setattr(hardware, "bf16_supported", lambda where: has_bf16)
    assert _dtype(plugins) == dtype


def test_or_the_user(plugins):
    assert _dtype(plugins, compute_dtype="float16") == torch.float16


@pytest.mark.parametrize("name", ["qlora", "lora-int8"])
def test_a_quantised_base_stays_where_the_run_is(name, plugins, blip_folder, monkeypatch):
    """Left to itself, transformers takes any GPU that it finds."""
    asked = []
    for kind in (quantizer_bnb_4bit.Bnb4BitHfQuantizer, quantizer_bnb_8bit.Bnb8BitHfQuantizer):
        monkeypatch.setattr(kind, "update_device_map", lambda self, device_map: asked.append(device_map) or {"": "cpu"})
    load_base(f"blip:{blip_folder}", get_strategy(name, plugins=plugins), plugins=plugins)
    assert asked == [{"": "cpu"}]
