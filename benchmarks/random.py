"""The random stream beside torch's generators: noise of a diffusion step, dropout-like masks, pixels, dequantisation.

Every arm draws from torch's default generator: ours one seed a call. "16x3x256x256" is a batch of images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _ext, ops, random
from .cases import Case, Function, Inputs, Problem, Tensors, Work

IMAGES = (16, 3, 256, 256)
SCALE, SHIFT = 2 / 256, -1.0


def one(function: Callable[[Tensor], Tensor]) -> Function:
    def call(x: Tensor) -> Tensors:
        return (function(x),)

    return call


def case(
    name: str,
    shape: tuple[int, ...],
    inputs: Callable[..., Tensor],
    ours: Callable[[Tensor], Tensor],
    reads: bool = True,
    **options: Any,
) -> Case:
    """A case of one input of this shape. eager: torch's own, by name; peers: what users write for speed; reads: whether
    the values of the input count."""
    eager = {form: one(function) for form, function in options.pop("eager").items()}
    peers = {form: partial(one, function) for form, function in options.pop("peers", {}).items()}

    def build(device: torch.device) -> Problem:
        torch.manual_seed(1)  # not the gate's, with which torch.rand_like(p) would be p
        x = inputs(shape, device=device)
        out = ours(x)
        work = Work((x.nbytes if reads else 0) + out.nbytes)
        return Problem(Inputs((x,)), one(ours), eager, one(ours), {"fwd": work}, peers)

    return Case("random", f"{name}-{'x'.join(map(str, shape))}", build, modes=("fwd",), draws=True, **options)


def normal(name: str = "normal", shape: tuple[int, ...] = IMAGES, **options: Any) -> Case:
    def ours(x: Tensor) -> Tensor:
        return random.normal(x.shape, device=x.device)

    return case(name, shape, torch.empty, ours, reads=False, eager={"randn": torch.randn_like}, **options)


def levels(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, device=device)


def softmax_multinomial(logits: Tensor) -> Tensor:
    return torch.multinomial(logits.flatten(0, -2).softmax(-1), 1).view(logits.shape[:-1])


def distribution(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits, validate_args=False).sample()


def gumbel_max(logits: Tensor) -> Tensor:
    return (logits - torch.rand_like(logits).log().neg().log()).argmax(-1)


CATEGORICAL = {"multinomial": softmax_multinomial, "Categorical": distribution}

CASES = (
    normal(quick=True),
    normal("normal-1thread", threads=1),
    *(normal(f"normal-{tier.lower()}", threads=1, tier=tier) for tier in _ext.tiers()),
    normal(shape=(65536, 2)),
    normal(shape=(64, 64)),
    case(
        "uniform",
        IMAGES,
        torch.empty,
        lambda x: random.uniform(x.shape, device=x.device),
        reads=False,
        eager={"rand": torch.rand_like},
    ),
    case(
        "bernoulli",
        IMAGES,
        torch.rand,
        random.bernoulli,
        eager={"bernoulli": torch.bernoulli, "rand": lambda p: (torch.rand_like(p) < p).to(p.dtype)},
    ),
    *(
        case(
            "categorical",
            shape,
            torch.randn,
            random.categorical,
            eager=CATEGORICAL,
            peers={"Gumbel-max": gumbel_max},
            quick=len(shape) == 3,
        )
        for shape in ((16, 784, 256), (65536, 10), (64, 32000))
    ),
    case(
        "dequantize",
        IMAGES,
        levels,
        lambda x: ops.dequantize(x, 256, scale=SCALE, shift=SHIFT),
        eager={"eager": lambda x: (x.float() + torch.rand(x.shape, device=x.device)) * SCALE + SHIFT},
        quick=True,
    ),
)
