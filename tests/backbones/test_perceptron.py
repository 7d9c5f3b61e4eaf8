"""A perceptron that makes its activations again: transformers' outputs and gradients, with less kept on the way."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint
from transformers import BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipMLP

from medgraft.backbones.blip import BlipBackbone
from medgraft.backbones.perceptron import FrugalBlipMLP, compute_activations_again
from medgraft.training.precision import TrainedLinear


@pytest.fixture(params=["plain", "trained in bf16", "lora", "frozen"])
def pair(request):
    """transformers' perceptron and ours, of the same weights."""
    torch.manual_seed(0)
    theirs = BlipMLP(BlipVisionConfig(hidden_size=16, intermediate_size=64))
    if request.param == "lora":
        inject_adapter_in_model(LoraConfig(target_modules=["fc1", "fc2"], init_lora_weights=False), theirs)
    theirs.requires_grad_(request.param != "frozen")
    ours = copy.deepcopy(theirs)
    compute_activations_again(ours)
    assert type(ours) is FrugalBlipMLP
    for perceptron in (theirs, ours) if request.param == "trained in bf16" else ():
        for layer in (perceptron.fc1, perceptron.fc2):
            layer.__class__ = TrainedLinear
    return theirs, ours


def gradients(perceptron, x, run):
    x = x.clone().requires_grad_()
    output = run(perceptron, x)
    trained = [p for p in perceptron.parameters() if p.requires_grad]
    return [output, *torch.autograd.grad(output.float().square().sum(), [x, *trained])]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "run", [lambda m, x: m(x), lambda m, x: checkpoint(m, x, use_reentrant=False)], ids=["direct", "checkpointed"]
)
def test_outputs_and_gradients_are_the_same_bits(pair, run, bf16):
    theirs, ours = pair
    x = torch.randn(2, 600, 16)  # more rows than layers round their weights once for
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for mine, wanted in zip(gradients(ours, x, run), gradients(theirs, x, run), strict=True):
            assert torch.equal(mine, wanted)
        with torch.no_grad():
            assert torch.equal(ours(x), theirs(x))


def test_the_activation_is_freed_after_the_forward_pass(pair):
    made = []

    def note(activation, inputs, output):
        made.append(StorageWeakRef(output.untyped_storage()))

    for perceptron in pair:
        perceptron.activation_fn.register_forward_hook(note)
    outputs = [perceptron(torch.randn(2, 600, 16, requires_grad=True)) for perceptron in pair]
    kept, freed = made
    frozen = not any(p.requires_grad for p in pair[0].parameters())  # nothing needs it then
    assert kept.expired() == frozen and freed.expired()
    assert len(outputs) == 2


def test_blip_loads_with_them_in_its_vision_tower(blip_folder):
    model = BlipBackbone.load(str(blip_folder)).model
    layers = model.vision_model.encoder.layers
    assert all(type(layer.mlp) is FrugalBlipMLP for layer in layers)
