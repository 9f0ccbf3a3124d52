"""Denoising diffusion (Ho et al. 2020, 2006.11239), of any prediction, with any sampler of `pygen.diffusion`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from .. import ops, random
from .._arguments import check_integer
from ..diffusion import Discrete, Flow, Level, Plan, plan, predicted, sample_loop
from ..diffusion.losses import levels as levels_of
from ..diffusion.losses import loss_table
from ..diffusion.schedules import Betas
from ..nn import UNet, denormalize, normalize
from ..random import Source
from .autoregressive import Labels, check_image
from .model import Model

# Predictions, and what `pygen.diffusion.losses` calls them.
TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}


class DDPM(Model):
    """A diffusion model of images with integer grey levels, given a label or a context if so built.

    Data x0 are levels scaled to [-1, 1]. At a time t a U-Net sees x = alpha_t x0 + sigma_t z with normal z, and t, and
    says what the noise or the data is.

    shape: (C, H, W) of an image. levels: images hold integers 0 .. levels - 1.
    num_classes, context_features: see `Model`.
    hidden, widths, blocks, attention, dropout: see `pygen.nn.UNet`.
    prediction: what the net's output is: epsilon, sample, v_prediction or flow_prediction; see `diffusion.predicted`.
    schedule: alpha and sigma by a kind of betas, see `diffusion.schedules.betas`; or flow: straight paths, on which a
        net predicts sample or flow_prediction.
    times: how many there are.
    weighting: of the loss of each time: constant, min_snr and others; see `diffusion.losses.loss_weights`.
    condition_dropout: how often training hides label and context, for classifier-free guidance (Ho and Salimans 2022,
        2207.12598): one learned vector, a class of its own, stands for what is hidden.

    `schedule` is what `pygen.diffusion.plan` makes plans of.

    `forward` is the weighted mean square error (`pygen.ops.diffusion_loss`), no likelihood. `log_prob` is, in
    expectation over its noise, the variational lower bound of the ancestral sampler with all times. It has the net look
    at `evaluations` times of each sample, an attribute that can be set: more of them make it less noisy.
    """

    NATS = False
    levels: int

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int = 256,
        *,
        num_classes: int | None = None,
        context_features: int = 0,
        hidden: int = 64,
        widths: tuple[int, ...] = (1, 2, 2),
        blocks: int = 2,
        attention: int = 8,
        dropout: float = 0.0,
        prediction: str = "epsilon",
        schedule: str = "linear",
        times: int = 1000,
        weighting: str = "constant",
        condition_dropout: float = 0.1,
    ) -> None:
        check_image(shape, levels, hidden=hidden)
        if prediction not in TARGETS:
            raise ValueError(f"expected prediction as one of {', '.join(TARGETS)}, got {prediction!r}")
        if schedule == "flow" and prediction not in ("sample", "flow_prediction"):
            raise ValueError(f"expected prediction as sample or flow_prediction with schedule flow, got {prediction!r}")
        check_integer("times", times, 2)
        if not 0 <= condition_dropout < 1:
            raise ValueError(f"expected 0 <= condition_dropout < 1, got {condition_dropout}")
        config = {
            "shape": list(shape), "levels": levels, "num_classes": num_classes, "context_features": context_features,
            "hidden": hidden, "widths": list(widths), "blocks": blocks, "attention": attention, "dropout": dropout,
            "prediction": prediction, "schedule": schedule, "times": times, "weighting": weighting,
            "condition_dropout": condition_dropout,
        }  # fmt: skip
        super().__init__(config, tuple(shape), num_classes, context_features)
        self.levels = levels
        self.evaluations = 4
        self.net = UNet(
            shape[0], (shape[1], shape[2]), hidden=hidden, widths=widths, blocks=blocks, attention=attention,
            dropout=dropout, condition_features=self.condition.features,
        )  # fmt: skip
        hidden_by = self.condition.features
        self.nothing = torch.nn.Parameter(torch.zeros(hidden_by)) if hidden_by else None
        kind = cast(Literal["epsilon", "sample", "v_prediction", "flow_prediction"], prediction)
        with torch.device("cpu"):  # a checkpoint is built without data
            self.schedule: Discrete | Flow = Flow(total=times, prediction=kind)
            if schedule != "flow":
                self.schedule = Discrete.of(cast(Betas, schedule), times, prediction=kind)
            self._tables = {torch.device("cpu"): _numbers(self.schedule, weighting)}

    def _numbers(self, device: torch.device) -> _Numbers:
        """The schedule's numbers; they are in no checkpoint, and float64 whatever the weights are."""
        if device not in self._tables:
            self._tables[device] = _Numbers(*(each.to(device) for each in self._tables[torch.device("cpu")]))
        return self._tables[device]

    # --- the loss and the bound --------------------------------------------------------------------------------------

    def forward(self, x: Tensor, y: Tensor | None = None, *, context: Tensor | None = None) -> Tensor:
        """Training loss: the mean of the weighted square error of the prediction, a scalar.

        Times are drawn one in each of B even parts: uniform, and less noisy together (Kingma et al. 2021, 2107.00630,
        appendix I.1).
        """
        self._check_levels(x, self.levels)
        if len(x) == 0:
            raise ValueError("expected a batch of at least one sample to train on, got an empty one")
        x0, condition = self._data(x), self._given(len(x), y, context)
        if condition is not None and self.training:
            hidden = random.uniform((len(x), 1), device=x.device) < self.config["condition_dropout"]
            condition = torch.where(hidden, self._nothing(len(x)), condition)
        numbers = self._numbers(x.device)
        parts = _spread(random.uniform((1, 1), device=x.device), len(x))[0]
        t = (parts * len(numbers.times)).long().clamp(max=len(numbers.times) - 1)
        z = random.normal(x0.shape, dtype=x0.dtype, device=x.device)
        output = self._look(x0, z, t, condition)[1]
        return ops.diffusion_loss(output, x0, numbers.loss, t, noise=z).mean()

    def _data(self, x: Tensor) -> Tensor:
        return normalize(x, self.levels).to(self._like.dtype)

    def _nothing(self, batch: int) -> Tensor:
        """The condition [B, F] that tells nothing."""
        assert self.nothing is not None
        return self.nothing.expand(batch, -1)

    def _look(self, x0: Tensor, z: Tensor, t: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """x = alpha x0 + sigma z at times of index t [B], and what the net says about it."""
        numbers = self._numbers(x0.device)
        alpha, sigma = _columns(numbers.path[t], x0)
        x = alpha * x0 + sigma * z
        return x, self.net(x, numbers.times[t].to(torch.promote_types(x0.dtype, torch.float32)), condition)

    def _prepare(self, x: Tensor, generator: Source) -> _Noisy:
        self._check_levels(x, self.levels)
        x0, chances = self._data(x), self._numbers(x.device).chances
        n = self.evaluations
        like: dict[str, Any] = {"generator": random.seed_of(generator), "device": x.device}
        z = [random.normal(x0.shape, dtype=x0.dtype, draw=1 + i, **like) for i in range(n)]
        parts = _spread(random.uniform((len(x), 1), **like), n).double()
        t = torch.searchsorted(chances, parts, right=True).clamp(max=len(chances) - 1)
        return _Noisy(x0, t.unbind(1), z)

    def _log_density(self, v: _Noisy, condition: Tensor | None) -> Tensor:
        """The bound: Kingma et al. 2021 (2107.00630), eq. 12 to 14, for levels of any alpha and sigma.

        -log p(x) <= KL(q(x_T | x0) || N(0, I)) - E log p(x0 | x_0)
                     + 1/2 sum over t of (SNR_{t-1} - SNR_t) E |x0 - x0(x_t, t)|^2

        The sum is estimated at times drawn by the differences of log(1 + SNR), of which it would be a multiple for
        Gaussian data of variance 1. p(x0 | x_0) has a pixel's level by the normal density around x_0 / alpha_0 over the
        level's bin, the first and the last without an end: Ho et al. 2020, eq. 13.
        """
        numbers = self._numbers(v.x0.device)
        alpha, sigma = numbers.path[-1]
        total = 0.5 * (alpha**2 * v.x0.double().square() + sigma**2 - 1 - 2 * sigma.log())
        alpha, sigma = numbers.path[0]
        width = 1 / (self.levels - 1)
        near = v.z[0].double()  # how far x_0 / alpha_0 is off, in deviations of sigma / alpha
        low, high = (torch.special.ndtr(side * width * alpha / sigma - near) for side in (-1, 1))
        low, high = low.where(v.x0 > -1 + width, 0.0), high.where(v.x0 < 1 - width, 1.0)
        total = total - (high - low).log()
        for t, z in zip(v.t, v.z, strict=True):
            x, output = self._look(v.x0, z, t, condition)
            p, q = _columns(numbers.data[t], v.x0)
            error = (p * x + q * output).clamp(-1, 1).double() - v.x0
            (gain,) = _columns(numbers.gain[t, None], error)
            total = total + gain / len(v.t) * error.square()
        bound: Tensor = total.flatten(1).sum(1).to(v.x0.dtype)
        return -bound

    # --- samples -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Labels = None,
        *,
        generator: Source = None,
        context: Tensor | None = None,
        first_sample: int = 0,
        temperature: float = 1.0,
        sampler: str | Plan = "dpmpp-2m",
        steps: int = 20,
        guidance: float = 1.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """n samples [n, C, H, W]: numbers first_sample .. first_sample + n - 1 of the seed; see `Model.sample`.

        y, generator, context, first_sample: see `Model.sample`.
        temperature: 1; guidance is what makes these samples likelier and less varied.
        sampler: a name of `pygen.diffusion.SAMPLERS` or `ALIASES`, run with predicted data clamped to [-1, 1]; or a
            plan for `self.schedule`, with options of its own.
        steps: of the sampler; how often the net is asked is up to it. A plan has its own number.
        guidance: s of u + s (c - u) for outputs with and without the label and the context; 1: of c alone, at half the
            cost.
        progress: progress(done, total) is called after each evaluation of the net.
        """
        seed, given = self._started(n, y, context, generator, first_sample, temperature)
        run = plan(sampler, self.schedule, steps, clip=1.0) if isinstance(sampler, str) else sampler
        if run.repaints:
            raise ValueError("expected a sampler of whole images, got one that repaints, as `complete` does")
        if run.levels[0].ratio <= run.levels[-1].ratio and len(run) > 1:
            raise ValueError(f"expected a sampler from noise to data, got {sampler}")
        return self._run(n, first_sample, given, seed, temperature, run, guidance, progress)

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        y: Labels = None,
        *,
        generator: Source = None,
        context: Tensor | None = None,
        first_sample: int = 0,
        temperature: float = 1.0,
        steps: int = 50,
        jump: int = 2,
        resample: int = 10,
        guidance: float = 1.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Samples [n, C, H, W] that are x where `known` is True, the rest drawn by RePaint (Lugmayr et al. 2022,
        2201.09865), which asks of the net no more than `sample` does; see `Model.complete`.

        steps: of ancestral sampling; every `jump` of them the last `jump` are taken back by noise and made again,
            `resample` times in all, so that what is drawn comes to agree with what is known; that much is approximate.
        The rest as in `sample`.
        """
        known = self._check_known(x, known)
        x = x.where(known, 0)
        self._check_levels(x, self.levels)
        seed, given = self._started(len(x), y, context, generator, first_sample, temperature)
        run = plan("repaint", self.schedule, steps, clip=1.0, eta=1.0, jump=jump, resample=resample)
        rows = (*given, self._data(x), known.to(torch.float32))
        drawn = self._run(len(x), first_sample, rows, seed, temperature, run, guidance, progress)
        return x.where(known, drawn)

    def _run(
        self,
        n: int,
        first_sample: int,
        rows: Sequence[Tensor | None],
        seed: int,
        temperature: float,
        run: Plan,
        guidance: float,
        progress: Callable[[int, int], None] | None,
    ) -> Tensor:
        """n samples by a plan; rows: arguments of `_draw` with a row for each."""
        if temperature != 1:
            raise ValueError(f"expected temperature 1, as diffusion has none (it has guidance), got {temperature}")
        if not math.isfinite(guidance):
            raise ValueError(f"expected a finite guidance, got {guidance}")
        if guidance != 1 and self.nothing is None:
            raise ValueError(f"expected guidance 1, as the model has no labels and no context, got {guidance}")
        done, chunks = count(1), max(1, -(-(first_sample + n) // self.CHUNK) - first_sample // self.CHUNK)
        tell = None if progress is None else lambda *_: progress(next(done), chunks * len(run))
        with self.evaluating():
            draw = partial(self._draw, seed=seed, run=run, guidance=guidance, tell=tell)
            return self._in_chunks(n, first_sample, rows, draw)

    def _draw(
        self,
        first: int,
        y: Tensor | None,
        context: Tensor | None,
        known: Tensor | None = None,
        known_mask: Tensor | None = None,
        *,
        seed: int,
        run: Plan,
        guidance: float,
        tell: Callable[[int, int], None] | None,
    ) -> Tensor:
        """The chunk of samples first .. first + CHUNK - 1."""
        like, condition = self._like, self._given(self.CHUNK, y, context)
        if guidance != 1 and condition is not None:
            condition = torch.cat([self._nothing(self.CHUNK), condition])

        def net(x: Tensor, time: Tensor) -> Tensor:
            output: Tensor = self.net(x.to(like.dtype), time, condition)
            return output

        dtype = torch.promote_types(like.dtype, torch.float32)
        where: dict[str, Any] = {"generator": seed, "first_sample": first}
        x = run.first_state((self.CHUNK, *self.shape), dtype=dtype, device=like.device, **where)
        options: dict[str, Any] = {"guidance": None if guidance == 1 else guidance, "progress": tell or False}
        x = sample_loop(net, x, run, known=known, known_mask=known_mask, **options, **where)
        return denormalize(x, self.levels)


# --- numbers of the schedule -----------------------------------------------------------------------------------------


class _Noisy(NamedTuple):
    """x0 [B, ...], and indices of times [B] and noise [B, ...] for each of some evaluations of the net."""

    x0: Tensor
    t: Sequence[Tensor]
    z: Sequence[Tensor]


class _Numbers(NamedTuple):
    """For each of T times, float64.

    times: what the net is told [T]. path: alpha and sigma [T, 2]. loss: a table of `pygen.ops.diffusion_loss` [T, 3].
    data: p and q of x0 = p x + q output [T, 2].
    chances: the distribution function of times that the bound is estimated at [T]; 0 at the first.
    gain: what a square error of x0 there counts [T].
    """

    times: Tensor
    path: Tensor
    loss: Tensor
    data: Tensor
    chances: Tensor
    gain: Tensor


def _numbers(schedule: Discrete | Flow, weighting: str) -> _Numbers:
    if isinstance(schedule, Flow):
        times = torch.arange(1, schedule.total + 1, dtype=torch.float64)
        sigma = times / schedule.total
        alpha = 1 - sigma
    else:
        alpha, sigma = levels_of(schedule.alphas_cumprod)
        times = torch.arange(len(alpha), dtype=torch.float64)
    path = torch.stack([alpha, sigma], 1)
    loss = loss_table(alpha, sigma, TARGETS[schedule.prediction], weighting)
    data = [predicted(schedule.prediction, Level(*row)).data for row in path.tolist()]
    snr = (alpha / sigma).square()
    whole = torch.log1p(snr[0]) - torch.log1p(snr[-1])
    chances = (torch.log1p(snr[0]) - torch.log1p(snr)) / whole
    gain = torch.cat([torch.zeros_like(snr[:1]), 0.5 * (snr[:-1] - snr[1:]) / chances.diff()])
    return _Numbers(times, path, loss, torch.tensor(data, dtype=torch.float64), chances, gain)


def _spread(u: Tensor, n: int) -> Tensor:
    """n numbers in [0, 1] for each u [B, 1] in [0, 1), one in each of n even parts: [B, n]."""
    return (u + torch.arange(n, device=u.device)) / n


def _columns(rows: Tensor, like: Tensor) -> Sequence[Tensor]:
    """The columns of rows [B, K], each in the dtype of [B, ...] tensors, to be multiplied with these."""
    shape = (-1, *[1] * (like.dim() - 1))
    return [column.to(like.dtype).view(shape) for column in rows.unbind(1)]
