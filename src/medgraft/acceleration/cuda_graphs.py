"""Training steps as CUDA graphs (torch.cuda.CUDAGraph): the kernels of forward and backward pass, recorded once and replayed.

A step of BLIP's decoder is some 2,000 small kernels. Starting them one by one takes the host longer than the device takes to
run them; a replayed graph starts all of them at once. The steps of one shape of batch share a graph, all graphs share memory,
and gradients lie in buffers that every graph writes whole, so that optimiser and clipping find them as after an eager step.

What a graph cannot do is done eagerly: shapes that are rare, and every step once recording has failed.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import nn

_EAGER_STEPS = 1  # of a shape, before it is recorded: a shape that comes once is not worth it
_MOST_GRAPHS = 8
_TOLERANCE = 0.02  # of loss and gradient norm between the recorded step and the same step done eagerly
_LOG = logging.getLogger("medgraft")

Inputs = Mapping[str, torch.Tensor]
_Shape = tuple[tuple[str, torch.Size, torch.dtype], ...]


@dataclass(frozen=True)
class _RecordedStep:
    """A graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, torch.Tensor]
    loss: torch.Tensor
    gradients: tuple[tuple[nn.Parameter, torch.Tensor], ...]

    def replay(self, inputs: Inputs) -> torch.Tensor:
        """The loss of `inputs`, with gradients in the parameters."""
        for name, tensor in self.inputs.items():
            tensor.copy_(inputs[name])
        self.graph.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return self.loss.clone()


class StepGraphs:
    """Graphs of the steps that compute `loss_of` a batch and its gradients for `parameters`, on the current CUDA device.

    `deterministic` says that a step done twice gives the same: then every recording is checked against an eager step.
    After a failure `problem` says what happened, and every step is to be done eagerly.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], loss_of: Callable[[Inputs], torch.Tensor], *, deterministic: bool):
        self.problem: str | None = None
        self._parameters = list(parameters)
        self._loss_of = loss_of
        self._deterministic = deterministic
        self._recorded: dict[_Shape, _RecordedStep] = {}
        self._seen: Counter[_Shape] = Counter()
        self._buffers: dict[nn.Parameter, torch.Tensor] = {}
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def step(self, inputs: Inputs) -> torch.Tensor | None:
        """The loss of a batch, its gradients in the parameters, which had none; None if it is to be computed eagerly."""
        if self.problem is not None:
            return None
        shape = tuple((name, tensor.shape, tensor.dtype) for name, tensor in sorted(inputs.items()))
        if shape not in self._recorded:
            self._seen[shape] += 1
            if self._seen[shape] <= _EAGER_STEPS or len(self._recorded) >= _MOST_GRAPHS:
                return None
            recorded = self._try_to_record(inputs)
            if recorded is None:
                return None
            self._recorded[shape] = recorded
        return self._recorded[shape].replay(inputs)

    def close(self) -> None:
        """Free the graphs and their memory."""
        for recorded in self._recorded.values():
            recorded.graph.reset()
        self._recorded.clear()
        self._buffers.clear()

    def _try_to_record(self, inputs: Inputs) -> _RecordedStep | None:
        try:
            with _without_garbage_collection():
                return self._record({name: tensor.clone() for name, tensor in inputs.items()})
        except Exception as error:  # of whatever kind: the step can be done eagerly, and would raise there what is its own
            self.problem = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.close()
            _recover(self._pool)
            _LOG.warning("Training steps are not replayed as CUDA graphs: %s", self.problem)
            return None

    def _record(self, inputs: dict[str, torch.Tensor]) -> _RecordedStep:
        expected = self._rehearse(inputs)
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # other threads, such as the one that pins batches, may go on with what is forbidden in a recording
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                loss, gradients = self._compute(inputs)
                written = self._write(gradients)
                del gradients  # their memory is the next graph's as well
        finally:
            torch.cuda.set_stream(before)  # which torch leaves changed if ending the recording fails
        before.wait_stream(self._stream)
        recorded = _RecordedStep(graph, inputs, loss, written)
        if self._deterministic:
            graph.replay()
            self._check(_size(loss, [gradient for _, gradient in written]), expected)
        return recorded

    def _rehearse(self, inputs: Inputs) -> torch.Tensor:
        """Do the step eagerly on the recording's stream, which sets up libraries there; loss and gradient norm [2].

        An operation that makes the host wait, which would spoil a recording, raises here, where that does no harm.
        """
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), _waiting_is_an_error():
            loss, gradients = self._compute(inputs)
            size = _size(loss, [gradient for gradient in gradients if gradient is not None])
        current.wait_stream(self._stream)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is not None and parameter not in self._buffers:
                self._buffers[parameter] = torch.zeros_like(parameter)
        return size

    def _compute(self, inputs: Inputs) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        loss = self._loss_of(inputs)
        return loss.detach(), torch.autograd.grad(loss, self._parameters, allow_unused=True)

    def _write(self, gradients: Sequence[torch.Tensor | None]) -> tuple[tuple[nn.Parameter, torch.Tensor], ...]:
        """Copy `gradients` into their parameters' buffers; which those are."""
        found = [(p, g) for p, g in zip(self._parameters, gradients, strict=True) if g is not None]
        alike = [(self._buffers[p], g) for p, g in found if g.stride() == p.stride() and g.dtype == p.dtype]
        if alike:  # in few kernels
            torch._foreach_copy_([buffer for buffer, _ in alike], [gradient for _, gradient in alike])
        for parameter, gradient in found:
            if gradient.stride() != parameter.stride() or gradient.dtype != parameter.dtype:
                self._buffers[parameter].copy_(gradient)
        return tuple((parameter, self._buffers[parameter]) for parameter, _ in found)

    def _check(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        (loss, norm), (eager_loss, eager_norm) = found.tolist(), expected.tolist()
        if not torch.allclose(found, expected, rtol=_TOLERANCE, atol=1e-6, equal_nan=True):
            raise RuntimeError(
                f"replayed, a step gave loss {loss:g} and gradient norm {norm:g}, eagerly {eager_loss:g} and {eager_norm:g}"
            )


def _size(loss: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(gradients)])
    return torch.stack([loss.float(), torch.linalg.vector_norm(norms)])


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """What is collected in a recording may free memory or events of the device, which is forbidden there."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


def _recover(pool: tuple[int, int]) -> None:
    """Take allocator and generator out of the recording that torch leaves them in if ending it failed."""
    device = torch.cuda.current_device()
    with suppress(Exception):  # raises if the recording was ended as it should be
        torch._C._cuda_endAllocateToPool(device, pool)
    with suppress(Exception):
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())
