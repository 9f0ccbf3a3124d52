"""Plans: everything about a sampling run that does not depend on data, made once, as numbers.

A plan is a list of evaluations of the network, and the step that follows each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from .. import random
from .._seed import Source
from .level import Level
from .step import Step, table


@dataclass(frozen=True)
class Evaluation:
    """The network is asked at a time about a state of a level, and the step follows; time None: it is not asked.

    stage: 0 where a sampler's step begins, 1, 2, ... inside it.
    """

    time: float | None
    level: Level
    step: Step
    stage: int = 0


@dataclass(frozen=True, eq=False)
class Plan:
    """A sampling run as data; made by `plan`.

    evaluations: in order.
    start: what standard normal noise is multiplied by to be the first state.
    scale: what the first state is multiplied by to be the network's first input; each step has the next one's.
    """

    evaluations: tuple[Evaluation, ...]
    start: float = 1.0
    scale: float = 1.0

    def __len__(self) -> int:
        return len(self.evaluations)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        return tuple(evaluation.step for evaluation in self.evaluations)

    @property
    def noisy(self) -> bool:
        """Whether a step draws noise."""
        return any(step.noisy for step in self.steps)

    @property
    def needs_threshold(self) -> bool:
        return any(step.threshold for step in self.steps)

    @property
    def repaints(self) -> bool:
        """Whether a step keeps known pixels."""
        return any(step.repaints for step in self.steps)

    def first_state(
        self,
        shape: Sequence[int],
        *,
        generator: Source = None,
        first_sample: int = 0,
        sample_ids: Tensor | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Noise to start from, [B, ...], of step 0 of the stream; see `pygen.random` for the arguments."""
        return self.start * random.normal(
            shape,
            generator=generator,
            first_sample=first_sample,
            sample_ids=sample_ids,
            dtype=dtype,
            device=device,
        )

    @cached_property
    def timesteps(self) -> Tensor:
        """What the network is told, float64 [evaluations]; NaN where it is not asked."""
        return torch.tensor([math.nan if e.time is None else e.time for e in self.evaluations], dtype=torch.float64)

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """Of the states that the network is asked about, or a step without it starts from."""
        return tuple(evaluation.level for evaluation in self.evaluations)

    def tables(self, weights: Sequence[float] = (1.0,)) -> list[Tensor]:
        """For each evaluation the table whose row of its number is its step, for outputs of these weights.

        Steps of one shape have one table.
        """
        return _tables(self, tuple(weights))

    @classmethod
    def of(cls, evaluations: Iterable[Evaluation], *, start: float, scales: Sequence[float] | None = None) -> Plan:
        """A plan whose steps compute no more than later ones need, and scale the input of the next evaluation."""
        found = list(evaluations)
        scales = [1.0] * len(found) if scales is None else scales
        steps = [replace(e.step, scale=scale) for e, scale in zip(found, [*scales[1:], 1.0], strict=True)]
        for number, step in enumerate(steps):
            if any(map(math.isnan, step.pack())):
                raise ValueError(f"expected a prediction that determines step {number}, from {found[number].level}")
        steps = list(reversed([*_live(reversed(steps))]))
        return cls(tuple(replace(e, step=step) for e, step in zip(found, steps, strict=True)), start, scales[0])


def _live(steps: Iterable[Step]) -> Iterator[Step]:
    """Steps from the last to the first, without results and history that no later one reads."""
    needed: set[int] = set()
    for step in steps:
        keep = [name if i in needed else "" for i, name in enumerate(step.keep)]
        while keep and not keep[-1]:
            keep.pop()
        rows = 1 + max((int(name[1:]) for name in keep if name.startswith("y")), default=0)
        step = replace(step, rows=step.rows[:rows], keep=tuple(keep))
        needed = {*step.reads, *(int(name[1:]) for name in keep if name.startswith("h"))}
        yield step


@lru_cache(maxsize=64)
def _tables(plan: Plan, weights: tuple[float, ...]) -> list[Tensor]:
    places: dict[tuple[bool, int, int], list[int]] = {}
    for index, evaluation in enumerate(plan.evaluations):
        places.setdefault((evaluation.time is not None, *evaluation.step.shape), []).append(index)
    tables = [torch.empty(0)] * len(plan)
    for (asks, *_), indices in places.items():
        rows = table([plan.steps[index] for index in indices], weights if asks else ())
        whole = rows.new_zeros(len(plan), rows.shape[1]).index_copy_(0, torch.tensor(indices), rows)
        for index in indices:
            tables[index] = whole
    return tables
