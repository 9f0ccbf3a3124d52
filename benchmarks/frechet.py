"""The Frechet distance: from statistics, as a loss, and the sums that statistics come from.

Baselines of "stats": the symmetric form in plain PyTorch (eager), and what pytorch-fid (scipy's sqrtm) and
torchmetrics (eigenvalues of the product, which is not symmetric) compute. "steep": a spectrum that falls as k^-2.
"loss": a step of training against fixed statistics; the root has no gradient for N < d, so its arm is lent the right
one, at next to no cost. "moments": torchmetrics' update, raw sums in float64; 1,024 features in batches, and then the
sums are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import metrics
from ..metrics import FrechetReference, StreamingMoments
from .cases import Case, Function, Inputs, Problem, Tensors, Work

D = 2048  # of Inception's last features
STREAM = 1024  # of them to a call


def spectrum(d: int, power: float, device: torch.device) -> Tensor:
    return torch.arange(1, d + 1, dtype=torch.float64, device=device) ** (-power / 2)


def population(n: int, d: int, power: float, device: torch.device, moved: float = 0.0) -> Tensor:
    """Features [n, d] whose covariance has eigenvalues like k^-power, in directions that `moved` turns."""
    torch.manual_seed(0)
    mix = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, device=device))[0]
    mix = mix + moved * torch.randn(d, d, dtype=torch.float64, device=device) / d**0.5
    return (torch.randn(n, d, dtype=torch.float64, device=device) * spectrum(d, power, device)) @ mix + 0.3 + moved


def statistics(d: int, power: float, device: torch.device) -> Tensors:
    """mu1, sigma1, mu2, sigma2 of 4 d samples each."""
    sides = (population(4 * d, d, power, device, moved) for moved in (0.0, 0.1))
    return tuple(part for x in sides for part in (x.mean(0), torch.cov(x.mT)))


# --- from statistics --------------------------------------------------------------------------------------------------


def distance(trace: Callable[[Tensor, Tensor], Tensor]) -> Function:
    """The distance, with this trace of the root of a product."""

    def function(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> Tensors:
        rest = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace()
        return (rest - 2 * trace(sigma1, sigma2),)

    return function


def ours(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> Tensors:
    return (metrics.frechet_distance(mu1, sigma1, mu2, sigma2),)


def singular_values(sigma1: Tensor, sigma2: Tensor) -> Tensor:
    one, two = torch.linalg.cholesky(sigma1), torch.linalg.cholesky(sigma2)
    return torch.linalg.svdvals(one.mT @ two).sum()


def symmetric(sigma1: Tensor, sigma2: Tensor) -> Tensor:
    lower = torch.linalg.cholesky(sigma1)
    return torch.linalg.eigvalsh(lower.mT @ sigma2 @ lower).clamp(min=0).sqrt().sum()


def product_eigenvalues(sigma1: Tensor, sigma2: Tensor) -> Tensor:
    return torch.linalg.eigvals(sigma1 @ sigma2).sqrt().real.sum()


def sqrtm() -> Callable[[Tensor, Tensor], Tensor]:
    import scipy.linalg

    def trace(sigma1: Tensor, sigma2: Tensor) -> Tensor:
        root = scipy.linalg.sqrtm((sigma1 @ sigma2).cpu().numpy())
        return torch.as_tensor(root.trace().real, device=sigma1.device)

    return trace


def stats(d: int, power: float = 1.0, slow: bool = False, **options: Any) -> Case:
    """slow: with the peers, which take ten seconds a call."""

    def build(device: torch.device) -> Problem:
        inputs = statistics(d, power, device)
        work = Work(sum(t.nbytes for t in inputs), 3 * d**3)
        peers = {"eigvals": lambda: distance(product_eigenvalues), "sqrtm": lambda: distance(sqrtm())} if slow else {}
        eager = {"Cholesky, eigvalsh": distance(symmetric)}
        # The op promises 1e-6 of the distance. Eigenvalues were off by up to 3e-13 of the trace for spectra up to k^-4.
        tolerance = 1e-9 * sum(float(sigma.trace()) for sigma in inputs[1::2])
        truth = distance(singular_values)
        return Problem(Inputs(inputs), ours, eager, truth, {"fwd": work}, peers, tolerance=tolerance)

    name = f"{'stats' if power == 1 else 'steep'}-{d}"
    return Case("frechet", name, build, torch.float64, modes=("fwd",), grad=False, **options)


# --- as a loss --------------------------------------------------------------------------------------------------------


class _RootLoss(torch.autograd.Function):
    """The distance to a reference by scipy's root, with the gradient of the singular values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mu: Tensor, sigma: Tensor, lower: Tensor) -> Tensor:
        double = x.double()
        centred = (double - double.mean(0)) / (len(x) - 1) ** 0.5
        u, _, vh = torch.linalg.svd(lower.mT @ centred.mT, full_matrices=False)
        grad = centred - (lower @ (u @ vh)).mT
        ctx.save_for_backward(
            (2 * (grad - grad.mean(0)) / (len(x) - 1) ** 0.5 + 2 * (double.mean(0) - mu) / len(x)).to(x)
        )
        own = centred.mT @ centred
        return distance(sqrtm())(double.mean(0), own, mu, sigma)[0].to(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return grad * ctx.saved_tensors[0], None, None, None


def loss(n: int, d: int = D, slow: bool = False, **options: Any) -> Case:
    """slow: with the root, which takes ten seconds a call."""

    def build(device: torch.device) -> Problem:
        reference = FrechetReference(*statistics(d, 1.0, device)[:2])
        mu, sigma, lower = reference.mu, reference.sigma, reference.factor
        casts = {dtype: (mu.to(dtype), lower.to(dtype)) for dtype in (torch.float32, torch.float64)}

        def by(norm: Callable[[Tensor], Tensor]) -> Function:
            def function(x: Tensor) -> Tensors:
                mean, root = casts[x.dtype]
                centred = (x - x.mean(0)) / (n - 1) ** 0.5
                rest = (x.mean(0) - mean).square().sum() + root.square().sum() + centred.square().sum()
                return (rest - 2 * norm(root.mT @ centred.mT),)

            return function

        x = population(n, d, 1.0, device, 0.1).float()
        nuclear = by(lambda b: torch.linalg.svdvals(b).sum())
        flops = 8 * d * d * n
        work = {"fwd": Work(4 * d * d + x.nbytes, flops // 2), "bwd": Work(4 * d * d + 2 * x.nbytes, flops // 2)}
        work["full"] = work["fwd"] + work["bwd"]
        peers = {"sqrtm": lambda: lambda x: (_RootLoss.apply(x, mu, sigma, lower),)} if slow else {}
        return Problem(
            Inputs((x,)),
            lambda x: (metrics.frechet_loss(x, reference),),
            {"svdvals": nuclear},
            nuclear,
            work,
            peers,
        )

    return Case("frechet", f"loss-{n}x{d}", build, modes=("full",), **options)


# --- sums -------------------------------------------------------------------------------------------------------------


def moments(n: int, d: int = D, **options: Any) -> Case:
    """A stream in batches of n. What is compared: the mean and the last row of the covariance, which no number of
    updates with the same features changes."""

    def ours() -> Function:
        state: dict[torch.dtype, StreamingMoments] = {}

        def function(x: Tensor) -> Tensors:
            own = state.setdefault(x.dtype, StreamingMoments(d))
            for batch in x.split(n):
                own.update(batch)
            _, total, scatter = own._sums
            return own.mean(), (scatter[-1] - total[-1] * total / own.count) / own.count

        return function

    def raw() -> Function:
        state: dict[str, Any] = {}

        def function(x: Tensor) -> Tensors:
            if not state:
                zeros = torch.zeros(d, d, dtype=torch.float64, device=x.device)
                state.update(total=zeros[0].clone(), scatter=zeros, count=0)
            for batch in x.split(n):
                batch = batch.double()
                state["total"] += batch.sum(0)
                state["scatter"] += batch.t().mm(batch)
                state["count"] += len(batch)
            mean = state["total"] / state["count"]
            return mean, state["scatter"][-1] / state["count"] - mean[-1] * mean

        return function

    def build(device: torch.device) -> Problem:
        x = population(STREAM, d, 1.0, device).float()
        work = {"fwd": Work(x.nbytes + 8 * d * d, STREAM * d * d)}
        variances = x.double().var(0)
        # Sums of float32 products, to what StreamingMoments promises; 4e-10 was seen where this allows 5e-9.
        tolerance = 1e-6 * (variances.max() * variances[-1]).sqrt().item()
        return Problem(Inputs((x,)), ours(), {"torchmetrics' sums": raw()}, raw(), work, tolerance=tolerance)

    return Case("frechet", f"moments-{n}x{d}", build, modes=("fwd",), grad=False, compiles=False, **options)


CASES = (
    stats(2048, slow=True),
    stats(2048, power=2.0),
    stats(768),
    stats(192, quick=True),
    loss(128, slow=True),
    loss(512),
    loss(64, 512, quick=True),
    *(moments(n, quick=n == 64) for n in (32, 64, 128, 256, 512)),
)
