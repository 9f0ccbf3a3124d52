"""The coupling maps of other libraries, each as one setting of affine_coupling's options.

Installed libraries are asked themselves, with a network that returns given parameters; of the others the map is
written out beside the options. All in float64, forward and inverse, with gradients.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import log
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pygen.ops import affine_coupling

a = torch.tensor([0.5, -1.25], dtype=torch.float64).reshape(2, 1, 1)  # a learned scale per channel
c = 2.0  # FrEIA's clamp

# The table of pygen.ops.affine_coupling's docstring. What is not named has its default: activation="exp",
# shift="after", order="st"; part as a test says, else "second". `inverse` belongs to the peer's forward; its inverse is
# the other one.
CONVENTIONS: dict[str, dict[str, Any]] = {
    "nflows affine": dict(activation="sigmoid", offset=2, eps=1e-3, order="ts"),
    "nflows affine, general": dict(activation="softplus", eps=1e-3, max_scale=3, order="ts"),
    "nflows MAF": dict(activation="softplus", eps=1e-3, interleaved=True, part="all"),
    "normflows exp": dict(order="ts", interleaved=True),
    "normflows sigmoid": dict(
        activation="sigmoid", offset=2, shift="before", shift_scale=-1, order="ts", interleaved=True, inverse=True
    ),
    "normflows sigmoid_inv": dict(activation="sigmoid", offset=2, order="ts", interleaved=True),
    "normflows MaskedAffineFlow": dict(),
    "zuko": dict(squash="softsign", gain=log(1e3), width=log(1e3), order="ts", interleaved=True),
    "FrEIA ATAN": dict(squash="atan", gain=0.636 * c),
    "FrEIA TANH": dict(squash="tanh", gain=c),
    "FrEIA SIGMOID": dict(squash="tanh", gain=c, width=2),
    "FrEIA AllInOneBlock 0.2": dict(squash="tanh", gain=c, width=10, shift_scale=0.1),
    "FrEIA AllInOneBlock, later": dict(squash="tanh", gain=c, width=10 * c, shift_scale=0.1),
    "openai/glow": dict(activation="sigmoid", offset=2, shift="before", order="ts", interleaved=True),
    "rosinality/glow-pytorch": dict(activation="sigmoid", offset=2, shift="before"),
    "chrischute/glow": dict(squash="tanh", gain=a, shift="before", interleaved=True, part="first"),
    "chrischute/real-nvp": dict(squash="tanh", gain=a, shift="before"),
    "survae interleaved": dict(),
    "survae sequential": dict(interleaved=True),
    "WaveGlow, VITS": dict(order="ts"),
    "NICE, VITS mean_only": dict(activation="additive"),
    "TarFlow": dict(gain=-1, shift="before", shift_scale=-1, part="all"),
    "Jet, y / factor": dict(activation="sigmoid", shift="before", order="ts"),
}

Map = Callable[[Tensor, bool], tuple[Tensor, Tensor]]  # (x, inverse) -> (y, logdet)

TOLERANCE = dict(rtol=1e-14, atol=1e-14)  # measured worst |error| / (1 + |value|): 9e-16


def ours(name: str, params: Tensor, **more: Any) -> Map:
    options = {**CONVENTIONS[name], **more}
    flipped = options.pop("inverse", False)
    return lambda x, inverse: affine_coupling(x, params, inverse=inverse != flipped, **options)


def assert_same_map(a: Map, b: Map, x: Tensor, *parameters: Tensor) -> None:
    """Values, log-determinants and gradients of two maps, in both directions."""
    weight = torch.randn_like(x)
    for inverse in (False, True):
        results = []
        for f in (a, b):
            y, logdet = f(x, inverse)
            loss = (weight * y).sum() + (logdet * torch.arange(1.0, 1 + len(logdet))).sum()
            gradients = torch.autograd.grad(
                loss, [x, *parameters], retain_graph=True
            )  # params: what the peer was given
            results.append((y, logdet, *gradients))
        torch.testing.assert_close(*results, **TOLERANCE)


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


class Given(nn.Module):
    """A network that returns the same parameters for every input."""

    def __init__(self, params: Tensor) -> None:
        super().__init__()
        self.params = [params]  # in a list: no parameter of the module, and no copy

    def forward(self, *_: Any) -> Tensor:
        return self.params[0]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- installed peers --------------------------------------------------------------------------------------------------


@pytest.mark.peer
@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 2, 4)])
@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("nflows affine", "AffineCouplingTransform"),
        ("nflows affine, general", "AffineCouplingTransform"),
        ("NICE, VITS mean_only", "AdditiveCouplingTransform"),
    ],
)
def test_nflows_coupling(name: str, transform: str, shape: tuple[int, ...]) -> None:
    transforms = pytest.importorskip("nflows.transforms")
    mask = torch.tensor([1, 0, 1, 1, 0])  # > 0: changes
    general = name == "nflows affine, general"
    factor = 1 if transform == "AdditiveCouplingTransform" else 2
    x, params = leaf(*shape), leaf(shape[0], factor * 3, *shape[2:])

    class General(transforms.AffineCouplingTransform):  # an option of nflows' main branch, not of its release 0.14
        def _scale_and_shift(self, transform_params: Tensor) -> tuple[Tensor, Tensor]:
            shift, scale = transform_params.chunk(2, 1)
            return (torch.nn.functional.softplus(scale) + 1e-3).clamp(0, 3), shift

    peer = (General if general else getattr(transforms, transform))(mask, lambda *_: Given(params))
    if general:
        with torch.no_grad():
            params.mul_(4)  # so that some scales exceed 3
            assert (torch.nn.functional.softplus(params[:, 3:]) > 3).any()
    for part in (mask > 0, [0, 2, 3], torch.tensor([0, 2, 3])):
        assert_same_map(
            ours(name, params, part=part), lambda x, inverse: peer.inverse(x) if inverse else peer(x), x, params
        )


@pytest.mark.peer
def test_nflows_autoregressive() -> None:
    transforms = pytest.importorskip("nflows.transforms")
    peer = transforms.MaskedAffineAutoregressiveTransform(features=5, hidden_features=8)
    x, params = leaf(3, 5), leaf(3, 10)
    assert_same_map(
        ours("nflows MAF", params),
        lambda x, inverse: (peer._elementwise_inverse if inverse else peer._elementwise_forward)(x, params),
        x,
        params,
    )


@pytest.mark.peer
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2, 5)])
@pytest.mark.parametrize("scale_map", ["exp", "sigmoid", "sigmoid_inv"])
def test_normflows_coupling(scale_map: str, shape: tuple[int, ...]) -> None:
    flows = pytest.importorskip("normflows").flows
    x, params = leaf(*shape), leaf(*shape)
    peer = flows.AffineCouplingBlock(Given(params), scale_map=scale_map)
    assert_same_map(
        ours(f"normflows {scale_map}", params),
        lambda x, inverse: peer.inverse(x) if inverse else peer(x),
        x,
        params,
    )


@pytest.mark.peer
@pytest.mark.parametrize("part", ["index", "even", "odd"])
def test_normflows_masked(part: str) -> None:
    flows = pytest.importorskip("normflows").flows
    if part == "index":
        keep = torch.tensor([1.0, 0, 0, 1, 0], dtype=torch.float64)
        x, s, t = leaf(3, 5), leaf(3, 5), leaf(3, 5)
        params, which = torch.cat([s[:, keep == 0], t[:, keep == 0]], 1), keep == 0
    else:
        h, w = torch.meshgrid(torch.arange(3), torch.arange(5), indexing="ij")
        keep = ((h + w) % 2 != (part == "odd")).double().expand(2, 3, 5)
        x, s, t = leaf(3, 2, 3, 5), leaf(3, 2, 3, 5), leaf(3, 2, 3, 5)
        params, which = torch.cat([s, t], 1), part
    peer = flows.MaskedAffineFlow(keep, t=Given(t), s=Given(s))
    assert_same_map(
        ours("normflows MaskedAffineFlow", params, part=which),
        lambda x, inverse: peer.inverse(x) if inverse else peer(x),
        x,
        s,
        t,
    )


@pytest.mark.peer
def test_zuko() -> None:
    coupling = pytest.importorskip("zuko.flows.coupling")
    mask = torch.tensor([True, False, False, True, False])  # True: stays
    x, params = leaf(3, 5), leaf(3, 6)
    lazy = coupling.GeneralCouplingTransform(features=5, mask=mask)
    lazy.hyper = Given(params)
    peer = lazy()
    assert_same_map(
        ours("zuko", params, part=~mask),
        lambda x, inverse: (peer.inv if inverse else peer).call_and_ladj(x),
        x,
        params,
    )


@pytest.mark.peer
@pytest.mark.parametrize("block", ["RNVPCouplingBlock", "GLOWCouplingBlock"])
@pytest.mark.parametrize("clamp", ["ATAN", "TANH", "SIGMOID"])
def test_freia_two_sided(clamp: str, block: str) -> None:
    modules = pytest.importorskip("FrEIA.modules")
    peer = getattr(modules, block)(
        [(4, 2, 5)], subnet_constructor=lambda *_: nn.Identity(), clamp=c, clamp_activation=clamp
    )
    x, first, second = leaf(3, 4, 2, 5), leaf(3, 4, 2, 5), leaf(3, 4, 2, 5)
    if block == "RNVPCouplingBlock":
        for side, params in ((2, first), (1, second)):
            setattr(peer, f"subnet_s{side}", Given(params.chunk(2, 1)[0]))
            setattr(peer, f"subnet_t{side}", Given(params.chunk(2, 1)[1]))
    else:
        peer.subnet2, peer.subnet1 = Given(first), Given(second)

    def both(x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        logdet = None
        sides = [(first, "first"), (second, "second")]
        for params, part in reversed(sides) if inverse else sides:
            x, logdet = ours(f"FrEIA {clamp}", params, part=part, logdet=logdet)(x, inverse)
        return x, logdet

    def theirs(x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        (y,), logdet = peer([x], rev=inverse)
        return y, logdet

    assert_same_map(both, theirs, x, first, second)


@pytest.mark.peer
def test_freia_all_in_one() -> None:
    """The coupling inside the block; its per-channel scale and its permutation are other layers."""
    modules = pytest.importorskip("FrEIA.modules")
    peer = modules.AllInOneBlock([(4, 2, 5)], affine_clamping=c, subnet_constructor=lambda *_: nn.Identity())
    x, params = leaf(3, 4, 2, 5), leaf(3, 4, 2, 5)

    def theirs(x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, 1)
        y, logdet = peer._affine(b, params.clone(), rev=inverse)  # it scales the parameters in place
        return torch.cat([a, y], 1), logdet

    assert_same_map(ours("FrEIA AllInOneBlock 0.2", params), theirs, x, params)


# --- peers that are no package: the map and its inverse on the changing elements, from their sources -----------------

sigmoid, tanh, exp = torch.sigmoid, torch.tanh, torch.exp


def halves(p: Tensor) -> tuple[Tensor, Tensor]:
    return p.chunk(2, 1)


def pairs(p: Tensor) -> tuple[Tensor, Tensor]:
    return p[:, 0::2], p[:, 1::2]


# name: how the parameters are split, x -> y, y -> x
MAPS: dict[str, tuple[Callable[..., Any], Callable[..., Tensor], Callable[..., Tensor]]] = {
    "openai/glow": (pairs, lambda x, t, s: (x + t) * sigmoid(s + 2), lambda y, t, s: y / sigmoid(s + 2) - t),
    "rosinality/glow-pytorch": (
        halves, lambda x, s, t: (x + t) * sigmoid(s + 2), lambda y, s, t: y / sigmoid(s + 2) - t
    ),
    "chrischute/glow": (
        pairs, lambda x, s, t: (x + t) * exp(a * tanh(s)), lambda y, s, t: y * exp(-a * tanh(s)) - t
    ),
    "chrischute/real-nvp": (
        halves, lambda x, s, t: (x + t) * exp(a * tanh(s)), lambda y, s, t: y * exp(-a * tanh(s)) - t
    ),
    # ElementwiseParams(mode="interleaved") reads [s s s t t t] and "sequential" [s t s t s t]
    "survae interleaved": (halves, lambda x, s, t: exp(s) * x + t, lambda y, s, t: (y - t) / exp(s)),
    "survae sequential": (pairs, lambda x, s, t: exp(s) * x + t, lambda y, s, t: (y - t) / exp(s)),
    "WaveGlow, VITS": (halves, lambda x, m, s: m + x * exp(s), lambda y, m, s: (y - m) * exp(-s)),
    "NICE, VITS mean_only": (lambda p: (p,), lambda x, m: m + x, lambda y, m: y - m),
    "TarFlow": (halves, lambda x, a, b: (x - b) * exp(-a), lambda y, a, b: y * exp(a) + b),
    "FrEIA AllInOneBlock, later": (
        halves,
        lambda x, s, t: x * exp(2 * tanh(0.1 * s / 2)) + 0.1 * t,
        lambda y, s, t: (y - 0.1 * t) * exp(-2 * tanh(0.1 * s / 2)),
    ),
    "Jet, y / factor": (halves, lambda x, b, s: (x + b) * sigmoid(s), lambda y, b, s: y / sigmoid(s) - b),
}  # fmt: skip


def written(name: str, params: Tensor, part: str) -> Map:
    split, forward, inverse_ = MAPS[name]

    def f(x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        start, stop = {"first": (0, 2), "second": (2, 4)}.get(part, (0, x.shape[1]))
        inner = x[:, start:stop]
        out = (inverse_ if inverse else forward)(inner, *split(params))
        # an elementwise map: its Jacobian is the sum's gradient
        log_slope = torch.autograd.grad(out.sum(), inner, create_graph=True)[0].log()
        if part in ("even", "odd"):
            mask = (torch.arange(x.shape[2])[:, None] + torch.arange(x.shape[3])) % 2 == (part == "odd")
            out, log_slope = torch.where(mask, out, inner), torch.where(mask, log_slope, 0)
        return torch.cat([x[:, :start], out, x[:, stop:]], 1), log_slope.flatten(1).sum(1)

    return f


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *((name, CONVENTIONS[name].get("part", "second")) for name in MAPS),
        *(("chrischute/real-nvp", part) for part in ("first", "even", "odd")),
    ],
)
def test_written_map(name: str, part: str) -> None:
    x = leaf(3, 4 if part in ("first", "second") else 2, 3, 5)  # two channels change
    params = leaf(3, 2 if CONVENTIONS[name].get("activation") == "additive" else 4, 3, 5)
    assert_same_map(ours(name, params, part=part), written(name, params, part), x, params)


def test_jet_scale_factor() -> None:
    """(x + b) m sigmoid(s) with m = 2: a constant factor is no option of the op; it goes around it."""
    x, params = leaf(3, 4, 6), leaf(3, 4, 6)
    one = torch.tensor([1.0, 1, 2, 2], dtype=torch.float64)[:, None]

    def around(x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        y, logdet = ours("Jet, y / factor", params)(x / one if inverse else x, inverse)
        return (y if inverse else y * one), logdet + (-1) ** inverse * 2 * 6 * log(2)

    def theirs(x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        (a, inner), (b, s) = halves(x), halves(params)
        scale = 2 * sigmoid(s)
        total = (-1) ** inverse * scale.log().flatten(1).sum(1)
        return torch.cat([a, inner / scale - b if inverse else (inner + b) * scale], 1), total

    assert_same_map(around, theirs, x, params)


def test_documented_table() -> None:
    """The docstring's table is the one tested here, row for row."""
    table = (affine_coupling.__doc__ or "").split("Options of other libraries")[1].split("::", 1)[1]
    rows = re.sub(r"\n {20,}", " ", table).strip().split("\n")  # a long row goes on in the next line
    documented = {}
    for row in rows:
        name, options = re.split(" {2,}", row.strip(), maxsplit=1)
        documented[name] = eval("dict()" if options == "-" else f"dict({options})", {"log": log, "a": a, "c": c})
    assert documented == CONVENTIONS
