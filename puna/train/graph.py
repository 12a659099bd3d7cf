"""A micro-batch's gradients, recorded once as a CUDA graph and replayed: for one GPU.

    first micro-batch of a run    warm up ─> record the kernels of loss and backward, without computing
    every micro-batch             copy its tokens in ─> replay ─> losses, gradients

A layer launches over 40 kernels, and a GPU computes those of a small model faster than Python can launch them
one by one (docs/lab-notes.md). A recorded kernel reads and writes the same memory at every replay, so the
gradients of a step's first micro-batch are written, those of further ones added, to tensors that stay.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from puna.config import RunConfig
from puna.model.llama import Llama
from puna.train.ranks import ALONE, Ranks

_log = logging.getLogger(__name__)

Gradients = Callable[[Tensor, Tensor, Tensor | float, Tensor | None, int], Tensor]
"""(inputs_BT, targets_BT, scale, segments_BT, sequence) -> losses (B, T); adds the gradients of
scale · Σ losses to the parameters'."""


def gradients_of(model: Llama, config: RunConfig, ranks: Ranks = ALONE, draws: bool = False) -> Gradients:
    """How a run computes gradients: recorded on one GPU with compiled kernels, else launched one by one.

    Not recorded are several processes, whose collectives do not belong to one graph, modes of `activations`
    other than `manual`, and a model that draws at random, anew for every sequence (`draws`).
    """
    compute = config.compute
    is_recorded = compute.compile and compute.activations == "manual" and ranks.mesh is None and not draws
    return Recorder(model) if is_recorded and model.embedding.is_cuda else launched(model)


def launched(model: Llama) -> Gradients:
    """Gradients by kernels that are launched one by one."""

    def add(
        inputs: Tensor, targets: Tensor, scale: Tensor | float, segments: Tensor | None, sequence: int
    ) -> Tensor:
        total, losses_BT = model.loss(inputs, targets, scale, segments, sequence)
        total.backward()
        return losses_BT

    return add


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    losses_BT: Tensor


class Recorder:
    """`Gradients` by graphs: one for the first micro-batch of a step, one for further ones of each size."""

    def __init__(self, model: Llama) -> None:
        self.add = launched(model)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.pool = torch.cuda.graph_pool_handle()
        self.recordings: dict[tuple[bool, int], _Recording] = {}
        self.gradients: list[Tensor | None] = []
        self.failed = False

    def __call__(
        self, inputs: Tensor, targets: Tensor, scale: Tensor | float, segments: Tensor | None, sequence: int
    ) -> Tensor:
        """Replay; records first where there is nothing to replay yet."""
        is_first = all(parameter.grad is None for parameter in self.parameters)
        given = [inputs, targets, torch.as_tensor(scale, device=inputs.device)]
        given += [] if segments is None else [segments]
        key = is_first, len(inputs)
        if key not in self.recordings and not self.failed:
            try:
                self.recordings[key] = self._record(given, is_first)
            except RuntimeError as error:
                self.failed = True
                first = str(error).partition("\n")[0]
                _log.warning("the step could not be recorded as a CUDA graph (%s); it runs slower", first)
        if self.failed:
            return self.add(inputs, targets, scale, segments, sequence)
        recording = self.recordings[key]
        for place, value in zip(recording.inputs, given, strict=True):
            place.copy_(value)
        recording.graph.replay()
        if is_first:
            self._put(self.gradients)
        return recording.losses_BT.clone()

    def _record(self, given: list[Tensor], is_first: bool) -> _Recording:
        inputs = [value.clone() for value in given]
        before = [parameter.grad for parameter in self.parameters]
        graph = torch.cuda.CUDAGraph()
        try:
            self._warm_up(inputs)
            self._put(before)
            # Other threads may use the device meanwhile: a checkpoint that is being copied.
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                losses_BT = self._run(inputs)
            if is_first:
                self.gradients = [parameter.grad for parameter in self.parameters]
        finally:  # after an error too: then the step continues without a recording
            self._put(before)
        return _Recording(graph, inputs, losses_BT)

    def _warm_up(self, inputs: list[Tensor]) -> None:
        """Compile kernels and let libraries choose theirs, on another stream, as recording demands."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._put([None] * len(self.parameters))
                self._run(inputs)
        torch.cuda.current_stream().wait_stream(stream)

    def _run(self, inputs: list[Tensor]) -> Tensor:
        tokens, targets, scale, *segments = inputs
        return self.add(tokens, targets, scale, segments[0] if segments else None, 0)

    def _put(self, gradients: list[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
