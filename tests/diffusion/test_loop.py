"""The loop: guidance, noise, thresholds, known pixels, learned variances, what it tells and refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.diffusion import Discrete, Edm, Plan, Progressed, Threshold, _graph, loop, plan, sample_loop

STABLE: dict[str, Any] = {"betas": "scaled_linear", "start": 0.00085, "end": 0.012}


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(x) + t.reshape(-1, *[1] * (x.dim() - 1)) / 1000


def made(name: str = "dpmpp-2m", steps: int = 5, **options: Any) -> Plan:
    return plan(name, Discrete.of(**STABLE), steps, **options)


def first(run: Plan, n: int = 4, **where: Any) -> Tensor:
    return run.first_state((n, 3, 4, 4), generator=0, dtype=torch.float64, **where)


@pytest.mark.parametrize("name", ["ddim", "euler", "unipc", "heun"])
def test_guidance_is_the_network_of_both(name: str) -> None:
    run = made(name)

    def twice(x: Tensor, t: Tensor) -> Tensor:
        assert len(x) == len(t) == 8
        torch.testing.assert_close(x[:4], x[4:], rtol=0, atol=0)
        return torch.cat([network(x[:4], t[:4]), torch.cos(x[4:])])

    guided = sample_loop(twice, first(run), run, guidance=3.0)
    alone = sample_loop(lambda x, t: -2 * network(x, t) + 3 * torch.cos(x), first(run), run)
    torch.testing.assert_close(guided, alone, rtol=1e-12, atol=1e-12)
    weighed = sample_loop(twice, first(run), run, guidance=[-2.0, 3.0])
    assert torch.equal(weighed, guided)


@pytest.mark.parametrize("name", ["ddpm", "euler-ancestral", "dpmpp-2m-sde", "dpmpp-sde"])
def test_samples_depend_on_seed_and_number_alone(name: str) -> None:
    run = made(name)
    whole = sample_loop(network, first(run), run, generator=7)
    parts = [sample_loop(network, first(run, 1, first_sample=i), run, generator=7, first_sample=i) for i in range(4)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-14, atol=1e-14)
    ids = torch.tensor([2, 0])
    chosen = sample_loop(network, first(run, 2, sample_ids=ids), run, generator=7, sample_ids=ids)
    torch.testing.assert_close(chosen, whole[[2, 0]], rtol=1e-14, atol=1e-14)
    assert not torch.equal(whole, sample_loop(network, first(run), run, generator=8))


def test_noise_of_a_generator() -> None:
    run = made("ddpm")
    torch.manual_seed(5)
    once = sample_loop(network, first(run), run)
    assert not torch.equal(once, sample_loop(network, first(run), run))
    torch.manual_seed(5)
    assert torch.equal(once, sample_loop(network, first(run), run))


def test_threshold_is_a_quantile() -> None:
    run = made("ddim", steps=1, threshold=True)
    x = 4 * first(run)
    out = sample_loop(lambda x, t: torch.zeros_like(x), x, run, threshold=Threshold(0.9, largest=50.0))
    level = run.levels[0]
    x0 = x / level.alpha
    s = torch.quantile(x0.abs().flatten(1), 0.9, dim=1).clamp(1, 50).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(out, x0.clamp(-s, s) / s, rtol=1e-12, atol=1e-12)
    at_one = sample_loop(network, x, run, threshold=Threshold())
    torch.testing.assert_close(at_one, sample_loop(network, x, made("ddim", steps=1, clip=1.0)), rtol=1e-14, atol=0)


def test_known_pixels_stay() -> None:
    run = plan("repaint", Discrete.of(), 12, jump=4, resample=2)
    assert len(run) > 12
    x = first(run)
    image, mask = torch.full_like(x, 0.5), torch.zeros_like(x)
    mask[..., :2] = 1
    out = sample_loop(network, x, run, generator=1, known=image, known_mask=mask)
    torch.testing.assert_close(out[..., :2], image[..., :2], rtol=1e-12, atol=0)
    assert not torch.equal(out[..., 2:], image[..., 2:])


def test_learned_variances() -> None:
    """-1 is the posterior's variance, 1 is beta."""
    for value, variance in ((-1.0, "fixed_small"), (1.0, "fixed_large")):
        learned = made("ddpm", variance="learned_range")
        fixed = made("ddpm", variance=variance)
        out = sample_loop(
            lambda x, t, v=value: torch.cat([network(x, t), torch.full_like(x, v)], 1),
            first(learned),
            learned,
            generator=1,
        )
        torch.testing.assert_close(out, sample_loop(network, first(fixed), fixed, generator=1), rtol=1e-10, atol=1e-10)


def test_learned_variances_that_are_not_there() -> None:
    learned = made("ddpm", variance="learned_range")
    with pytest.raises(ValueError, match="expected the network to return variances as channels"):
        sample_loop(network, first(learned), learned, generator=1)


def test_what_a_network_returns() -> None:
    run = made("ddim")
    with pytest.raises(TypeError, match="expected the network to return a tensor, got tuple"):
        sample_loop(lambda x, t: (x,), first(run), run)  # type: ignore[arg-type,return-value]


def test_known_pixels_of_another_shape() -> None:
    run = plan("repaint", Discrete.of(), 4, jump=2)
    x = first(run)
    with pytest.raises(ValueError, match=r"expected known of x's shape, or one that expands to it, .*got \(7,\)"):
        sample_loop(network, x, run, known=torch.ones(7), known_mask=x > 0)


def test_thresholds_that_are_none() -> None:
    with pytest.raises(ValueError, match="expected quantile >= 0 and <= 1, got 2"):
        Threshold(2)
    with pytest.raises(ValueError, match=r"expected largest > 0.*, got nan"):
        Threshold(0.9, math.nan)


def test_what_is_told() -> None:
    run, told, counted = made("heun", steps=3), [], []
    x = first(run)
    out = sample_loop(network, x, run, callback=told.append, progress=lambda done, total: counted.append((done, total)))
    assert counted == [(i, 5) for i in range(1, 6)]
    assert [seen.index for seen in told] == list(range(5))
    assert isinstance(told[0], Progressed)
    assert told[0].x is x
    assert told[-1].result is out


def test_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    run = made("ddim", steps=3)
    sample_loop(network, first(run), run, progress=True)
    assert "sampling: 3/3" in capsys.readouterr().err


@pytest.mark.parametrize("schedule", [Discrete.of(**STABLE), Edm()], ids=["vp", "edm"])
def test_inputs_are_scaled(schedule: Discrete | Edm) -> None:
    """What a network is fed has the deviation 1, as in its training, whatever the state's is."""
    run = plan("euler", schedule, 10)
    fed: list[Tensor] = []

    def listening(x: Tensor, t: Tensor) -> Tensor:
        fed.append(x)
        return torch.zeros_like(x)

    x = run.first_state((64, 3, 8, 8), generator=0)
    sample_loop(listening, x, run)
    assert fed[0].std().item() == pytest.approx(1, abs=0.02)
    assert x.std().item() == pytest.approx(run.start, rel=0.02)


def test_steps_compute_no_more_than_is_read() -> None:
    run = made("dpmpp-2m", steps=5)
    assert [step.shape for step in run.steps] == [(0, 2), (1, 2), (1, 2), (1, 1), (0, 1)]
    tables = run.tables()
    assert [len({*map(id, tables)}), tables[1] is tables[2]] == [4, True]
    for index, step in enumerate(run.steps):
        assert tables[index][index].tolist() == step.pack()
    assert run.tables() is tables


def test_a_long_plan_is_one_table() -> None:
    run = made("ddpm", steps=1000)
    tables = run.tables((1.0, 2.0))
    assert len({*map(id, tables)}) == 1
    assert tables[0].shape[0] == 1000


GRAPHS = {
    "ddpm": 1, "dpmpp-2m": 1, "dpmpp-3m-sde": 1, "unipc": 1, "heun": 2, "pndm": 1, "dpmpp-sde": 2, "repaint": 3
}  # fmt: skip


@pytest.mark.parametrize("sampler", GRAPHS)
@pytest.mark.parametrize("guidance", [None, 3.0])
def test_replay(sampler: str, guidance: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a graph would repeat, repeated by calling it: the same bits, and few of them."""
    graphs: list[Callable[[], None]] = []

    def captured(function: Callable[[], None], _: torch.device) -> Callable[[], None]:
        graphs.append(function)
        return function

    monkeypatch.setattr(_graph, "captured", captured)
    monkeypatch.setattr(loop, "DEVICES", ("cpu",))
    run = made(sampler, steps=12)
    x = first(run)
    options: dict[str, Any] = {"guidance": guidance, "generator": 1}
    if run.repaints:
        options |= {"known": torch.ones_like(x), "known_mask": x > 0}
    expected = sample_loop(network, x, run, **options)
    before = x.clone()
    assert torch.equal(sample_loop(network, x, run, graph=True, **options), expected)
    assert torch.equal(x, before)
    assert len(graphs) == GRAPHS[sampler]


def test_replay_is_refused() -> None:
    run = made("ddim")
    with pytest.raises(ValueError, match="expected x on a CUDA device for graph=True, got cpu"):
        sample_loop(network, first(run), run, graph=True)


def test_float32_is_near_float64() -> None:
    run = made("dpmpp-3m", steps=20)
    x = first(run)
    torch.testing.assert_close(
        sample_loop(network, x.float(), run), sample_loop(network, x, run).float(), rtol=1e-4, atol=1e-4
    )


def test_refused() -> None:
    run = made("ddim", threshold=True)
    with pytest.raises(ValueError, match="expected threshold for a plan with threshold=True, got None"):
        sample_loop(network, first(run), run)
    run = made("ddim")
    with pytest.raises(ValueError, match="expected known and known_mask together, got one"):
        sample_loop(network, first(run), run, known=first(run))
    with pytest.raises(ValueError, match="expected 1 to 4 weights of guidance, got 5"):
        sample_loop(network, first(run), run, guidance=[1.0] * 5)
    with pytest.raises(ValueError, match="expected finite weights of guidance, got nan"):
        sample_loop(network, first(run), run, guidance=math.nan)
    with pytest.raises(ValueError, match=r"expected a plan with threshold=True for Threshold\(.*\), got one without"):
        sample_loop(network, first(run), run, threshold=Threshold())
    with pytest.raises(ValueError, match="for no other, got a plan that does not"):
        sample_loop(network, first(run), run, known=first(run), known_mask=first(run) > 0)
    with pytest.raises(ValueError, match="a plan that repaints, and for no other, got neither"):
        sample_loop(network, first(run), made("repaint"))
    for x in (torch.tensor(1.0), torch.ones(2, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"expected x as a floating-point state \[B, ...\], got torch"):
            sample_loop(network, x, run)
    assert math.isclose(run.start, 1.0)
