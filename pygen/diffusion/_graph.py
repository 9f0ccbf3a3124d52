"""Replay of evaluations that differ in nothing but their numbers, as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DEVICES = ("cuda",)


class State(NamedTuple):
    """Between two evaluations: the state, the network's next input, and tensors of earlier ones."""

    x: Tensor
    fed: Tensor
    history: tuple[Tensor | None, ...] = ()

    @property
    def tensors(self) -> list[Tensor]:
        return [self.x, self.fed, *(tensor for tensor in self.history if tensor is not None)]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> State:
        """With other tensors; one that is in two places stays one."""
        made = {id(tensor): change(tensor) for tensor in self.tensors}
        history = (None if tensor is None else made[id(tensor)] for tensor in self.history)
        return State(made[id(self.x)], made[id(self.fed)], tuple(history))

    @property
    def form(self) -> Hashable:
        """Which places hold tensors, and which hold the same one."""
        places = [self.x, self.fed, *self.history]
        return tuple(None if tensor is None else [*map(id, places)].index(id(tensor)) for tensor in places)


def captured(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A CUDA graph of what the function launches on a device, which is not run: each call of the result runs it."""
    with torch.cuda.device(device):  # a stream that captures sees its own device's work alone
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
            function()
    return graph.replay


class Replay:
    """One graph for each form of evaluation.

    An evaluation reads its numbers from tables at a counter on the device, so that those of a form do the same work.
    The first of a form runs as it is, whereby kernels and libraries get ready; the second is captured.
    """

    def __init__(self, evaluate: Callable[[int, Tensor, State], State], device: torch.device) -> None:
        """evaluate(index, counter, state): the state after an evaluation, whose numbers are those at the counter."""
        self._evaluate = evaluate
        self._counter = torch.zeros((), dtype=torch.int64, device=device)
        self._graphs: dict[Hashable, _Graph | None] = {}

    def __call__(self, index: int, form: Hashable, state: State) -> State:
        """Evaluation `index`; they come in order. What is returned holds until the next."""
        form = form, state.form
        if form not in self._graphs:
            self._graphs[form] = None
            return self._counted(index, state)
        graph = self._graphs[form]
        if graph is None:
            graph = self._graphs[form] = _Graph(lambda given: self._counted(index, given), state)
        return graph(state)

    def _counted(self, index: int, state: State) -> State:
        after = self._evaluate(index, self._counter, state)
        self._counter.add_(1)
        return after


class _Graph:
    """A function of a state, captured."""

    def __init__(self, function: Callable[[State], State], like: State) -> None:
        self._given = like.mapped(torch.empty_like)

        def run() -> None:
            own = {*map(id, self._given.tensors)}  # the next call overwrites them, while it reads the result
            self._result = function(self._given).mapped(lambda t: t.clone() if id(t) in own else t)

        self._replay = captured(run, like.x.device)

    def __call__(self, state: State) -> State:
        copy(self._given.tensors, state.tensors)
        self._replay()
        return self._result


def copy(to: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """In one launch."""
    torch._foreach_copy_([*to], [*given])
