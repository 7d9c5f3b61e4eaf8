"""Training steps as CUDA graphs (torch.cuda.CUDAGraph): forward and backward pass are recorded once per shape and replayed.

A step of BLIP's decoder launches about 2,000 small kernels. Launching them one by one takes the host longer than the device
needs to run them; a replayed graph launches all at once. Batches of the same shape share a graph, and all graphs share memory.
Every graph overwrites the same gradient buffers, so the optimiser and clipping see what an eager step would give.

Rare shapes run eagerly, and so does every step after a recording failed.
"""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from medgraft.acceleration.capture import recover, waiting_is_an_error
from medgraft.acceleration.swap import Undo
from medgraft.backbones import Backbone
from medgraft.errors import first_line

_EAGER_STEPS = 1  # per shape before it is recorded: a shape that occurs once is not worth a graph
_MOST_GRAPHS = 8
_TOLERANCE = 0.02  # relative difference of loss and gradient norm between the replayed and the eager step
_LOG = logging.getLogger("medgraft")

Inputs = Mapping[str, torch.Tensor]
_Shape = tuple[tuple[str, torch.Size, torch.dtype], ...]


@dataclass(frozen=True)
class _RecordedStep:
    """A graph and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, torch.Tensor]
    loss: torch.Tensor
    gradients: tuple[tuple[nn.Parameter, torch.Tensor], ...]

    def replay(self, inputs: Inputs) -> torch.Tensor:
        """Set the parameters' gradients and return the loss of `inputs`."""
        for name, tensor in self.inputs.items():
            tensor.copy_(inputs[name])
        self.graph.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return self.loss.clone()


class StepGraphs:
    """CUDA graphs, on the current device, of steps that compute `loss_of` a batch and its gradients for `parameters`.

    If `deterministic`, a step repeated gives the same result, and every recording is checked against an eager step.
    After a failure `problem` holds the reason, and the caller has to run every step eagerly.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], loss_of: Callable[[Inputs], torch.Tensor], *, deterministic: bool):
        self.problem: str | None = None
        self._parameters = list(parameters)
        self._loss_of = loss_of
        self._deterministic = deterministic
        self._recorded: dict[_Shape, _RecordedStep] = {}
        self._seen: Counter[_Shape] = Counter()
        self._buffers: dict[nn.Parameter, torch.Tensor] = {}
        self._begun: list[torch.cuda.CUDAGraph] = []  # failed graphs too, as torch's allocator may still access them
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None  # torch.cuda.graph_pool_handle, whose type is private

    def step(self, inputs: Inputs) -> torch.Tensor | None:
        """The loss of a batch, with the parameters' gradients, empty before, set; None if the caller has to step eagerly."""
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
        """Wait for the device, then free the graphs and their memory."""
        if self._recorded:
            torch.cuda.synchronize()
        for graph in self._begun:
            with suppress(RuntimeError):  # raised by a graph whose recording failed
                graph.reset()
        self._recorded.clear()
        self._buffers.clear()

    def _try_to_record(self, inputs: Inputs) -> _RecordedStep | None:
        try:
            with _without_garbage_collection():
                return self._record({name: tensor.clone() for name, tensor in inputs.items()})
        except Exception as error:  # any kind: the step then runs eagerly, which raises the step's own errors again
            self.problem = first_line(error)
            if self._pool is not None:
                recover(torch.cuda.current_device(), self._pool)
            self.close()
            _LOG.warning("Training steps are not replayed as CUDA graphs: %s", self.problem)
            return None

    def _record(self, inputs: dict[str, torch.Tensor]) -> _RecordedStep:
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]
        expected = self._warm_up(inputs, self._stream)
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self._begun.append(graph)
        try:
            # thread_local: other threads, such as the one that pins batches, may make calls that a capture forbids
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                loss, gradients = self._compute(inputs)
                written = self._write(gradients)
                del gradients  # so that the next graph can reuse their memory
        finally:
            torch.cuda.set_stream(before)  # torch does not restore it if the capture fails to end
        before.wait_stream(self._stream)
        recorded = _RecordedStep(graph, inputs, loss, written)
        if self._deterministic:
            graph.replay()
            self._check(_size(loss, [gradient for _, gradient in written]), expected)
        return recorded

    def _warm_up(self, inputs: Inputs, stream: torch.cuda.Stream) -> torch.Tensor:
        """Run the step eagerly on the recording stream, which initialises libraries there; returns loss and gradient norm [2].

        An operation that synchronises with the device would break a capture; here it raises without harm.
        """
        current = torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream), waiting_is_an_error():
            loss, gradients = self._compute(inputs)
            size = _size(loss, [gradient for gradient in gradients if gradient is not None])
        current.wait_stream(stream)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is not None and parameter not in self._buffers:
                self._buffers[parameter] = torch.zeros_like(parameter)
        return size

    def _compute(self, inputs: Inputs) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        loss = self._loss_of(inputs)
        return loss.detach(), torch.autograd.grad(loss, self._parameters, allow_unused=True)

    def _write(self, gradients: Sequence[torch.Tensor | None]) -> tuple[tuple[nn.Parameter, torch.Tensor], ...]:
        """Copy `gradients` into their parameters' buffers; returns the parameters that have one, with their buffers."""
        found = [(p, g) for p, g in zip(self._parameters, gradients, strict=True) if g is not None]
        alike = [(self._buffers[p], g) for p, g in found if g.stride() == p.stride() and g.dtype == p.dtype]
        if alike:  # one call copies them all in few kernels
            torch._foreach_copy_([buffer for buffer, _ in alike], [gradient for _, gradient in alike])
        for parameter, gradient in found:
            if gradient.stride() != parameter.stride() or gradient.dtype != parameter.dtype:
                self._buffers[parameter].copy_(gradient)
        return tuple((parameter, self._buffers[parameter]) for parameter, _ in found)

    def _check(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        (loss, norm), (eager_loss, eager_norm) = found.tolist(), expected.tolist()
        if not torch.allclose(found, expected, rtol=_TOLERANCE, atol=1e-6, equal_nan=True):
            raise RuntimeError(
                f"the replayed step has loss {loss:g} and gradient norm {norm:g}, "
                f"the eager step {eager_loss:g} and {eager_norm:g}"
            )


def _size(loss: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(gradients)])
    return torch.stack([loss.float(), torch.linalg.vector_norm(norms)])


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Disable garbage collection, which may free memory or events of the device; a capture forbids that."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def install(backbone: Backbone) -> Undo:
    """Install on any backbone: the training loop uses the backbone's `step_replayer`."""
    if backbone.step_replayer is StepGraphs:
        return lambda: None
    backbone.step_replayer = StepGraphs

    def undo() -> None:
        vars(backbone).pop("step_replayer", None)

    return undo
