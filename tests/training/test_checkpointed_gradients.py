"""Gradient checkpointing on every family: activations are computed again, and loss and gradients stay what they were."""

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from medgraft.errors import ConfigError, StrategyError
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_model
from medgraft.strategies import get_strategy
from medgraft.testing.samples import images
from medgraft.testing.tiny import tiny_models
from medgraft.training import CaptioningModule

PLUGINS = PluginManager()


def _step(module):
    """Loss, gradients by name, and how many modules inside of layers ran with gradients."""
    runs = []
    layers = [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]
    inside = [child for layer in layers for child in layer.modules() if not list(child.children())]
    handles = [leaf.register_forward_hook(lambda *_: runs.append(1) if torch.is_grad_enabled() else None) for leaf in inside]
    module.zero_grad()
    text = module.backbone.text_batch(("a nodule.", "no acute findings."), prompt="a picture", max_tokens=160)
    torch.manual_seed(3)  # of dropout
    loss = module(text.input_ids, text.attention_mask, text.labels, module.backbone.pixel_values(images(2)))["loss"]
    loss.backward()
    for handle in handles:
        handle.remove()
    return loss.item(), {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}, len(runs)


@pytest.mark.parametrize("name", tiny_models(PLUGINS, of_each=2))
@pytest.mark.parametrize(
    ("preset", "options"),
    [
        ("full", {}), ("encoder-frozen", {}), ("decoder-frozen", {}), ("lora", {"text.layers": "1-"}), ("qlora", {}),
        ("vera", {}), ("oft", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_loss_and_gradients_are_those_without_checkpoints(preset, options, name, tiny_folder):
    kind, folder = tiny_folder(name)
    torch.manual_seed(0)
    try:
        backbone, applied, _ = prepare_model(
            f"{kind}:{folder}", get_strategy(preset, options, plugins=PLUGINS), plugins=PLUGINS
        )
    except (StrategyError, ConfigError):  # a preset that this backbone does not support
        pytest.skip("not supported")
    for parameter in applied.model.parameters():
        if parameter.requires_grad and not parameter.any():  # such as LoRA's B, without which others have no gradient
            torch.nn.init.normal_(parameter, std=0.1)
    module = CaptioningModule(backbone, applied, "a picture").train()
    loss, gradients, runs = _step(module)
    module.activation_checkpointing_enable({"use_reentrant": False})
    found, others, more = _step(module)
    assert more > runs and found == loss and others.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(others[key], gradient, rtol=1e-6, atol=1e-9)
