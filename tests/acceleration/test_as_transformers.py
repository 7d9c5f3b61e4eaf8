"""A model with kernels looks and answers as transformers' and PEFT's: its print, and attention weights where asked for."""

import pytest
import torch

from medgraft.acceleration import KERNELS, accelerate
from medgraft.models import load_model
from medgraft.strategies import apply_strategy, get_strategy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "strategy"), [("blip", "lora"), ("blip", "qlora"), ("blip", "lora-int8"), ("vit-gpt2", "lora")]
)
def test_it_prints_the_classes_of_the_libraries(name, strategy, dtype, tiny_folder, plugins):
    chosen = get_strategy(strategy, plugins=plugins)
    backbone = load_model(":".join(map(str, tiny_folder(name))), chosen, plugins=plugins)
    model = apply_strategy(backbone.model, backbone.anatomy, chosen).model
    plain = str(model)
    assert "lora.Linear" in plain
    classes = {module: type(module) for module in model.modules()}
    accelerate(backbone, dtype=dtype, kernels=tuple(kernel.name for kernel in KERNELS))
    assert any(type(module) is not kind for module, kind in classes.items())
    assert str(model) == plain


@torch.no_grad()
@pytest.mark.parametrize("bf16", [False, True])
def test_attention_weights_are_those_of_transformers(bf16, tiny_folder, plugins):
    name = ":".join(map(str, tiny_folder("blip")))
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[1, 5, 6, 7]] * 2)
    found = []
    for fast in (False, True):
        backbone = load_model(name, get_strategy("zero-shot", plugins=plugins), plugins=plugins)
        if fast:
            accelerate(backbone, dtype=torch.bfloat16 if bf16 else torch.float32)
        model = backbone.model
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            before = model(pixel_values=pixels, input_ids=ids)
            seen = model.vision_model(pixels, output_attentions=True)
            read = model.text_decoder(
                input_ids=ids, encoder_hidden_states=seen.last_hidden_state, output_attentions=True, return_dict=True
            )
            model.text_decoder.config.output_attentions = True
            by_config = model.text_decoder(input_ids=ids, encoder_hidden_states=seen.last_hidden_state)
            model.text_decoder.config.output_attentions = False
            after = model(pixel_values=pixels, input_ids=ids)
        assert torch.equal(before.logits, after.logits)  # the fused attention is back
        assert len(by_config.attentions) == 2
        found.append([*seen.attentions, *read.attentions, *read.cross_attentions])
    assert len(found[0]) == 6 and all(len(weights) for weights in found[1])
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(plain, fast, rtol=1e-2 if bf16 else 1e-5, atol=1e-2 if bf16 else 1e-6)
