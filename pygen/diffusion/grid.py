"""What a network was trained on, and the levels at which it is asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .._arguments import check_choice, check_integer, check_number
from . import schedules
from .level import Level, Predicted, Prediction, cumulative, flow, predicted, ve, vp
from .schedules import Floats, Spacing

Sigmas = Literal["table", "log_linear", "karras", "exponential", "polyexponential", "beta", "lu"]
Space = Literal["table", "vp", "ve"]


@dataclass(frozen=True)
class Grid:
    """n evaluations between n + 1 levels, and what the network says at each.

    time_of: the time that the network is told at a level between. level_of: its inverse, at whole times of a table.
    scale: what a state of a level is multiplied by to be the network's input.
    start: the standard deviation of a first state, of pure noise.
    """

    times: tuple[float, ...]
    levels: tuple[Level, ...]
    time_of: Callable[[Level], float]
    scale: Callable[[Level], float]
    start: float
    prediction: Prediction
    sigma_data: float = 0.5
    smallest: float = 0.0
    level_of: Callable[[int], Level] | None = None

    def predicted(self, at: Level) -> Predicted:
        return predicted(self.prediction, at, self.sigma_data, self.smallest)


def _check_falling(name: str, values: Floats, least: float, most: float) -> None:
    """Equal neighbours are steps that change nothing."""
    fine = values.ndim == 1 and len(values) and (values[1:] <= values[:-1]).all() and least <= values[-1]
    if not (fine and values[0] <= most):
        raise ValueError(f"expected {name} falling within [{least:g}, {most:g}], got {values.tolist()}")


def spread(kind: Sigmas, count: int, smallest: float, largest: float, rho: float | None = None) -> Floats:
    """`count` sigmas from the largest to the smallest."""
    match kind:
        case "karras":
            return schedules.karras(count, smallest, largest, rho or 7.0)
        case "exponential":
            return schedules.exponential(count, smallest, largest)
        case "polyexponential":
            return schedules.polyexponential(count, smallest, largest, rho or 1.0)
        case "beta":
            return schedules.beta(count, smallest, largest)
        case "lu":
            return schedules.lu(count, smallest, largest)
    raise ValueError(
        f"expected sigmas as table, log_linear, karras, exponential, polyexponential, beta or lu, got {kind!r}"
    )


@dataclass(frozen=True, eq=False)
class Discrete:
    """Times 0 .. N - 1 with a table of cumulative products of 1 - beta, float32 [N]: DDPM, Stable Diffusion.

    last: what the last step leads to: "zero" noise, or the table's first, "sigma_min".
    """

    alphas_cumprod: Tensor
    prediction: Prediction = "epsilon"
    last: Literal["zero", "sigma_min"] = "zero"

    def __post_init__(self) -> None:
        check_choice("last", self.last, ("zero", "sigma_min"))
        table = self.alphas_cumprod
        if table.dim() != 1 or not len(table) or not ((table >= 0) & (table <= 1)).all():
            raise ValueError(f"expected alphas_cumprod [N] within [0, 1], got {tuple(table.shape)}: {table.tolist()}")

    @classmethod
    def of(
        cls,
        betas: schedules.Betas | Tensor = "linear",
        count: int = 1000,
        start: float = 1e-4,
        end: float = 0.02,
        *,
        zero_terminal_snr: bool = False,
        prediction: Prediction = "epsilon",
        last: Literal["zero", "sigma_min"] = "zero",
    ) -> Discrete:
        """From the kind of betas, or betas."""
        values = betas if isinstance(betas, Tensor) else schedules.betas(betas, count, start, end)
        if zero_terminal_snr:
            values = schedules.zero_terminal_snr(values)
        return cls(schedules.alphas_cumprod(values), prediction, last)

    @cached_property
    def _table(self) -> Floats:
        """sigma / alpha; finite where no signal is left."""
        finite = self.alphas_cumprod.clone()
        if finite[-1] == 0:
            finite[-1] = 2**-24
        return schedules.table_sigmas(finite)

    def _level(self, time: float) -> Level:
        return cumulative(float(self.alphas_cumprod[int(time)]))

    def grid(
        self,
        steps: int,
        space: Space,
        *,
        spacing: Spacing = "trailing",
        offset: int = 0,
        sigmas: Sigmas = "table",
        rho: float | None = None,
        one_more: bool = False,
        whole: bool = True,
        timesteps: Sequence[float] | None = None,
        whole_times: Literal["round", "floor"] | None = None,
    ) -> Grid:
        """space: table, of the products at whole times; vp and ve, of sigmas in float32, which may be between.

        timesteps: falling, instead of `steps` by `spacing`. sigmas, rho: not of a table. whole_times: what a network is
        told where sigmas are not the table's; None: what is exact.
        """
        total = len(self.alphas_cumprod)
        if timesteps is not None:
            times = np.array(timesteps, dtype=np.float64)
        else:
            times = schedules.timesteps(spacing, steps, total, offset=offset, one_more=one_more, whole=whole)
        _check_falling("timesteps", times, 0, total - 1)
        if space == "table":
            if (times != times.round()).any():
                raise ValueError(f"expected whole timesteps for this sampler, got {times.tolist()}")
            if sigmas != "table" or rho is not None:
                raise ValueError(f"expected no sigmas and rho for this sampler, got {sigmas!r} and {rho}")
            return Grid(
                tuple(times.tolist()),
                (*map(self._level, times), Level(1.0, 0.0) if self.last == "zero" else self._level(0)),
                lambda at: math.nan,
                lambda at: 1.0,
                1.0,
                self.prediction,
                level_of=self._level,
            )
        values = schedules.interpolated(times, self._table)
        last = 0.0 if self.last == "zero" else float(self._table[0])
        if sigmas == "log_linear":  # down to the table's smallest
            high, low = math.log(self._table[-1]), math.log(self._table[0])
            values = np.array(torch.linspace(high, low, len(times) + 1).exp().tolist())
            values, last = values[:-1], float(values[-1])
        elif sigmas != "table":
            ends = values[::-1] if space == "ve" else self._table
            values = spread(sigmas, len(times), float(ends[0]), float(ends[-1]), rho)
            times = schedules.sigma_to_t(values, self._table)
            if whole_times is not None:
                times = times.round() if whole_times == "round" else np.floor(times)
        rounded = np.append(values, last).astype(np.float32).tolist()
        level = vp if space == "vp" else ve
        return Grid(
            tuple(times.tolist()),
            tuple(map(level, rounded)),
            lambda at: float(schedules.sigma_to_t(at.ratio, self._table)),
            lambda at: 1 / math.hypot(at.alpha, at.sigma),
            1.0 if space == "vp" else rounded[0],
            self.prediction,
        )


@dataclass(frozen=True)
class Flow:
    """Straight paths from data to noise, sigma in (0, 1], times sigma * total: SD3, FLUX.

    shift: see `schedules.shifted`.
    """

    shift: float = 1.0
    total: int = 1000
    prediction: Prediction = "flow_prediction"

    def __post_init__(self) -> None:
        check_number("shift", self.shift, 0, above=True)
        check_integer("total", self.total, 1)

    def grid(
        self,
        steps: int,
        *,
        sigmas: Sigmas | Sequence[float] = "table",
        even: Literal["both", "first", "last"] = "both",
        mu: float | None = None,
        shift_kind: Literal["exponential", "linear"] = "exponential",
        terminal: float | None = None,
        largest: float = 1.0,
        last: Literal["zero", "sigma_min"] = "zero",
        whole: bool = False,
    ) -> Grid:
        """sigmas: before the shift; "table": even; or how they are spread between the ends of even ones after it.

        even: from 1 to that of the first training time, shifted once before all are, as in diffusers; "first": of one
        point more, the first of which count; "last": of 1 - sigma so, as multistep solvers have it.
        mu: shifts instead of `shift`; terminal: the last sigma. largest: no sigma is larger. last: what the last step
        leads to: "zero", or the last sigma again, "sigma_min". whole: a network is told whole times, rounded down.
        """
        check_choice("even", even, ("both", "first", "last"))
        check_choice("last", last, ("zero", "sigma_min"))
        check_choice("shift_kind", shift_kind, ("exponential", "linear"))
        if terminal is not None:
            check_number("terminal", terminal, 0, 1)
        if isinstance(sigmas, str):
            check_integer("steps", steps, 1)
            values = self._even(steps, even, mu is None)
        else:
            values = np.array(sigmas, dtype=np.float32)  # and so it stays: peers shift it in float32
            _check_falling("sigmas", values, 0, 1)
        moved = schedules.shifted(values, self.shift) if mu is None else schedules.time_shifted(values, mu, shift_kind)
        values = moved if terminal is None else schedules.stretched(moved, terminal)
        if isinstance(sigmas, str) and sigmas != "table":
            values = spread(sigmas, len(values), float(values[-1]), float(values[0]))
        values = np.minimum(values, largest)
        rounded = np.append(values, 0.0 if last == "zero" else values[-1]).astype(np.float32)
        told = np.floor(values * self.total) if whole else rounded[:-1] * np.float32(self.total)
        return Grid(
            tuple(told.astype(np.float64).tolist()),
            tuple(map(flow, rounded.tolist())),
            lambda at: at.sigma * self.total,
            lambda at: 1.0,
            1.0,
            self.prediction,
        )

    def _even(self, steps: int, even: str, shifted: bool) -> Floats:
        if even == "last":
            return (1.0 - np.linspace(1.0, 1 / self.total, steps + 1))[:0:-1]
        if even == "first":
            return np.linspace(1.0, 1 / self.total, steps + 1)[:-1]
        smallest = float(torch.tensor(1.0) / self.total)
        if shifted:
            smallest = float(schedules.shifted(np.float32(smallest), np.float32(self.shift)))
        return np.linspace(1.0, smallest, steps)


@dataclass(frozen=True)
class Edm:
    """Noise of deviation sigma on data of deviation sigma_data: Karras et al. 2022 (2206.00364), table 1.

    A network is told time_scale log(sigma): a quarter of it, or, by consistency models, 250 times it.
    """

    smallest: float = 0.002
    largest: float = 80.0
    sigma_data: float = 0.5
    prediction: Prediction = "edm"
    time_scale: float = 0.25

    def __post_init__(self) -> None:
        check_number("smallest", self.smallest, 0, above=True)
        check_number("largest", self.largest, self.smallest)
        check_number("sigma_data", self.sigma_data, 0, above=True)

    def grid(self, steps: int, *, sigmas: Sigmas | Sequence[float] = "karras", rho: float | None = None) -> Grid:
        """sigmas: how they are spread, or which."""
        if isinstance(sigmas, str):
            check_integer("steps", steps, 1)
            values = spread(sigmas, steps, self.smallest, self.largest, rho)
        else:
            values = np.array(sigmas, dtype=np.float64)
            _check_falling("sigmas", values, np.finfo(np.float32).tiny, np.finfo(np.float32).max)
        rounded = np.append(values, 0.0).astype(np.float32).tolist()
        return Grid(
            tuple(self.time_scale * math.log(sigma) for sigma in rounded[:-1]),
            tuple(map(ve, rounded)),
            lambda at: self.time_scale * math.log(at.sigma),
            lambda at: 1 / math.hypot(at.sigma, self.sigma_data),
            rounded[0],
            self.prediction,
            self.sigma_data,
            self.smallest,
        )
