"""DDPM: its loss and bound by independent formulas, samples that depend on their numbers alone, guidance, commands."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from pygen import cli, data, models, random
from pygen.diffusion import SAMPLERS, plan, sample_loop
from pygen.models import DDPM, ddpm
from pygen.nn import UNet, denormalize
from pygen.training import Options, Trainer

from .test_layers import perturbed

PREDICTIONS = [
    ("epsilon", "linear"), ("sample", "squaredcos_cap_v2"), ("v_prediction", "linear"), ("flow_prediction", "linear"),
    ("flow_prediction", "flow"), ("sample", "flow"),
]  # fmt: skip


def small(shape: tuple[int, int, int] = (1, 4, 4), levels: int = 5, **options: Any) -> DDPM:
    return DDPM(shape, levels, **{"hidden": 8, "widths": (1, 2), "blocks": 1, "attention": 2, **options})


def moved(model: DDPM, scale: float = 0.05) -> DDPM:
    """In float32, not zero as it is at first."""
    return perturbed(model, scale).float()


# --- the net ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (12, 4)])
@pytest.mark.parametrize("attention", [0, 4, 16])
def test_net(size: tuple[int, int], attention: int) -> None:
    net = UNet(3, size, hidden=8, widths=(1, 2, 3), blocks=2, attention=attention, condition_features=5).double()
    x, t, given = torch.randn(2, 3, *size).double(), torch.tensor([0.0, 999.0]).double(), torch.randn(2, 5).double()
    assert torch.equal(net(x, t, given), torch.zeros_like(x))
    perturbed(net, 0.1)
    assert net(x, t, given).shape == x.shape
    assert torch.allclose(net(x, t, given)[1:], net(x[1:], t[1:], given[1:]), atol=1e-12)
    for other in (net(x, t + 1, given), net(x, t, given + 1)):
        assert (other - net(x, t, given)).abs().max() > 1e-3
    far = x.clone()
    far[..., 0, 0] += 1
    assert (net(far, t, given) - net(x, t, given))[..., -1, -1].abs().max() > 0


def test_net_errors() -> None:
    with pytest.raises(ValueError, match=r"divisible by 2\^\(len\(widths\) - 1\), got 6 x 8 and 3 widths"):
        UNet(1, (6, 8))
    with pytest.raises(ValueError, match=r"expected len\(widths\) >= 1, got 0"):
        UNet(1, (8, 8), widths=())
    with pytest.raises(ValueError, match="expected every width >= 1, got 0"):
        UNet(1, (8, 8), widths=(1, 0))
    with pytest.raises(TypeError, match=r"expected blocks as an integer, got 1\.5"):
        UNet(1, (8, 8), blocks=1.5)  # type: ignore[arg-type]


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prediction", "schedule"), PREDICTIONS)
@pytest.mark.parametrize("weighting", ["constant", "min_snr"])
def test_loss_is_the_weighted_error_of_the_prediction(
    prediction: str, schedule: str, weighting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = moved(small(prediction=prediction, schedule=schedule, weighting=weighting, times=50)).double()
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def noted(x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        seen.append((x, time, UNet.forward(model.net, x, time, condition)))
        return seen[-1][2]

    monkeypatch.setattr(model.net, "forward", noted)
    noise: list[Tensor] = []
    normal = random.normal
    monkeypatch.setattr(random, "normal", lambda *a, **k: noise.append(normal(*a, **k)) or noise[-1])
    x = torch.randint(5, (6, 1, 4, 4))
    loss = model(x)
    ((x_t, time, output),), (z,) = seen, noise
    x0 = x.double() / 2 - 1
    if schedule == "flow":
        sigma = time / 50
        alpha = 1 - sigma
    else:
        abar = model.schedule.alphas_cumprod.double()[time.long()]
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    alpha, sigma = alpha[:, None, None, None], sigma[:, None, None, None]
    torch.testing.assert_close(x_t, alpha * x0 + sigma * z)
    target = {"epsilon": z, "sample": x0, "v_prediction": alpha * z - sigma * x0, "flow_prediction": z - x0}[prediction]
    snr = (alpha / sigma) ** 2
    flow = (sigma / (alpha + sigma)) ** 2
    in_x0 = {"epsilon": 1 / snr, "sample": 1, "v_prediction": 1 / (1 + snr), "flow_prediction": flow}[prediction]
    weight = 1.0 if weighting == "constant" else snr.clamp(max=5) * in_x0
    torch.testing.assert_close(loss, (weight * (output - target) ** 2).mean())
    assert len(time.unique()) == 6  # one in each of six even parts


def test_compiles_as_one_graph() -> None:
    model = moved(small(num_classes=2)).train()
    x, y = torch.randint(5, (4, 1, 4, 4)), torch.tensor([0, 1, 1, 0])
    torch.manual_seed(3)
    expected = model(x, y)
    torch.manual_seed(3)
    assert torch.allclose(torch.compile(model, backend="aot_eager", fullgraph=True)(x, y), expected)


def test_every_parameter_has_a_gradient() -> None:
    """Processes that train together wait for all of them."""
    for options in ({}, {"num_classes": 2}, {"num_classes": 2, "context_features": 3, "condition_dropout": 0.0}):
        model = small(**options).train()
        y = torch.tensor([0, 1]) if "num_classes" in options else None
        context = torch.randn(2, 3) if "context_features" in options else None
        model(torch.randint(5, (2, 1, 4, 4)), y, context=context).backward()
        assert all(p.grad is not None for p in model.parameters())


def test_the_condition_is_hidden_in_training_alone() -> None:
    model = moved(small(num_classes=3, condition_dropout=0.999))
    x, y = torch.randint(5, (4, 1, 4, 4)), torch.tensor([0, 1, 2, 0])

    def loss(labels: Tensor) -> Tensor:
        torch.manual_seed(0)
        return model(x, labels)

    model.train()
    assert torch.equal(loss(y), loss(2 - y))
    model.eval()
    assert not torch.equal(loss(y), loss(2 - y))


class Tiny(data.Dataset):
    """The same few images over and over, so that there is something to learn by heart."""

    def __init__(self) -> None:
        super().__init__(64, (1, 4, 4), 5, classes=("0", "1"))
        self.images = torch.stack([torch.arange(16).view(1, 4, 4) % 5, torch.arange(16).view(1, 4, 4) // 4]).byte()

    def _read(self, indices: Tensor) -> tuple[Tensor, ...]:
        return self.images[indices % 2], indices % 2


def test_learns_a_tiny_set_by_heart() -> None:
    """Worst of 3 seeds: 0.18 of the first loss, 83 % of the pixels."""
    tiny = Tiny()
    model = small(num_classes=2, hidden=16, widths=(1,), attention=0, prediction="v_prediction")
    trainer = Trainer(model, tiny, Options(steps=120, batch_size=16, lr=1e-2, ema=0.9))
    losses = [trainer.advance().item() for _ in range(120)]
    assert sum(losses[-20:]) < 0.3 * sum(losses[:20])
    averaged = trainer.averaged
    # The average of the weights is what a run is for: it is no copy of them.
    assert any(not torch.equal(a, b) for a, b in zip(averaged.parameters(), model.parameters(), strict=True))
    y = torch.tensor([0, 1]).repeat(16)
    assert (averaged.sample(32, y, generator=0) == tiny.images[y]).float().mean() > 0.7
    x, y = tiny.batch(torch.arange(2))
    assert torch.equal(averaged.class_log_prob(x, generator=0).argmax(1), y)


# --- the bound -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prediction", "schedule"), PREDICTIONS)
def test_bound_is_the_textbook_sum(prediction: str, schedule: str) -> None:
    """KLs of Gaussian posteriors, Ho et al. 2020, eq. 5 to 7, at the same times: the bound has them in another form."""
    model = perturbed(small(prediction=prediction, schedule=schedule, times=10), 0.05)
    model.evaluations = 7
    x = torch.randint(5, (3, 1, 4, 4))
    noisy = model._prepare(x, 7)
    numbers = model._numbers(x.device)
    alpha, sigma = numbers.path.unbind(1)
    x0 = x.double() / 2 - 1
    total = 0.5 * (alpha[-1] ** 2 * x0**2 + sigma[-1] ** 2 - 1) - sigma[-1].log()
    for i, z in zip(noisy.t, noisy.z, strict=True):
        assert i.min() >= 1
        chance = (numbers.chances[i] - numbers.chances[i - 1])[:, None, None, None]
        time = numbers.times[i]
        p, q = numbers.data[i].T[..., None, None, None]
        i = i[:, None, None, None]
        x_t = alpha[i] * x0 + sigma[i] * z
        guess = (p * x_t + q * model.net(x_t, time)).clamp(-1, 1)
        ratio = alpha[i] / alpha[i - 1]
        added = sigma[i] ** 2 - ratio**2 * sigma[i - 1] ** 2  # the variance of x_t given x_{t-1}
        mean = [(alpha[i - 1] * added * data + ratio * sigma[i - 1] ** 2 * x_t) / sigma[i] ** 2 for data in (x0, guess)]
        divergence = (mean[0] - mean[1]) ** 2 / (2 * sigma[i - 1] ** 2 * added / sigma[i] ** 2)
        total = total + divergence / (7 * chance)
    near = torch.distributions.Normal((x0 + sigma[0] / alpha[0] * noisy.z[0]), sigma[0] / alpha[0])
    low = torch.where(x == 0, 0.0, near.cdf(x0 - 0.25))
    high = torch.where(x == 4, 1.0, near.cdf(x0 + 0.25))
    total = total - (high - low).log()
    torch.testing.assert_close(model.log_prob(x, generator=7), -total.flatten(1).sum(1))


def test_bound_is_below_a_distribution() -> None:
    """What it says of all images together is no more than 1."""
    model = perturbed(small((1, 1, 2), 3, widths=(1,), times=20), 0.1)
    model.evaluations = 19
    every = torch.tensor(list(itertools.product(range(3), repeat=2))).view(-1, 1, 1, 2)
    with torch.no_grad():
        bounds = torch.stack([model.log_prob(every, generator=seed) for seed in range(50)])
    total = bounds.mean(0).exp().sum().item()
    assert 0 < total < 1
    assert torch.equal(bounds[3], model.log_prob(every, generator=3))


def test_classes_see_the_same_noise() -> None:
    model = moved(small(num_classes=3)).double()
    x = torch.randint(5, (4, 1, 4, 4))
    joint = torch.stack([model.log_prob(x, torch.full((4,), y), generator=1) for y in range(3)], 1)
    assert torch.equal(joint, model.class_log_prob(x, generator=1))
    assert torch.allclose(model.log_prob(x, generator=1), joint.logsumexp(1) - math.log(3))


# --- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"sampler": "dpmpp-2m-sde", "guidance": 2.0}, {"sampler": "ddpm", "steps": 5}])
def test_a_sample_depends_on_its_number_alone(options: dict[str, Any]) -> None:
    model = moved(small(num_classes=3))
    whole = model.sample(130, generator=11, **options)
    assert whole.shape == (130, 1, 4, 4)
    assert whole.dtype == torch.uint8
    assert whole.max() < 5
    for first, n in ((0, 1), (63, 2), (64, 64), (129, 1), (7, 0)):
        part = model.sample(n, generator=11, first_sample=first, **options)
        assert torch.equal(part, whole[first : first + n])
    y = model.draw_labels(130, generator=11)
    assert torch.equal(model.sample(130, y, generator=11, **options), whole)
    assert not torch.equal(model.sample(130, generator=12, **options), whole)


def test_samples_are_those_of_the_loop() -> None:
    model = moved(small(), 0.1)
    run = plan("heun", model.schedule, 4, clip=1.0)
    x = run.first_state((64, 1, 4, 4), generator=3)
    with torch.no_grad():
        x = sample_loop(lambda x, t: model.net(x, t), x, run, generator=3)
    expected = denormalize(x, 5)[:9]
    assert torch.equal(model.sample(9, generator=3, sampler="heun", steps=4), expected)
    assert torch.equal(model.sample(9, generator=3, sampler=run), expected)


# Multistep methods that have no plan from pure noise on straight paths, and one for discrete schedules alone.
NOT_STRAIGHT = {"deis", "dpm-singlestep", "ipndm", "pndm", "tcd"}
OTHERS = {"ddim-inverse", "repaint"}  # that draw no images from noise alone


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [(name, "linear") for name in sorted(SAMPLERS.keys() - OTHERS)]
    + [(name, "flow") for name in sorted(SAMPLERS.keys() - NOT_STRAIGHT - OTHERS)],
)
def test_every_sampler_runs(sampler: str, schedule: str) -> None:
    model = moved(small(prediction="flow_prediction", schedule=schedule))
    model.CHUNK = 2
    assert model.sample(2, generator=0, sampler=sampler, steps=4).float().std() > 0


@pytest.mark.parametrize("schedule", ["linear", "flow"])
def test_complete(schedule: str) -> None:
    model = moved(small(num_classes=2, prediction="flow_prediction", schedule=schedule))
    model.CHUNK = 4
    x, known = torch.randint(5, (6, 1, 4, 4)), torch.rand(4, 4) > 0.5
    y = torch.tensor([0, 1] * 3)
    options: dict[str, Any] = {"generator": 0, "steps": 12, "jump": 4, "resample": 3, "guidance": 2.0}
    told: list[tuple[int, int]] = []
    drawn = model.complete(x, known, y, progress=lambda done, total: told.append((done, total)), **options)
    assert torch.equal(drawn.where(known, 0), x.where(known, 0))
    assert not torch.equal(drawn, x)
    assert told[-1] == (len(told), len(told)) == (2 * (12 + 2 * 2 * (4 + 1)),) * 2
    hidden = model.complete(x.where(known, 4), known, y, **options)  # what is unknown says nothing
    assert torch.equal(hidden, drawn)
    rest = model.complete(x[4:], known, y[4:], first_sample=4, **options)
    assert torch.equal(rest, drawn[4:])
    assert len(model.complete(x[:0], known, y[:0], **options)) == 0


def test_what_is_completed_agrees_with_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data of a normal distribution with the exact net: the mean and variance given a pixel."""
    model = DDPM((1, 2, 2), hidden=8, widths=(1,), attention=0, blocks=1).double()
    std, correlation, n = 0.25, 0.8, 512
    covariance = std**2 * (correlation + (1 - correlation) * torch.eye(4, dtype=torch.float64))

    def net(x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        abar = model.schedule.alphas_cumprod[int(time[0])].double()  # type: ignore[union-attr]
        shrink = abar * covariance + (1 - abar) * torch.eye(4)
        x0 = abar.sqrt() * x.flatten(1) @ torch.linalg.solve(shrink, covariance)
        return ((x - abar.sqrt() * x0.view_as(x)) / (1 - abar).sqrt()).view_as(x)

    monkeypatch.setattr(model.net, "forward", net)
    x = torch.full((n, 1, 2, 2), 191)  # 0.498
    known = torch.tensor([[True, False], [False, False]])
    means, stds = [], []
    for resample in (1, 10):  # RePaint nears what is right, from the mean of all data, 0
        drawn = model.complete(x, known, generator=0, resample=resample).double() / 127.5 - 1
        means.append(drawn.flatten(1)[:, 1:].mean().item())
        stds.append(drawn.flatten(1)[:, 1:].std(0).mean().item())
    assert means[0] < 0.2 < means[1]
    assert means[1] == pytest.approx(correlation * 0.498, abs=0.08)
    assert stds[1] == pytest.approx(std * math.sqrt(1 - correlation**2), abs=0.04)


def test_guidance() -> None:
    model = moved(small(num_classes=2), 0.1)
    with torch.no_grad():
        model.condition.embedding.weight.mul_(30)
    y = torch.tensor([0, 1, 0, 1])
    plain = model.sample(4, y, generator=0)
    assert torch.equal(model.sample(4, y, generator=0, guidance=1.0), plain)
    assert not torch.equal(model.sample(4, y, generator=0, guidance=4.0), plain)
    without = model.sample(4, y, generator=0, guidance=0.0)  # nothing of the labels
    assert torch.equal(model.sample(4, 1 - y, generator=0, guidance=0.0), without)
    assert not torch.equal(model.sample(4, 1 - y, generator=0), plain)


def test_progress_and_modes() -> None:
    model = moved(small(dropout=0.5)).train()
    told: list[tuple[int, int]] = []
    drawn = model.sample(70, generator=0, steps=3, progress=lambda done, total: told.append((done, total)))
    assert told == [(i + 1, 6) for i in range(6)]
    assert model.training
    assert torch.equal(model.sample(70, generator=0, steps=3), drawn)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = moved(small(num_classes=2)).to(dtype)
    x, y = torch.randint(5, (4, 1, 4, 4)), torch.tensor([0, 1, 0, 1])
    model(x, y).backward()
    assert model.log_prob(x, y).isfinite().all()
    told: list[Tensor] = []
    expected = plan("dpmpp-2m", model.schedule, 4).timesteps.tolist()
    model.net.register_forward_pre_hook(lambda _, inputs: told.append(inputs[1]))
    assert model.sample(3, generator=0, guidance=2.0, steps=4).dtype == torch.uint8
    assert [float(time[0]) for time in told] == expected  # which bfloat16 would round


def test_contexts_are_guided_too() -> None:
    model = moved(small(context_features=3), 0.1)
    context = 3 * torch.randn(5, 3)
    drawn = model.sample(5, context=context, generator=0, guidance=2.0)
    assert torch.equal(model.sample(2, context=context[3:], generator=0, guidance=2.0, first_sample=3), drawn[3:])
    with pytest.raises(ValueError, match=r"expected context of shape \(5, 3\), got None"):
        model.sample(5)


# --- checkpoints and commands ----------------------------------------------------------------------------------------


def test_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    model = moved(small(num_classes=2, prediction="flow_prediction", schedule="flow"))
    model.save(tmp_path)
    loaded = models.load(tmp_path)
    assert isinstance(loaded, DDPM)
    assert loaded.config == model.config
    x, y = torch.randint(5, (4, 1, 4, 4)), torch.tensor([0, 1, 1, 0])
    assert torch.equal(loaded.log_prob(x, y, generator=0), model.log_prob(x, y, generator=0))
    assert torch.equal(loaded.sample(4, y, generator=0), model.sample(4, y, generator=0))


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments], catch_exceptions=False)


def test_commands(tmp_path: Path) -> None:
    for module in ("safetensors", "matplotlib", "sklearn"):
        pytest.importorskip(module)
    run = tmp_path / "run"
    settings = [f"--set={pair}" for pair in ("hidden=8", "widths=1,2", "blocks=1", "prediction=v_prediction")]
    result = invoke(
        "train",
        "ddpm",
        "--data",
        "digits",
        "--out",
        run,
        *settings,
        "--steps",
        4,
        "--batch-size",
        8,
        "--every",
        4,
        "--pictures",
        4,
        "--device",
        "cpu",
    )
    assert result.exit_code == 0, result.output
    assert "bits/dim on held-out data" in result.output
    assert "held-out bits/dim" in invoke("info", run).output
    rows = (run / "metrics.jsonl").read_text()
    assert '"loss"' in rows
    assert '"bits_per_dim"' not in rows  # of a loss that is no likelihood
    out = tmp_path / "samples.npz"
    options = ("--sampler", "ddim", "--steps", "3", "--guidance", "3", "--class", "7")
    assert invoke("sample", run, "-n", "3", "--out", out, *options).exit_code == 0
    expected = models.load(run).sample(3, 7, generator=0, sampler="ddim", steps=3, guidance=3.0)
    with np.load(out) as arrays:
        assert torch.equal(torch.from_numpy(arrays["samples"]), expected)

    wrong = invoke("sample", run, "--out", out, "--sampler", "dmp")
    assert wrong.exit_code == 2
    assert "expected sampler as one of " in wrong.output
    assert "dpmpp-2m, " in wrong.output
    assert "got 'dmp'" in wrong.output
    models.RealNVP((1, 4, 4), 17, hidden=4, blocks=1).save(tmp_path / "flow")
    wrong = invoke("sample", tmp_path / "flow", "--out", out, "--guidance", "3")
    assert wrong.exit_code == 2
    assert "expected no --guidance: the model is no diffusion model" in wrong.output


def test_errors() -> None:
    for options, message in (
        ({"prediction": "noise"}, "expected prediction as one of epsilon, sample, v_prediction, flow_prediction"),
        ({"schedule": "flow"}, "expected prediction as sample or flow_prediction with schedule flow, got 'epsilon'"),
        ({"schedule": "cosine"}, "expected kind as linear, scaled_linear, .* got 'cosine'"),
        ({"weighting": "max_snr"}, "expected weighting .* got 'max_snr'"),
        ({"condition_dropout": 1.0}, r"expected 0 <= condition_dropout < 1, got 1\.0"),
        ({"times": 1}, "expected times >= 2, got 1"),
        ({"widths": (1, 2, 2, 2)}, "divisible by .* got 4 x 4 and 4 widths"),
    ):
        with pytest.raises(ValueError, match=message):
            small(**options)
    model = moved(small(num_classes=2))
    x = torch.randint(5, (2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"levels in \[0, 5\), got 5"):
        model(torch.full_like(x, 5), torch.tensor([0, 1]))
    with pytest.raises(TypeError, match=r"integer levels 0 \.\. 4, got torch.float32"):
        model(x.float(), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"labels y of shape \(2,\).*, got None"):
        model(x)
    with pytest.raises(ValueError, match="at least one sample"):
        model(x[:0], torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected temperature 1"):
        model.sample(2, temperature=0.5)
    with pytest.raises(ValueError, match="expected a finite guidance, got nan"):
        model.sample(2, guidance=math.nan)
    with pytest.raises(ValueError, match="expected guidance 1, as the model has no labels"):
        small().sample(2, guidance=3.0)
    with pytest.raises(ValueError, match="expected a sampler from noise to data, got ddim-inverse"):
        model.sample(2, sampler="ddim-inverse")
    with pytest.raises(ValueError, match="expected steps from 1 to 1000, got 0"):
        model.sample(2, steps=0)
    with pytest.raises(ValueError, match="expected a sampler of whole images, got one that repaints"):
        model.sample(2, sampler="repaint")
    with pytest.raises(ValueError, match="expected jump >= 1, got 0"):
        model.complete(x, torch.ones(4, 4).bool(), 0, jump=0)
    with pytest.raises(ValueError, match=r"levels in \[0, 5\), got 7"):
        model.complete(torch.full_like(x, 7), torch.ones(4, 4).bool(), 0)


def test_targets_are_those_of_the_samplers() -> None:
    """A net that says the truth is right at every time: x0 = p x + q output."""
    for prediction, schedule in PREDICTIONS:
        model = small(prediction=prediction, schedule=schedule, times=30).double()
        numbers = model._numbers(torch.device("cpu"))
        x0, z = torch.randn(30, 2).double(), torch.randn(30, 2).double()
        x = numbers.path[:, :1] * x0 + numbers.path[:, 1:] * z
        truth = numbers.loss[:, :1] * x0 + numbers.loss[:, 1:2] * z
        torch.testing.assert_close(numbers.data[:, :1] * x + numbers.data[:, 1:] * truth, x0)
    assert ddpm.TARGETS.keys() == {"epsilon", "sample", "v_prediction", "flow_prediction"}
