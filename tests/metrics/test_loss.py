"""frechet_loss: its gradient, its queue, its use."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pygen.metrics import FeatureQueue, FrechetReference, frechet_distance_from_features, frechet_loss
from tests.harness.calls import random
from tests.metrics.test_frechet import features


def nuclear_form(x: Tensor, y: Tensor) -> Tensor:
    """|dm|^2 + tr + tr - 2 |X Y'|_*, by singular values: what finite differences are taken of."""
    one, two = ((t - t.mean(0)) / (len(t) - 1) ** 0.5 for t in (x, y))
    rest = (x.mean(0) - y.mean(0)).square().sum() + one.square().sum() + two.square().sum()
    return rest - 2 * torch.linalg.svdvals(one @ two.mT).sum()


@pytest.mark.parametrize(("n", "m"), [(4, 40), (9, 40), (10, 40), (11, 40), (30, 40), (30, 5), (4, 5)])
def test_gradient_against_finite_differences(n: int, m: int) -> None:
    """N above and below d = 10, against references of full rank and below."""
    x, y = features("x", n, 10), features("y", m, 10)
    reference = FrechetReference.from_features(y)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(frechet_loss(x, reference), x)
    expected, step = torch.zeros_like(grad), 1e-5
    for i in range(n):
        for j in range(10):
            moved = torch.zeros_like(grad)
            moved[i, j] = step
            expected[i, j] = (nuclear_form(x.detach() + moved, y) - nuclear_form(x.detach() - moved, y)) / (2 * step)
    if min(n, m) > 10 or n < 10:  # else the nuclear norm has a kink: one subgradient of many
        assert (grad - expected).abs().max() < 1e-7 * max(1, float(expected.abs().max()))
    assert (grad.sum(0) - 2 * (x.mean(0) - y.mean(0))).abs().max() < 1e-10  # a shift moves the mean alone


@pytest.mark.parametrize("n", [6, 40])
def test_features_of_both_sides(n: int) -> None:
    x, y = features("x", n, 10).requires_grad_(), features("y", 7, 10).requires_grad_()
    grads = torch.autograd.grad(frechet_distance_from_features(x, y), (x, y))
    expected = torch.autograd.grad(nuclear_form(x, y), (x, y))
    for ours, true in zip(grads, expected, strict=True):
        assert torch.allclose(ours, true, atol=1e-9)


def test_float32() -> None:
    x, y = features("x", 32, 64), features("y", 500, 64)
    reference = FrechetReference.from_features(y)
    leaves = [x.clone().requires_grad_(), x.float().requires_grad_(), x.bfloat16().float().requires_grad_()]
    losses = [frechet_loss(leaf, reference) for leaf in leaves]
    grads = [torch.autograd.grad(loss, leaf)[0] for loss, leaf in zip(losses, leaves, strict=True)]
    assert losses[1].dtype == torch.float32
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-5)
    assert (grads[1] - grads[0]).abs().max() < 1e-3 * grads[0].abs().max()
    assert frechet_loss(x.bfloat16(), reference).dtype == torch.float32


def test_float32_with_large_means() -> None:
    a, b = (c * random(name, 2000, 20) + 1e4 for c, name in ((1.0, "a"), (1.1, "b")))
    a, b = a.float(), b.float()
    expected = frechet_distance_from_features(a.double(), b.double()).item()
    assert frechet_loss(a, FrechetReference.from_features(b)).item() == pytest.approx(expected, abs=1e-6 * 40)
    assert frechet_distance_from_features(a, b).item() == pytest.approx(expected, abs=1e-6 * 40)


def test_autocast_changes_nothing() -> None:
    x, reference = features("x", 16, 32).float(), FrechetReference.from_features(features("y", 100, 32))
    expected = frechet_loss(x, reference)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(frechet_loss(x, reference), expected)
        assert torch.equal(frechet_distance_from_features(x, reference), expected)


def test_twice_raises() -> None:
    x, reference = features("x", 5, 10).requires_grad_(), FrechetReference.from_features(features("y", 40, 10))
    (grad,) = torch.autograd.grad(frechet_loss(x, reference), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(("n", "queue"), [(64, 0), (16, 64)])
def test_descent_reaches_zero(n: int, queue: int) -> None:
    """Features themselves as parameters; with a queue, those of a linear generator, in batches."""
    torch.manual_seed(0)
    y = features("y", 200, 8)
    reference = FrechetReference.from_features(y)
    if not queue:
        x = (features("x", n, 8) + 3).requires_grad_()
        optimizer = torch.optim.LBFGS([x], max_iter=300, tolerance_grad=1e-10, tolerance_change=0)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = frechet_loss(x, reference)
            loss.backward()
            return loss

        first = closure().item()
        optimizer.step(closure)
        assert frechet_loss(x, reference).item() < 1e-6 * first
        return
    generator = torch.nn.Linear(8, 8).double()
    optimizer, held = torch.optim.Adam(generator.parameters(), 1e-2), FeatureQueue(queue)
    losses = []
    for _ in range(400):
        optimizer.zero_grad()
        loss = frechet_loss(generator(torch.randn(n, 8, dtype=torch.float64)), reference, queue=held)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    fresh = generator(torch.randn(5000, 8, dtype=torch.float64)).detach()
    # To what populations of 64 tell of the truth. That it reaches 0 is shown above.
    assert float(frechet_distance_from_features(fresh, reference)) < 0.02 * losses[0]


def test_queue_is_part_of_the_population() -> None:
    """The value of all features together, and the gradient of the batch's rows alone."""
    reference = FrechetReference.from_features(features("y", 100, 6))
    queue, steps = FeatureQueue(10), [features(f"step {i}", 4, 6) for i in range(6)]
    for i, x in enumerate(steps):
        x = x.clone().requires_grad_()
        loss = frechet_loss(x, reference, queue=queue)
        held = torch.cat([x[:0], *steps[:i]])[-6:]
        population = torch.cat([x, held]).detach().requires_grad_()
        expected = frechet_loss(population, reference)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
        (grad,) = torch.autograd.grad(loss, x)
        assert torch.allclose(grad, torch.autograd.grad(expected, population)[0][:4])
        assert len(queue) == min(10, 4 * (i + 1))


def test_queue_keeps_the_latest() -> None:
    queue = FeatureQueue(5)
    assert len(queue.latest(3)) == 0
    for i in range(7):
        queue.push(torch.full((2, 1), float(i)))
        assert sorted(queue.latest(2).flatten().tolist()) == [i, i]
    assert sorted(queue.latest(9).flatten().tolist()) == [4, 5, 5, 6, 6]
    queue.push(torch.arange(12.0)[:, None])
    assert sorted(queue.latest(5).flatten().tolist()) == [7, 8, 9, 10, 11]
    with pytest.raises(ValueError, match=r"\[N, 1\]"):
        queue.push(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="size >= 1"):
        FeatureQueue(0)
    with pytest.raises(TypeError, match="integer"):
        FeatureQueue(2.5)
    for call in (lambda: queue.push([[1.0]]), lambda: frechet_loss(torch.zeros(4, 2), torch.zeros(4, 2))):
        with pytest.raises(TypeError, match="expected"):
            call()
