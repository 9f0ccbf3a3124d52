"""The discretised logistic mixtures, as the contract suite (tests/harness) sees them.

x is of integer levels throughout: numbers, which count as the nearest level, are in test_numbers.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from pygen import ops, reference
from pygen.reference import random as reference_random
from pygen.reference.logistic_mixture import pairs
from tests.harness.calls import random
from tests.harness.spec import ErrorInput, OpSpec, Sample, register

INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def level(name: str, shape: tuple[int, ...], levels: int, dtype: torch.dtype) -> Tensor:
    """All of them, the outer ones often."""
    last = min(levels - 1, torch.iinfo(dtype).max)
    spread = ((random(f"{name} x", *shape) * 0.8 + 0.5) * last).round()
    return spread.clamp(0, last).to(dtype)


def parameters(name: str, batch: int, mixtures: int, channels: int, own: bool, area: tuple[int, int]) -> Tensor:
    """Log-scales from below the least to wide, whatever the layout: all parameters are alike."""
    count = mixtures * (1 + 2 * channels + pairs(channels, own))
    return 1.5 * random(f"{name} parameters", batch, count, *area) - 0.5


# layout, channels, autoregressive, form
KINDS = (
    ("openai", 3, None, "exact"),
    ("openai", 3, None, "openai"),
    ("openai", 1, None, "exact"),
    ("openai", 2, False, "exact"),
    ("flax", 3, None, "exact"),
    ("flax", 3, False, "openai"),
    ("flax", 1, None, "exact"),
    ("tfp", 3, None, "exact"),
    ("tfp", 4, True, "exact"),
    ("tfp", 2, True, "openai"),
)


def nll_samples() -> Iterator[Sample]:
    levels, dtypes = cycle((256, 256, 2, 65536, 17)), cycle(INTEGERS)
    for i, (layout, channels, own, form) in enumerate(KINDS):
        n, name = next(levels), f"{layout}-{channels}-{own}-{form}"
        dtype = next(dtypes)
        dtype = torch.int32 if n == 65536 and dtype == torch.int16 else dtype
        area = ((2, 3), (1, 1), (1, 5))[i % 3]
        inputs = {
            "x": level(name, (2, channels, *area), n, dtype),
            "parameters": parameters(name, 2, 1 + i % 3, channels, channels == 3 if own is None else own, area),
        }
        options = {"levels": n, "layout": layout, "autoregressive": own, "form": form}
        yield Sample(name, inputs, options, {"layout": layout, "channels": channels, "form": form})


def nll_of(name: str, shape: tuple[int, int, int, int], mixtures: int = 2) -> Sample:
    batch, channels, *area = shape
    own = channels == 3
    x = level(name, shape, 256, torch.uint8)
    return Sample(name, {"x": x, "parameters": parameters(name, batch, mixtures, channels, own, (area[0], area[1]))})


def nll_shapes() -> Iterator[Sample]:
    for shape in ((0, 3, 4, 4), (2, 3, 0, 4), (1, 1, 1, 1), (3, 1, 1, 7), (2, 3, 3, 5), (1, 3, 4, 4), (1, 2, 1, 17)):
        yield nll_of("x".join(map(str, shape)), shape)
    for mixtures in (1, 5, 17):
        yield nll_of(f"{mixtures} mixtures", (1, 3, 3, 11), mixtures)


def nll_extremes() -> Iterator[Sample]:
    """Wide and narrow scales, far means, components that cannot be."""
    x = torch.tensor([0, 1, 128, 254, 255, 77], dtype=torch.uint8).view(1, 1, 1, 6)
    for name, logits, means, log_scales in (
        ("far", (0.0, 1.0), (1e4, -3e4), (0.0, 0.0)),
        ("far and narrow", (0.0, 1.0), (1e30, -3e30), (-7.0, -20.0)),
        ("wide", (0.0, 1.0), (0.1, -0.2), (30.0, 61.0)),
        ("very wide", (0.0, 1.0), (0.1, -0.2), (100.0, 87.0)),
        ("far and wide", (0.0, 1.0), (1e3, -1e9), (6.0, 15.0)),
        ("one of two", (0.0, -math.inf), (0.1, -0.2), (-3.0, -2.0)),
        ("large logits", (3e4, -3e4), (0.1, -0.2), (-3.0, -2.0)),
        ("narrow", (0.0, 1.0), (0.003921568627450966, -1.0), (-7.0, -1e30)),
    ):
        p = torch.tensor((*logits, *means, *log_scales), dtype=torch.float64).view(1, 6, 1, 1)
        yield Sample(name, {"x": x, "parameters": p.expand(1, 6, 1, 6).contiguous()})


def nll_errors() -> Iterator[ErrorInput]:
    x, p = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 20, 4, 4)
    for name, changed, error, words in (
        ("type of x", {"x": x.bool()}, TypeError, ("x", "bool")),
        ("integer parameters", {"parameters": p.long()}, TypeError, ("parameters", "int64")),
        ("rank of x", {"x": x[0]}, ValueError, ("[B, C, H, W]", "(3, 4, 4)")),
        ("rank", {"parameters": p[0]}, ValueError, ("[B, P, H, W]", "(20, 4, 4)")),
        ("other area", {"parameters": p[..., 1:]}, ValueError, ("(2, 20, 4, 3)",)),
        ("count", {"parameters": p[:, 1:]}, ValueError, ("multiple of 10", "19")),
        ("count, independent", {"autoregressive": False}, ValueError, ("multiple of 7", "20")),
        ("no channels", {"x": x[:, :0]}, ValueError, ("parameters", "0 independent")),
        ("two channels", {"x": x[:, :2], "autoregressive": True}, ValueError, ("1 or 3", "2")),
        ("one level", {"levels": 1}, ValueError, ("levels in [2, 65536]", "got 1")),
        ("type of levels", {"levels": 8.0}, TypeError, ("levels", "8.0")),
        ("layout", {"layout": "torch"}, ValueError, ("layout", "torch")),
        ("form", {"form": "fast"}, ValueError, ("form", "fast")),
        ("autoregressive", {"autoregressive": 1}, TypeError, ("autoregressive", "1")),
    ):
        yield ErrorInput(name, {"x": x, "parameters": p, **changed}, error, words)
    for name, bad, words in (
        ("large", x + 4, ("[0, 3]", "got 4")),
        ("negative", x.int() - 1, ("[0, 3]", "got -1")),
        ("large number", x + 1.5, ("[-1, 1]", "got 1.5")),
        ("infinite", x - math.inf, ("[-1, 1]", "got -inf")),
    ):
        yield ErrorInput(name, {"x": bad, "parameters": p, "levels": 4}, ValueError, words, by_value=True)


register(
    OpSpec(
        name="logistic_mixture_nll",
        function=ops.logistic_mixture_nll,
        reference=reference.logistic_mixture_nll,
        outputs=("nll",),
        roles={"parameters": "data"},
        batched=frozenset({"x", "parameters", "nll"}),
        order=1,
        samples=nll_samples,
        shapes=nll_shapes,
        threaded=lambda: [nll_of("threaded", (5, 3, 33, 31), 10), nll_of("threaded, one channel", (3, 1, 64, 64), 5)],
        extremes=nll_extremes,
        errors=nll_errors,
        keeps=lambda sample: frozenset({"nll", "grad_parameters"}),
    )
)


# --- the backward ----------------------------------------------------------------------------------------------------


def backward(grad: Tensor, slope: Tensor, nll: Tensor) -> Tensor:
    return torch.ops.pygen.logistic_mixture_nll_backward(grad, slope, nll)


def backward_reference(grad: Tensor, slope: Tensor, nll: Tensor) -> Tensor:
    """Each pixel's derivative times its upstream gradient."""
    return (slope.to(grad.dtype) * grad[:, None]).to(slope.dtype)


def backward_sample(*shape: int) -> Sample:
    name = "x".join(map(str, shape))
    pixels = (shape[0], *shape[2:])
    return Sample(
        name,
        {
            "grad": random(f"{name} grad", *pixels),
            "slope": random(f"{name} slope", *shape),
            "nll": random(f"{name} nll", *pixels),
        },
    )


register(
    OpSpec(
        name="logistic_mixture_nll_backward",
        function=backward,
        reference=backward_reference,
        outputs=("grad_parameters",),
        roles={"grad": "accumulate", "slope": "data", "nll": "accumulate"},
        batched=frozenset({"grad", "slope", "nll", "grad_parameters"}),
        order=0,
        samples=lambda: [backward_sample(2, 10, 3, 4), backward_sample(3, 6, 1, 5)],
        shapes=lambda: (backward_sample(*s) for s in ((0, 3, 1, 1), (2, 3, 0, 2), (1, 17, 1, 1), (2, 1, 3, 33))),
        threaded=lambda: [backward_sample(4, 100, 31, 33)],
        public=False,
    )
)


# --- samples ---------------------------------------------------------------------------------------------------------


def sample_reference(
    parameters: Tensor,
    noise: Tensor | None = None,
    generator: int = 0,
    step: int = 0,
    draw: int = 0,
    offset: int = 0,
    **options: Any,
) -> Tensor:
    """The same, for samples 0, 1, ..."""
    if noise is None:
        batch, _, height, width = parameters.shape
        ids = torch.arange(batch, device=parameters.device)
        size = (batch, height, width, 1 + options["channels"])
        numbers = reference_random.random(ids, size, generator, draw << 24 | step, offset, "uniform", torch.float32)
        noise = numbers.movedim(-1, 1)
    return reference.logistic_mixture_sample(parameters, noise, **options).contiguous()


def draws() -> Iterator[Sample]:
    temperatures = cycle(((1.0, 1.0), (0.7, 0.5), (0.0, 0.0), (1.3, 2.0)))
    levels = cycle((256, 2, 65536, 17))
    for i, (layout, channels, own, _) in enumerate(KINDS):
        name = f"{layout}-{channels}-{own}-{i}"
        area = ((2, 3), (1, 1), (1, 23))[i % 3]
        autoregressive = channels == 3 if own is None else own
        temperature, scale_temperature = next(temperatures)
        options = {
            "channels": channels,
            "levels": next(levels),
            "layout": layout,
            "autoregressive": own,
            "temperature": temperature,
            "scale_temperature": scale_temperature,
            "quantized": i % 4 != 1,
        }
        inputs: dict[str, Tensor | None] = {"parameters": parameters(name, 3, 1 + i, channels, autoregressive, area)}
        traits = {"layout": layout, "channels": channels, "quantized": options["quantized"]}
        options |= {"generator": 2**64 - 5, "step": i, "draw": 1, "offset": (0, 5, 1000)[i % 3]}
        yield Sample(f"{name}-drawn", inputs, options, traits | {"noise": False})
        noise = random(f"{name} noise", 3, 1 + channels, *area).sigmoid()
        noise.view(-1)[::7] = 0
        yield Sample(f"{name}-given", inputs | {"noise": noise}, options, traits | {"noise": True})


def drawn(name: str, shape: tuple[int, int, int, int], mixtures: int = 3) -> Sample:
    batch, channels, *area = shape
    p = parameters(name, batch, mixtures, channels, channels == 3, (area[0], area[1]))
    return Sample(name, {"parameters": p}, {"channels": channels, "generator": 1})


def sample_errors() -> Iterator[ErrorInput]:
    p = torch.zeros(2, 20, 4, 4)
    for name, changed, error, words in (
        ("integers", {"parameters": p.long()}, TypeError, ("parameters", "int64")),
        ("rank", {"parameters": p[0]}, ValueError, ("[B, P, H, W]", "(20, 4, 4)")),
        ("count", {"parameters": p[:, 1:]}, ValueError, ("multiple of 10", "19")),
        ("no channels", {"channels": 0}, ValueError, ("parameters", "0 independent")),
        ("type of channels", {"channels": 3.0}, TypeError, ("channels", "3.0")),
        ("temperature", {"temperature": -1.0}, ValueError, ("temperature", "-1.0")),
        ("infinite", {"scale_temperature": math.inf}, ValueError, ("scale_temperature", "inf")),
        ("type of temperature", {"temperature": "1"}, TypeError, ("temperature", "'1'")),
        ("quantized", {"quantized": 1}, TypeError, ("quantized", "1")),
        ("shape of noise", {"noise": torch.zeros(2, 3, 4, 4)}, ValueError, ("(2, 4, 4, 4)", "(2, 3, 4, 4)")),
        ("type of noise", {"noise": torch.zeros(2, 4, 4, 4).long()}, TypeError, ("noise", "int64")),
        ("ids", {"sample_ids": torch.arange(3)}, ValueError, ("(2,)", "(3,)")),
        ("too many elements", {"offset": 2**34 - 1}, ValueError, ("2^34",)),
    ):
        yield ErrorInput(name, {"parameters": p, "channels": 3, "generator": 0, **changed}, error, words)


register(
    OpSpec(
        name="logistic_mixture_sample",
        function=ops.logistic_mixture_sample,
        reference=sample_reference,
        outputs=("x",),
        roles={"parameters": "data", "noise": "data"},
        batched=frozenset({"parameters", "noise", "x"}),
        order=0,
        samples=draws,
        shapes=lambda: (
            drawn("x".join(map(str, s)), s)
            for s in (
                (0, 3, 4, 4),
                (2, 3, 0, 4),
                (1, 1, 1, 1),
                (5, 1, 1, 1),
                (2, 3, 3, 5),
                (1, 2, 1, 17),
                (40, 3, 1, 1),
            )
        ),
        threaded=lambda: [drawn("threaded", (5, 3, 33, 31), 10)],
        errors=sample_errors,
        exact=True,
    )
)
