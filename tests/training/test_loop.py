"""The loop: what it sees, what it averages, and that its state is all there is to it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from pygen import ranks
from pygen.data import Dataset, Toy
from pygen.data.arrays import Arrays
from pygen.models import RealNVP, RealNVPFlat
from pygen.training import Options, Trainer
from pygen.training.batches import Batches


def images(n: int = 20) -> Arrays:
    numbers = np.random.RandomState(0)
    x, y = numbers.randint(0, 17, (n, 1, 4, 4)).astype(np.uint8), numbers.randint(0, 3, n)
    return Arrays(x, y, levels=17, classes=("a", "b", "c"))


def trainer(**options: object) -> Trainer[RealNVP]:
    torch.manual_seed(0)
    model = RealNVP((1, 4, 4), 17, num_classes=3, hidden=4, blocks=1, dropout=0.3)
    return Trainer(model, images(), Options(**{"steps": 8, "batch_size": 6, **options}))


# --- the order of the data -------------------------------------------------------------------------------------------


class Numbers(Dataset):
    """Sample i is i."""

    def __init__(self, n: int) -> None:
        super().__init__(n, (1,), None, ("only",))

    def _read(self, indices: Tensor) -> tuple[Tensor, ...]:
        return indices[:, None], torch.zeros_like(indices)


@pytest.mark.parametrize(("n", "size"), [(10, 4), (10, 5), (3, 7), (1, 2), (6, 6)])
def test_every_epoch_sees_every_sample_once_in_an_order_of_its_own(n: int, size: int) -> None:
    batches = Batches(Numbers(n), Options(batch_size=size), labels=True)
    epochs = torch.cat([batches[step][0][:, 0] for step in range(n * 6)])[: 6 * n].reshape(-1, n)
    assert (epochs.sort(1).values == torch.arange(n)).all()
    if n >= 6:
        assert len({tuple(epoch.tolist()) for epoch in epochs}) == 6
    again = Batches(Numbers(n), Options(batch_size=size), labels=False)[5]
    assert len(again) == 1  # no labels for a model without
    assert torch.equal(again[0], batches[5][0])
    other = Batches(Numbers(n), Options(batch_size=size, seed=1), labels=True)
    assert n == 1 or any(not torch.equal(other[step][0], batches[step][0]) for step in range(9))


def test_processes_divide_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = Batches(Numbers(10), Options(batch_size=6), labels=True)
    whole = [batches[step][0] for step in range(7)]
    monkeypatch.setattr(ranks, "world", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        parts.append([batches[step][0] for step in range(7)])
    assert all(torch.equal(torch.cat(part), all_) for part, all_ in zip(zip(*parts, strict=True), whole, strict=True))
    with pytest.raises(ValueError, match="expected a batch size divisible by the 3 processes, got 8"):
        trainer(batch_size=8)


def test_no_data() -> None:
    with pytest.raises(ValueError, match="expected data of at least one sample, got none"):
        Batches(Numbers(0), Options(), labels=True)


# --- the loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_state_is_all_that_a_run_is(precision: str) -> None:
    """Continued by another trainer it ends with the same bits, whatever else draws from torch's global stream."""
    whole, losses = trainer(precision=precision), []
    for step in range(8):
        if step == 3:
            tensors, values = copy.deepcopy(whole.state())
        losses.append(whole.advance())
    torch.manual_seed(77)
    resumed = trainer(precision=precision)
    for parameter in resumed.model.parameters():
        torch.nn.init.normal_(parameter)
    resumed.restore(tensors, values)
    assert resumed.step == 3
    for loss in losses[3:]:
        torch.rand(5)
        assert torch.equal(resumed.advance(), loss)
    for (name, ours), theirs in zip(resumed.state()[0].items(), whole.state()[0].values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert resumed.state()[1] == whole.state()[1]
    assert any(name.startswith("exp_avg_sq.") for name in tensors)


def test_precisions_differ_in_what_nets_compute_in() -> None:
    losses = {precision: trainer(precision=precision).advance() for precision in ("float32", "bfloat16", "float16")}
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    exact = losses["float32"]
    for loss in losses.values():
        torch.testing.assert_close(loss, exact, rtol=0, atol=0.01)  # of 3.6 nats; the nets start at zero
    for precision in ("bfloat16", "float16"):
        ran = trainer(precision=precision)
        for _ in range(8):
            ran.advance()
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in ran.averaged.parameters())


def test_the_average_is_the_average_of_the_weights() -> None:
    ran = trainer(ema=0.5)
    expected = [p.detach().clone() for p in ran.model.parameters()]
    for step in range(8):
        ran.advance()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = [decay * mean + (1 - decay) * p for mean, p in zip(expected, ran.model.parameters(), strict=True)]
    assert not ran.averaged.training
    for found, mean in zip(ran.averaged.parameters(), expected, strict=True):
        torch.testing.assert_close(found, mean)


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = RealNVPFlat(2)
    ran = Trainer(model, Toy("moons"), Options(steps=60, batch_size=256, lr=8e-3))
    losses = [ran.advance().item() for _ in range(60)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    x = Toy("moons", split="test").batch(range(1000))[0]
    assert -ran.averaged.log_prob(x).mean() / 2 < 0.9 * losses[0]


def test_a_gradient_that_is_not_finite_shows_in_the_loss() -> None:
    ran = trainer()
    next(ran.model.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    assert ran.advance().isnan()
    scaled = trainer(precision="float16")  # whose steps skip such gradients
    before = [p.detach().clone() for p in scaled.model.parameters()]
    next(scaled.model.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    assert scaled.advance().isfinite()
    assert all(torch.equal(a, b) for a, b in zip(before, scaled.model.parameters(), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_gpu_trains_and_resumes(precision: str) -> None:
    def on_gpu() -> Trainer[RealNVP]:
        torch.manual_seed(0)
        model = RealNVP((1, 4, 4), 17, num_classes=3, hidden=4, blocks=1, dropout=0.3)
        return Trainer(model, images(), Options(steps=8, batch_size=6, precision=precision), device="cuda")

    whole, resumed = on_gpu(), on_gpu()
    for step in range(8):
        if step == 3:
            resumed.restore(*copy.deepcopy(whole.state()))
        whole.advance()
    while resumed.step < 8:
        resumed.advance()
    for ours, theirs in zip(resumed.averaged.parameters(), whole.averaged.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)  # cuDNN's sums have no fixed order
