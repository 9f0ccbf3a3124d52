"""Affine coupling: Glow's form over the sizes of the goals, and every peer's convention at a middle size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops, reference
from .cases import Case, Function, Inputs, Problem, Tensors, Work

# --- eager: the maps as their users write them; of two ways equally natural, the runner takes the faster --------------


def total(log_scale: Tensor) -> Tensor:
    """Per-sample sum; float32 for half precision, as a careful user asks for."""
    return log_scale.sum(tuple(range(1, log_scale.dim())), dtype=torch.promote_types(log_scale.dtype, torch.float32))


def glow(x: Tensor, params: Tensor) -> Tensors:
    x1, x2 = x.chunk(2, 1)
    s, t = params.chunk(2, 1)
    scale = torch.sigmoid(s + 2)
    return torch.cat([x1, (x2 + t) * scale], 1), total(scale.log())


def glow_logsigmoid(x: Tensor, params: Tensor) -> Tensors:
    x1, x2 = x.chunk(2, 1)
    s, t = params.chunk(2, 1)
    s = s + 2
    return torch.cat([x1, (x2 + t) * torch.sigmoid(s)], 1), total(F.logsigmoid(s))


def glow_interleaved(x: Tensor, params: Tensor) -> Tensors:
    x1, x2 = x.chunk(2, 1)
    t, s = params[:, 0::2], params[:, 1::2]
    scale = torch.sigmoid(s + 2)
    return torch.cat([x1, (x2 + t) * scale], 1), total(scale.log())


def glow_inverse(y: Tensor, params: Tensor) -> Tensors:
    y1, y2 = y.chunk(2, 1)
    s, t = params.chunk(2, 1)
    scale = torch.sigmoid(s + 2)
    return torch.cat([y1, y2 / scale - t], 1), -total(scale.log())


def exponential(x: Tensor, params: Tensor) -> Tensors:
    x1, x2 = x.chunk(2, 1)
    s, t = params.chunk(2, 1)
    return torch.cat([x1, x2 * s.exp() + t], 1), total(s)


def tanh_exponential(x: Tensor, params: Tensor) -> Tensors:
    x1, x2 = x.chunk(2, 1)
    s, t = params.chunk(2, 1)
    s = torch.tanh(s)
    return torch.cat([x1, x2 * s.exp() + t], 1), total(s)


def learned_tanh(x: Tensor, params: Tensor, gain: Tensor) -> Tensors:
    x1, x2 = x.chunk(2, 1)
    s, t = params.chunk(2, 1)
    s = gain[:, None, None] * torch.tanh(s)
    return torch.cat([x1, x2 * s.exp() + t], 1), total(s)


def atan_exponential(x: Tensor, params: Tensor) -> Tensors:
    x1, x2 = x.chunk(2, 1)
    s, t = params.chunk(2, 1)
    s = 1.272 * torch.atan(s)
    return torch.cat([x1, x2 * s.exp() + t], 1), total(s)


def normflows_density(x: Tensor, params: Tensor) -> Tensors:
    x1, x2 = x.chunk(2, 1)
    t, s = params[:, 0::2], params[:, 1::2]
    scale = torch.sigmoid(s + 2)
    return torch.cat([x1, (x2 - t) * scale], 1), total(scale.log())


def nflows_index(x: Tensor, params: Tensor, index: Tensor) -> Tensors:
    t, s = params.chunk(2, 1)
    scale = torch.sigmoid(s + 2) + 1e-3
    return x.index_copy(1, index, x.index_select(1, index) * scale + t), total(scale.log())


def checkerboard(x: Tensor, params: Tensor, gain: Tensor, mask: Tensor) -> Tensors:
    s, t = params.chunk(2, 1)
    s = gain[:, None, None] * torch.tanh(s) * mask
    return x * s.exp() + t * mask, total(s)


# --- peers: their own classes, with a net that returns the parameters it was handed -----------------------------------


class Given(nn.Module):
    """Stands where a peer wants its net."""

    params: Tensor

    def forward(self, *_: Any) -> Tensor:
        return self.params


def nflows(mask: Tensor, device: torch.device) -> Function:
    from nflows.transforms.coupling import AffineCouplingTransform

    net = Given()
    transform = AffineCouplingTransform(mask, lambda *_: net).to(device)

    def call(x: Tensor, params: Tensor) -> Tensors:
        net.params = params
        y, logdet = transform(x)
        return y, logdet

    return call


def normflows(device: torch.device) -> Function:
    from normflows.flows import AffineCouplingBlock

    net = Given()
    block = AffineCouplingBlock(net, scale_map="sigmoid", split_mode="channel").to(device)

    def call(x: Tensor, params: Tensor) -> Tensors:
        net.params = params
        y, logdet = block.inverse(x)  # its inverse is the density direction
        return y, logdet

    return call


def freia(shape: tuple[int, ...], device: torch.device) -> Function:
    from FrEIA.modules import AffineCouplingOneSided

    net = Given()
    block = AffineCouplingOneSided([shape[1:]], subnet_constructor=lambda *_: net).to(device)

    def call(x: Tensor, params: Tensor) -> Tensors:
        net.params = params
        (y,), logdet = block((x,))
        return y, logdet

    return call


# --- cases ------------------------------------------------------------------------------------------------------------


def work(x: Tensor, params: Tensor, memory_efficient: bool) -> dict[str, Work]:
    """Each tensor once: forward reads x and params and writes y; backward reads grad_y, the raw scale and the changed
    half of x or y (and the shift where x is recovered from y), and writes grad_x and grad_params."""
    changed = params.numel() // 2
    fwd = Work((2 * x.numel() + params.numel()) * x.element_size())
    bwd = Work((2 * x.numel() + params.numel() + (3 if memory_efficient else 2) * changed) * x.element_size())
    return {"fwd": fwd, "bwd": bwd, "full": fwd + bwd}


def case(
    name: str,
    shape: tuple[int, ...],
    options: dict[str, Any],
    *eager: Function,
    constants: dict[str, Tensor] | None = None,
    peers: dict[str, Callable[[torch.device], Function]] | None = None,
    all_channels: bool = False,
    gain: bool = False,
    layout: str = "contiguous",
    dtype: torch.dtype = torch.float32,
    **of_case: Any,
) -> Case:
    """A case of x [B, C, ...] and params [B, C, ...], or [B, 2 C, ...] with all_channels, drawn from a normal.

    options: of `affine_coupling`. constants: tensors that the eager functions take as keywords.
    gain: a learnable scale of the squashed log-scale, a third input.
    """
    channels = shape[1]
    changed = channels if all_channels else channels // 2

    def build(device: torch.device) -> Problem:
        generator = torch.Generator(device).manual_seed(0)
        memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format

        def normal(*size: int) -> Tensor:
            values = torch.randn(size, generator=generator, device=device, dtype=dtype)
            return values.to(memory_format=memory_format)

        def moved(tensors: dict[str, Any]) -> dict[str, Any]:
            return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in tensors.items()}

        x, params = normal(*shape), normal(shape[0], 2 * changed, *shape[2:])
        inputs = (x, params, normal(changed) / 4 + 1) if gain else (x, params)
        ours: Function = partial(ops.affine_coupling, **moved(options))
        truth: Function = partial(reference.affine_coupling, **moved(options))
        return Problem(
            inputs=Inputs(inputs, layout),
            ours=with_gain(ours) if gain else ours,
            eager={f.__name__: partial(f, **moved(constants or {})) for f in eager},
            reference=with_gain(truth) if gain else truth,
            work=work(x, params, bool(options.get("memory_efficient"))),
            peers={k: partial(factory, device) for k, factory in (peers or {}).items()},
        )

    return Case("coupling", f"{name}-{'x'.join(map(str, shape))}", build, dtype, **of_case)


def with_gain(function: Function) -> Function:
    return lambda x, params, gain: function(x, params, gain=gain)


GLOW = {"activation": "sigmoid", "offset": 2.0, "shift": "before"}
GLOW_INTERLEAVED = GLOW | {"order": "ts", "interleaved": True}
EXP = {"activation": "exp"}
NFLOWS = {"activation": "sigmoid", "offset": 2.0, "eps": 1e-3, "order": "ts"}
MIDDLE, BOARD = (64, 48, 16, 16), (64, 12, 32, 32)

CASES = (
    # Glow's form, 24 KB to 50 MB a tensor: the sizes of the goals
    case("glow", (8, 12, 8, 8), GLOW, glow, glow_logsigmoid, modes=("fwd", "bwd", "full", "call"), quick=True),
    case("glow-grad", (8, 12, 8, 8), GLOW, glow, glow_logsigmoid, modes=("call",), call_grad=True),
    case("glow", BOARD, GLOW, glow, glow_logsigmoid),
    case("glow", MIDDLE, GLOW, glow, glow_logsigmoid, quick=True),
    case("glow", (32, 48, 32, 32), GLOW, glow, glow_logsigmoid),
    case("glow", (16, 192, 64, 64), GLOW, glow, glow_logsigmoid),
    # the same map in other layouts, dtypes and directions
    case("glow-channels_last", MIDDLE, GLOW, glow, glow_logsigmoid, layout="channels_last"),
    case("glow-interleaved", MIDDLE, GLOW_INTERLEAVED, glow_interleaved),
    case("glow-bfloat16", MIDDLE, GLOW, glow, glow_logsigmoid, dtype=torch.bfloat16),
    case("glow-float64", MIDDLE, GLOW, glow, glow_logsigmoid, dtype=torch.float64),
    case("glow-inverse", MIDDLE, GLOW | {"inverse": True}, glow_inverse),
    # other conventions
    case("exp", MIDDLE, EXP, exponential),
    case("exp-memory", MIDDLE, EXP | {"memory_efficient": True}, exponential),
    case("tanh", (4096, 2), EXP | {"squash": "tanh"}, tanh_exponential),
    case("learned-tanh", MIDDLE, EXP | {"squash": "tanh"}, learned_tanh, gain=True),
    case(
        "checkerboard",
        BOARD,
        EXP | {"squash": "tanh", "part": "even"},
        checkerboard,
        constants={"mask": ((torch.arange(32)[:, None] + torch.arange(32)) % 2 == 0).float()},
        all_channels=True,
        gain=True,
    ),
    # peers, each in its own convention
    *(
        case(
            "nflows",
            shape,
            NFLOWS | {"part": torch.arange(1, shape[1], 2)},
            nflows_index,
            constants={"index": torch.arange(1, shape[1], 2)},
            peers={"nflows": partial(nflows, torch.arange(shape[1]) % 2)},
        )
        for shape in (MIDDLE, (512, 64))
    ),
    case(
        "normflows",
        MIDDLE,
        GLOW_INTERLEAVED | {"shift_scale": -1.0},
        normflows_density,
        peers={"normflows": normflows},
    ),
    case(
        "freia",
        MIDDLE,
        EXP | {"squash": "atan", "gain": 1.272},
        atan_exponential,
        peers={"FrEIA": partial(freia, MIDDLE)},
    ),
)
