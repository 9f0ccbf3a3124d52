"""The correctness gate: an arm that does not compute the op gets no figure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import backends
from .cases import Case, Function, Inputs, Problem, Tensors


@dataclass(frozen=True)
class Bound:
    """A function with the tensors it is called with. leaves: the same tensors, recording gradients."""

    function: Function
    inputs: Tensors
    leaves: Tensors
    upstream: Tensors

    def forward(self) -> Tensors:
        return self.function(*self.leaves)

    def backward(self, *outputs: Tensor) -> Tensors:
        return torch.autograd.grad(outputs, self.leaves, self.upstream)

    def full(self) -> Tensors:
        return self.backward(*self.forward())


def bind(function: Function, inputs: Inputs, records: bool = True) -> Bound:
    """Leaves and upstream gradients for a function; the gradients have the same values for every function. records:
    whether it has any."""
    if not records:
        return Bound(function, inputs.tensors, inputs.tensors, ())
    leaves = tuple(t.detach().requires_grad_() for t in inputs.tensors)
    generator = torch.Generator(leaves[0].device).manual_seed(1)
    upstream = []
    for output in function(*leaves):
        noise = torch.randn(output.shape, generator=generator, device=output.device)
        noise = noise.bfloat16()  # values that any output dtype holds exactly
        upstream.append(torch.empty_like(output, requires_grad=False).copy_(noise))
    return Bound(function, tuple(t.detach() for t in inputs.tensors), leaves, tuple(upstream))


def results(bound: Bound) -> dict[str, Tensor]:
    """Outputs without gradient recording, and gradients."""
    with torch.no_grad():
        outputs = bound.function(*bound.inputs)
    named = {f"output {i}": t for i, t in enumerate(outputs)}
    return named | {f"gradient {i}": t for i, t in enumerate(bound.full() if bound.upstream else ())}


class Gate:
    """Judges arms against the float64 reference.

    Ours: the largest error of every output and gradient is at most twice eager's plus one unit in the last place of the
    largest value; eight units in float64, where the reference's own rounding is half of the difference and eager's
    error may be nought (the reference against eager was up to 2 units over the cases of affine coupling).
    Baselines: half the digits, which tells the same function from another one; how they round is their own affair.
    """

    def __init__(self, case: Case, problem: Problem) -> None:
        inputs = problem.inputs
        double = Inputs(tuple(t.double() for t in inputs.tensors), inputs.layout)
        self.truth = results(bind(problem.reference, double, case.records))
        self.tolerance, self.slack = problem.tolerance, problem.slack
        self.eps = torch.finfo(case.dtype).eps
        self.float64 = case.dtype == torch.float64
        self.eager = [self.errors(bind(f, inputs, case.records)) for f in problem.eager.values()]

    def errors(self, bound: Bound) -> dict[str, float]:
        """Largest absolute error by name; inf where something is missing, of another shape, or NaN."""
        found = results(bound)
        return {name: _error(found.get(name), truth) for name, truth in self.truth.items()}

    def ours(self, bound: Bound) -> str | None:
        """None when ours is right, else what is wrong."""
        ulps = 8 if self.float64 else 1
        bounds = {
            name: self.slack * (2 * min((e[name] for e in self.eager), default=0.0) + ulps * self.eps * _size(truth))
            + self.tolerance
            for name, truth in self.truth.items()
        }
        return self._judge(self.errors(bound), bounds)

    def baseline(self, bound: Bound) -> str | None:
        """None when an arm computes the same function, else what differs."""
        bounds = {name: self.slack * math.sqrt(self.eps) * _size(truth) for name, truth in self.truth.items()}
        return self._judge(self.errors(bound), bounds)

    def _judge(self, errors: dict[str, float], bounds: dict[str, float]) -> str | None:
        wrong = [f"{n}: error {e:.1e}, at most {bounds[n]:.1e}" for n, e in errors.items() if not e <= bounds[n]]
        return "; ".join(wrong) or None


class DrawGate:
    """Judges arms that draw random numbers.

    Ours: the reference's bits, for the same state of torch's generator, or its numbers to a unit in the last place of
    the largest (`slack` of them) if it `rounds`; where rounding decides some draws, in all samples but a fraction
    `tolerance`.
    Baselines: shape, dtype, and mean and standard deviation to a tenth of the latter, and to what chance makes of few
    draws: the same distribution, not another one.
    """

    def __init__(self, problem: Problem) -> None:
        self.proof = problem.proof
        with backends.use("reference"):
            self.truth = self.outputs(problem.ours, (problem.proof or problem.inputs).tensors)
        self.tolerance, self.ulps = problem.tolerance, problem.slack if problem.rounds else 0.0

    @staticmethod
    def outputs(function: Function, inputs: Tensors) -> Tensors:
        torch.manual_seed(0)
        with torch.no_grad():
            return function(*inputs)

    def ours(self, bound: Bound) -> str | None:
        """None when ours is right, else what is wrong."""
        inputs = self.proof.tensors if self.proof else bound.inputs
        pairs = zip(self.outputs(bound.function, inputs), self.truth, strict=True)
        for a, b in pairs:
            ulp = self.ulps * torch.finfo(b.dtype).eps * _size(b.double()) if self.ulps else 0.0
            same_shape = a.shape == b.shape and a.numel()
            others = ((a != b) & ~((a - b).abs() <= ulp)).flatten(1).any(1).double().mean() if same_shape else 0.0
            if a.shape != b.shape or not others <= self.tolerance:
                return "not the numbers of the reference"
        return None

    def baseline(self, bound: Bound) -> str | None:
        """None when an arm draws from the same distribution, else what differs."""
        for found, truth in zip(self.outputs(bound.function, bound.inputs), self.truth, strict=True):
            if (found.shape, found.dtype) != (truth.shape, truth.dtype):
                return f"{tuple(found.shape)} {found.dtype}, expected {tuple(truth.shape)} {truth.dtype}"
            a, b = found.double(), truth.double()
            chance = 4 * (2 / a.numel()) ** 0.5  # four standard errors of a difference
            if max((a.mean() - b.mean()).abs(), (a.std() - b.std()).abs()) > (0.1 + chance) * b.std():
                return f"mean {a.mean():.3g} +- {a.std():.3g}, expected {b.mean():.3g} +- {b.std():.3g}"
        return None


def gate_of(case: Case, problem: Problem) -> Gate | DrawGate:
    return DrawGate(problem) if case.draws else Gate(case, problem)


def _size(truth: Tensor) -> float:
    return float(truth.abs().max()) if truth.numel() else 0.0


def _error(found: Tensor | None, truth: Tensor) -> float:
    if found is None or found.shape != truth.shape:
        return math.inf
    error = _size(found.double() - truth)
    return math.inf if math.isnan(error) else error
