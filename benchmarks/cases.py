"""What is timed: cases, the problem each of them poses, and the list of ops that have them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

# files of this package that hold `CASES`
OPS = (
    "coupling",
    "random",
    "frechet",
    "masked_conv",
    "gates",
    "heads",
    "logistic_mixture",
    "pixelcnn",
    "causal_sampler",
    "diffusion_step",
    "sampling",
    "sample_stats",
    "diffusion_loss",
    "rational_quadratic_spline",
    "spline_flow",
    "made_inverse",
)

MODES = ("fwd", "bwd", "full", "call")

Tensors = tuple[Tensor, ...]
Function = Callable[..., Tensors]  # the inputs' tensors to a tuple of outputs


@dataclass(frozen=True)
class Work:
    """What an op cannot avoid: bytes to move and, where arithmetic counts, operations and who could do them fastest.

    unit: the ceiling that `flops` are held against: "fma" (a register-resident loop) or "matmul" (the library's).
    """

    bytes: int
    flops: int = 0
    unit: str = "fma"

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops, self.unit)


@dataclass(frozen=True)
class Inputs:
    """Tensors handed to an implementation, and the name of their layout."""

    tensors: Tensors
    layout: str = "contiguous"


@dataclass(frozen=True)
class Problem:
    """One case made concrete on a device.

    inputs: what every implementation gets, unless `likes` holds the same values in the layout that it likes best.
    ours, eager, peers: functions of the inputs' tensors. The eager ones, by name, are equally natural ways to write the
        same: the fastest is timed and, separately, the fastest one compiled. Peers are factories: importing may fail.
    reference: the truth, called with float64 copies of the inputs.
    work: by mode; "full" is their sum.
    tolerance: an absolute error that ours may have anyway, where outputs are differences of larger numbers; of an op
        that draws, the fraction of samples that may be others than the reference's, whose sums round differently.
    repeats: peers that take minutes, by how often they have to be called for what the op does at once: one call is
        timed, and its time multiplied. Their factories see to it that they compute the same.
    proof: what an op that draws is judged with instead of the inputs, where one draw that rounding decides changes all
        that follow. Baselines, which then cannot be judged, see to it that they draw from the same distribution.
    rounds: of an op that draws: its results are the reference's to a unit in the last place, not bit by bit.
    slack: times the usual bounds of every arm, for nets, whose layers amplify each other's rounding.
    """

    inputs: Inputs
    ours: Function
    eager: dict[str, Function]
    reference: Function
    work: dict[str, Work]
    peers: dict[str, Callable[[], Function]] = field(default_factory=dict)
    likes: dict[str, Inputs] = field(default_factory=dict)
    tolerance: float = 0.0
    rounds: bool = False
    slack: float = 1.0
    proof: Inputs | None = None
    repeats: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One line of the tables: an op at one size, dtype and set of options.

    modes: "fwd" without gradient, "bwd" the backward pass alone, "full" both, "call" one forward call beside an empty
        op (with gradient recording if `call_grad`).
    quick: belongs to `--quick`.
    grad: inputs record gradients.
    compiles: whether there is a compiled arm; not where eager keeps a state that its graph would be broken for.
    draws: it draws random numbers, so that no two arms give the same; without gradients.
    threads: how many torch uses, where not the run's.
    tier: the CPU tier that pygen uses, where not the best.
    """

    op: str
    name: str
    build: Callable[[torch.device], Problem]
    dtype: torch.dtype = torch.float32
    modes: tuple[str, ...] = ("fwd", "bwd", "full")
    call_grad: bool = False
    quick: bool = False
    grad: bool = True
    compiles: bool = True
    draws: bool = False
    threads: int | None = None
    tier: str | None = None

    @property
    def records(self) -> bool:
        return self.grad and not self.draws

    @property
    def key(self) -> str:
        return f"{self.op}/{self.name}"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def load(op: str) -> tuple[Case, ...]:
    """The cases of one op."""
    if op not in OPS:
        raise ValueError(f"expected an op in {OPS}, got {op!r}")
    cases: tuple[Case, ...] = importlib.import_module(f"{__package__}.{op}").CASES
    return cases


def find(op: str, name: str) -> Case:
    return next(case for case in load(op) if case.name == name)
