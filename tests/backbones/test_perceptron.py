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


def direct(perceptron, x):
    return perceptron(x)


def checkpointed(perceptron, x):
    return checkpoint(perceptron, x, use_reentrant=False)


def gradients(perceptron, x, run):
    x = x.clone().requires_grad_()
    output = run(perceptron, x)
    trained = [p for p in perceptron.parameters() if p.requires_grad]
    return [output, *torch.autograd.grad(output.float().square().sum(), [x, *trained])]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("run", [direct, checkpointed])
def test_outputs_and_gradients_are_the_same_bits(pair, run, bf16):
    theirs, ours = pair
    x = torch.randn(2, 600, 16)  # more rows than layers round their weights once for
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for mine, wanted in zip(gradients(ours, x, run), gradients(theirs, x, run), strict=True):
            assert torch.equal(mine, wanted)
        with torch.no_grad():
            assert torch.equal(ours(x), theirs(x))


def storages(perceptron, module, run, *, bf16=False):
    """The output after `run`, and what `module`, one of the perceptron's, made on the way."""
    made = []
    module.register_forward_hook(lambda _, inputs, output: made.append(StorageWeakRef(output.untyped_storage())))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = run(perceptron, torch.randn(2, 600, 16, requires_grad=True))
    return output, made[0]


@pytest.mark.parametrize("bf16", [False, True])
def test_the_activation_is_freed_after_the_forward_pass(pair, bf16):
    (_theirs, kept), (_ours, freed) = (storages(p, p.activation_fn, direct, bf16=bf16) for p in pair)
    frozen = not any(p.requires_grad for p in pair[0].parameters())  # nothing needs it then
    assert kept.expired() == frozen and freed.expired()


def test_under_checkpointing_nothing_is_kept(pair):
    for perceptron in pair:
        _output, before = storages(perceptron, perceptron.fc1, checkpointed)
        assert before.expired()


def test_what_needs_no_gradient_keeps_no_more_than_transformers(pair):
    for perceptron in pair:
        perceptron.fc1.requires_grad_(False)
        _output, before = storages(perceptron, perceptron.fc1, lambda m, x: m(x.detach()))
        assert before.expired()


def test_a_weight_changed_before_the_backward_pass_is_an_error():
    for kind in (BlipMLP, FrugalBlipMLP):
        perceptron = kind(BlipVisionConfig(hidden_size=16, intermediate_size=64))
        loss = perceptron(torch.randn(2, 16, requires_grad=True)).sum()
        with torch.no_grad():
            perceptron.fc2.weight.mul_(2)
        with pytest.raises(RuntimeError, match=r"in-?place|in place"):
            loss.backward()


def test_a_graph_that_is_dropped_is_freed():
    perceptron = FrugalBlipMLP(BlipVisionConfig(hidden_size=16, intermediate_size=64))
    perceptron.fc2 = torch.nn.Sequential(perceptron.fc2, torch.nn.Tanh())  # which keeps what it makes itself
    output, before = storages(perceptron, perceptron.fc1, direct)
    assert not before.expired()
    del output
    assert before.expired()


def test_blip_loads_with_them_in_its_vision_tower(blip_folder):
    model = BlipBackbone.load(str(blip_folder)).model
    layers = model.vision_model.encoder.layers
    assert all(type(layer.mlp) is FrugalBlipMLP for layer in layers)
