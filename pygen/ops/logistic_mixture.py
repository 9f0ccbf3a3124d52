"""Discretised logistic mixtures: the public functions, their torch ops, fakes and gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import backends
from .._lib import FLOATS, INTEGERS, define, layout, names, not_differentiable, once_differentiable, refuse_tangents
from .._options import Options
from .._seed import Source
from ..reference import logistic_mixture as reference
from ..reference import random as reference_random
from .random import STREAM, batch_of, check_stream, check_tensor, drawn, samples_of, stream

LAYOUTS = ("openai", "flax", "tfp")
FORMS = ("exact", "openai")


# --- options ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MixtureOptions(Options):
    """How parameters lie; csrc/cpu/logistic_mixture.cpp reads the same."""

    levels: int = 256
    layout: str = "openai"
    autoregressive: bool = False

    @property
    def last(self) -> int:
        return self.levels - 1


@dataclass(frozen=True)
class NllOptions(MixtureOptions):
    """Options of `logistic_mixture_nll`."""

    form: str = "exact"


@dataclass(frozen=True)
class SampleOptions(MixtureOptions):
    """Options of `logistic_mixture_sample`."""

    channels: int = 3
    temperature: float = 1.0
    scale_temperature: float = 1.0
    quantized: bool = True


def _common(op: str, levels: Any, layout: Any, autoregressive: Any, channels: int) -> dict[str, Any]:
    """The options that both functions have, checked."""
    if type(levels) is not int:
        raise TypeError(f"{op}: expected levels as an integer, got {levels!r}")
    if not 2 <= levels <= 65536:
        raise ValueError(f"{op}: expected levels in [2, 65536], got {levels}")
    if layout not in LAYOUTS:
        raise ValueError(f"{op}: expected layout to be one of {LAYOUTS}, got {layout!r}")
    if autoregressive is None:
        autoregressive = channels == 3
    if not isinstance(autoregressive, bool):
        raise TypeError(f"{op}: expected autoregressive to be a bool or None, got {autoregressive!r}")
    return {"levels": levels, "layout": layout, "autoregressive": autoregressive}


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_parameters(op: str, parameters: Tensor, channels: int, options: MixtureOptions) -> None:
    if parameters.dtype not in FLOATS:
        raise TypeError(f"{op}: expected parameters of one of {names(FLOATS)}, got {parameters.dtype}")
    if parameters.dim() != 4:
        raise ValueError(f"{op}: expected parameters of shape [B, P, H, W], got {tuple(parameters.shape)}")
    own = options.autoregressive
    if own and options.layout != "tfp" and channels not in (1, 3):
        raise ValueError(
            f"{op}: expected 1 or 3 channels in layout {options.layout!r} when autoregressive, got {channels} "
            "(layout 'tfp' takes any number)"
        )
    if channels < 1 or not reference.mixtures_of(parameters.shape[1], channels, own):
        each = 1 + 2 * channels + reference.pairs(channels, own)
        raise ValueError(
            f"{op}: expected a positive multiple of {each} parameters for {channels} "
            f"{'autoregressive' if own else 'independent'} channels, got {parameters.shape[1]}"
        )


def _check_nll(x: Tensor, parameters: Tensor, options: NllOptions, record: bool) -> None:
    op = "logistic_mixture_nll"
    if x.dtype not in (*FLOATS, *INTEGERS):
        raise TypeError(f"{op}: expected x of one of {names((*FLOATS, *INTEGERS))}, got {x.dtype}")
    if x.dim() != 4:
        raise ValueError(f"{op}: expected x of shape [B, C, H, W], got {tuple(x.shape)}")
    if options.form not in FORMS:
        raise ValueError(f"{op}: expected form to be one of {FORMS}, got {options.form!r}")
    _check_parameters(op, parameters, x.shape[1], options)
    if (x.shape[0], *x.shape[2:]) != (parameters.shape[0], *parameters.shape[2:]):
        raise ValueError(
            f"{op}: expected parameters [B, P, H, W] with B, H, W as in x {tuple(x.shape)}, got "
            f"{tuple(parameters.shape)}"
        )
    if x.device != parameters.device:
        raise ValueError(f"{op}: expected parameters on {x.device} as x, got {parameters.device}")


def _check_backward(grad: Tensor, slope: Tensor, nll: Tensor) -> None:
    """Raises for what the backward op does not admit; autograd gives it nothing of the kind."""
    op = "logistic_mixture_nll_backward"
    expected = (slope.shape[0], *slope.shape[2:]) if slope.dim() == 4 else ("B", "H", "W")
    if slope.dim() != 4 or grad.shape != expected or nll.shape != expected:
        raise ValueError(
            f"{op}: expected grad and nll {expected} and a slope [B, P, H, W], got {tuple(grad.shape)}, "
            f"{tuple(nll.shape)} and {tuple(slope.shape)}"
        )
    if grad.dtype != torch.promote_types(slope.dtype, torch.float32):
        raise TypeError(f"{op}: expected grad of float32 or wider for a slope of {slope.dtype}, got {grad.dtype}")


def _check_sample(
    parameters: Tensor,
    noise: Tensor | None,
    ids: Tensor,
    seed: int | None,
    first_sample: int,
    step: int,
    offset: int,
    options: SampleOptions,
) -> None:
    op = "logistic_mixture_sample"
    _check_parameters(op, parameters, options.channels, options)
    size = _noise_size(parameters, options.channels)
    check_stream(op, (size[0], *size[2:], size[1]), ids, first_sample, step, offset)
    if ids.device != parameters.device:
        raise ValueError(f"{op}: expected sample_ids on {parameters.device} as parameters, got {ids.device}")
    if noise is not None:
        if noise.dtype not in FLOATS:
            raise TypeError(f"{op}: expected noise of one of {names(FLOATS)}, got {noise.dtype}")
        if noise.shape != size:
            raise ValueError(f"{op}: expected noise of shape {tuple(size)}, got {tuple(noise.shape)}")
        if noise.device != parameters.device:
            raise ValueError(f"{op}: expected noise on {parameters.device} as parameters, got {noise.device}")


def _noise_size(parameters: Tensor, channels: int) -> tuple[int, ...]:
    batch, _, height, width = parameters.shape
    return batch, 1 + channels, height, width


# --- the ops ----------------------------------------------------------------------------------------------------------


def _keywords(options: NllOptions) -> dict[str, Any]:
    return {k: getattr(options, k) for k in ("levels", "layout", "autoregressive", "form")}


def _default_nll(x: Tensor, parameters: Tensor, options: NllOptions, record: bool) -> tuple[Tensor, Tensor]:
    _check_nll(x, parameters, options, record)
    if x.device.type == "cpu" and reference.levels_of(x[~x.isnan()], options.levels).isnan().any():
        low, high = x.min().item(), x.max().item()
        first, last = (-1, 1) if x.is_floating_point() else (0, options.last)
        wrong = low if low < first else high
        raise ValueError(f"logistic_mixture_nll: expected x in [{first}, {last}], got {wrong}")
    nll = reference.logistic_mixture_nll(x, parameters, **_keywords(options)).contiguous()
    if not record:
        return nll, parameters.new_empty(0)
    slope = reference.logistic_mixture_slope(x, parameters, **_keywords(options))
    return nll, slope.contiguous(memory_format=layout(parameters))


def _fake_nll(x: Tensor, parameters: Tensor, options: NllOptions, record: bool) -> tuple[Tensor, Tensor]:
    _check_nll(x, parameters, options, record)
    wide = torch.promote_types(parameters.dtype, torch.float32)
    nll = parameters.new_empty((x.shape[0], *x.shape[2:]), dtype=wide)
    if not record:
        return nll, parameters.new_empty(0)
    slope = torch.empty(
        parameters.shape, dtype=parameters.dtype, device=parameters.device, memory_format=layout(parameters)
    )
    return nll, slope


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    nll, slope = output
    ctx.set_materialize_grads(False)  # no zeros in the shape of slope
    ctx.mark_non_differentiable(slope)
    ctx.record = inputs[3]
    ctx.save_for_backward(slope, nll)


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 4
    if not ctx.record:
        raise RuntimeError("logistic_mixture_nll: expected record=True for a call that is differentiated, got False")
    slope, nll = ctx.saved_tensors
    return None, torch.ops.pygen.logistic_mixture_nll_backward(grad, slope, nll), None, None


def _default_backward(grad: Tensor, slope: Tensor, nll: Tensor) -> Tensor:
    _check_backward(grad, slope, nll)
    return (slope.to(grad.dtype) * grad[:, None]).to(slope.dtype).contiguous(memory_format=layout(slope))


def _fake_backward(grad: Tensor, slope: Tensor, nll: Tensor) -> Tensor:
    _check_backward(grad, slope, nll)
    return torch.empty(slope.shape, dtype=slope.dtype, device=slope.device, memory_format=layout(slope))


def _default_sample(
    parameters: Tensor,
    noise: Tensor | None,
    ids: Tensor,
    seed: int | None,
    first_sample: int,
    step: int,
    offset: int,
    options: SampleOptions,
) -> Tensor:
    _check_sample(parameters, noise, ids, seed, first_sample, step, offset, options)
    if noise is None:
        batch, each, height, width = _noise_size(parameters, options.channels)
        samples = samples_of(ids, first_sample, batch)
        size = (batch, height, width, each)  # a pixel's numbers lie together
        numbers = reference_random.random(samples, size, drawn(seed), step, offset, "uniform", torch.float32)
        noise = numbers.movedim(-1, 1)
    x = reference.logistic_mixture_sample(
        parameters.detach(),
        noise,
        channels=options.channels,
        levels=options.levels,
        layout=options.layout,
        autoregressive=options.autoregressive,
        temperature=options.temperature,
        scale_temperature=options.scale_temperature,
        quantized=options.quantized,
    )
    return x.contiguous()


def _fake_sample(*args: Any) -> Tensor:
    _check_sample(*args)
    parameters: Tensor = args[0]
    batch, each, height, width = _noise_size(parameters, args[-1].channels)
    wide = torch.promote_types(parameters.dtype, torch.float32)
    return parameters.new_empty((batch, each - 1, height, width), dtype=wide)


define(
    "logistic_mixture_nll(Tensor x, Tensor parameters, str options, bool record) -> (Tensor nll, Tensor slope)",
    family="logistic_mixture",
    default=_default_nll,
    fake=_fake_nll,
    setup_context=_setup_context,
    backward=_backward,
    check=_check_nll,
    options=NllOptions,
    cuda="triton",
)
# nll takes no part: through it a second derivative finds its way here, and raises.
define(
    "logistic_mixture_nll_backward(Tensor grad, Tensor slope, Tensor nll) -> Tensor",
    family="logistic_mixture",
    default=_default_backward,
    fake=_fake_backward,
    backward=once_differentiable("logistic_mixture_nll_backward"),
    check=_check_backward,
    cuda="triton",
)
define(
    f"logistic_mixture_sample(Tensor parameters, Tensor? noise, {STREAM}, str options) -> Tensor",
    family="logistic_mixture",
    default=_default_sample,
    fake=_fake_sample,
    check=_check_sample,
    options=SampleOptions,
    cuda="triton",
    draws=True,
)


# --- the public functions ---------------------------------------------------------------------------------------------


def logistic_mixture_nll(
    x: Tensor,
    parameters: Tensor,
    *,
    levels: int = 256,
    layout: str = "openai",
    autoregressive: bool | None = None,
    form: str = "exact",
) -> Tensor:
    """Negative log-likelihood of pixels under discretised logistic mixtures, in nats, with its gradient in one pass.

    With K components, L levels at -1, -1 + 2 w, ..., 1, w = 1 / (L - 1), and log-scales at least -7::

        mu_ck = m_ck + sum_{j < c} tanh(t_cjk) x_j                          the true x_j; no sum if not autoregressive
        a     = (x_c - mu_ck + w) / s_ck        b = (x_c - mu_ck - w) / s_ck
        P_ck  = [x_c < 1] sigmoid(a), [x_c > -1] sigmoid(-b), [both] 1 - e^(b - a), multiplied
        nll   = -log sum_k softmax(logits)_k prod_c P_ck

    P is the logistic distribution's mass on the bin of a level, the outer bins reaching to infinity: it is sigmoid(a) -
    sigmoid(b) without the cancellation, and sums to 1 over the levels. PixelCNN++ (Salimans, Karpathy, Chen and Kingma
    2017, arXiv 1701.05517, equations 1 to 3).

    x: [B, C, H, W], levels 0, ..., L - 1 as integers (uint8, int8 to int64), or numbers in [-1, 1] (float32, float64,
        bfloat16, float16), of which each counts as the nearest level.
    parameters: [B, P, H, W], float32, float64, bfloat16 or float16, P = K (1 + 2 C + N) with N = C (C - 1) / 2 if
        autoregressive, else 0: K logits, then as `layout` says.
    levels: L, 2 to 65536; 256. 2^n for n bits.
    layout: how means m, log-scales and coefficients t (before their tanh) lie behind the logits, slowest first; the
        coefficients (c, j) are counted (1, 0), (2, 0), (2, 1), (3, 0), ...
        "openai" (default): (channel, kind, mixture), the coefficients of three channels as a third kind.
        "flax": (channel, mixture, kind), as in Flax's example of PixelCNN++. Its network gives s with scale
            1 / softplus(s): the log-scale is -log softplus(s).
        "tfp": (kind, mixture, channel), the coefficients (mixture, pair), for any number of channels, as the
            parameters of TensorFlow Probability's PixelCNN follow each other. That takes scales, not their logarithms.
    autoregressive: whether channels depend on those before; None (default): three do. "openai" and "flax" hold
        coefficients for three channels only.
    form: "exact" (default), or "openai", to compare with published numbers: log(sigmoid(a) - sigmoid(b)) where that
        difference is above 1e-5, elsewhere the log-density at x plus log 2 w, and one sigmoid at the outer levels. With
        narrow scales it is off by up to 2 nats a channel, and does not sum to 1.

    Returns nll [B, H, W], float32 (float64 for float64 parameters), contiguous; sum it over pixels, in float64 where
    there are many, and divide by C H W log 2 for bits per dimension. Arithmetic is in the result's dtype; x - mu is
    taken without the rounding of x, which a scale of e^-7 magnifies a thousandfold. Where x or a parameter is NaN, nll
    is NaN in that pixel and nowhere else. The kernels' results are right where they can be represented, and the same
    bits for any number of threads and in any batch.

    Differentiable once with respect to parameters; twice raises NotImplementedError, except under
    `pygen.backends.use("reference")`, which PyTorch differentiates. Log-scales below -7 have no gradient. x has none
    either: it must not require grad. Where a gradient is recorded, the forward writes the derivative of each pixel's
    nll, the one tensor of parameters' size that is kept (parameters are not), and the backward multiplies it by the
    upstream gradient: half the arithmetic of a backward that starts anew. torch.autocast leaves the op alone.

    Bytes moved: forward, x and parameters in, nll out, and with a gradient the derivative out; backward, that and the
    upstream gradient in, the gradient out. Backends: C++ (AVX-512, AVX2, baseline) on the CPU, Triton on CUDA, else the
    reference.

    Raises ValueError for shapes, devices, options, and x out of range (on the CPU; on a GPU, where nobody looks, its
    pixel becomes NaN), TypeError for dtypes and types, NotImplementedError for x that requires grad.

    >>> import torch
    >>> from pygen.ops import logistic_mixture_nll
    >>> x = torch.randint(256, (16, 3, 8, 8))
    >>> parameters = torch.randn(16, 100, 8, 8, requires_grad=True)  # 10 components
    >>> nll = logistic_mixture_nll(x, parameters)
    >>> nll.sum((1, 2)).mean().backward()
    >>> nll.shape
    torch.Size([16, 8, 8])
    """
    op = "logistic_mixture_nll"
    check_tensor(op, "x", x)
    check_tensor(op, "parameters", parameters)
    if x.requires_grad and torch.is_grad_enabled():
        not_differentiable(f"{op} in x", "detach x", x)
    if forward_ad._current_level >= 0:
        refuse_tangents(op, x, parameters)
    channels = x.shape[1] if x.dim() == 4 else 0
    options = NllOptions(**_common(op, levels, layout, autoregressive, channels), form=form)
    if backends.forced is not None and backends.choose(op, parameters) == "reference":
        _default_nll(x.detach(), parameters.detach(), options, False)  # raises
        return reference.logistic_mixture_nll(x, parameters, **_keywords(options)).contiguous()
    record = torch.is_grad_enabled() and parameters.requires_grad
    nll: Tensor = torch.ops.pygen.logistic_mixture_nll(x, parameters, str(options), record)[0]
    return nll


def logistic_mixture_sample(
    parameters: Tensor,
    *,
    channels: int,
    levels: int = 256,
    layout: str = "openai",
    autoregressive: bool | None = None,
    temperature: float = 1.0,
    scale_temperature: float = 1.0,
    quantized: bool = True,
    noise: Tensor | None = None,
    generator: Source = None,
    first_sample: int = 0,
    sample_ids: Tensor | None = None,
    step: int = 0,
    draw: int = 0,
    offset: int = 0,
) -> Tensor:
    """Draws pixels from discretised logistic mixtures, the distributions of `logistic_mixture_nll`.

    With uniforms u_0, ..., u_C of each pixel, in [0, 1)::

        k   = the first component up to which softmax(logits / temperature) sums to more than u_0
        v_c = u_c within [1e-5, 1 - 1e-5]
        x_c = mu_ck + s_ck scale_temperature log(v_c / (1 - v_c))                 mu_ck of the x_j drawn before, j < c
        x_c = the level next to x_c within [-1, 1]

    Salimans et al. 2017 (arXiv 1701.05517, section 2.1); peers feed x_j on unrounded, which no training has shown them.

    parameters: [B, P, H, W], float32, float64, bfloat16 or float16; levels, layout, autoregressive: see
        `logistic_mixture_nll`.
    channels: C, which P does not tell.
    temperature: of the choice of a component, >= 0; 1. 0 takes the likeliest one (of several, as if equally likely).
    scale_temperature: of its logistic distribution, >= 0; 1. 0 takes its mean.
    quantized: False leaves x between levels (within [-1, 1]), also where later channels depend on it; True.
    noise: the uniforms, [B, 1 + C, H, W], any of the dtypes, used as float32; None (default): from the random stream,
        those of pygen.random.uniform((B, H, W, 1 + C), ...), so that pixel p of a sample drawn alone has offset
        p (1 + C).
    generator, first_sample, sample_ids, step, draw, offset: where in the stream, see `pygen.random`.

    Returns x [B, C, H, W], contiguous, float32 (float64 for float64 parameters). All arithmetic is float32's additions,
    multiplications and divisions, in one order: the same bits on every backend, whatever is beside a pixel in a batch.
    Where a logit, what is drawn from, or noise is NaN, x is NaN in that pixel, from that channel on.

    Not differentiable: it raises for parameters that require grad where gradients are recorded, so detach them.
    torch.autocast changes nothing. Bytes moved: parameters (and noise) in, x out. Backends: C++ on the CPU, Triton on
    CUDA, else the reference.

    Raises ValueError for shapes, devices, numbers and options, TypeError for dtypes and types, NotImplementedError for
    parameters that require grad.

    >>> import torch
    >>> from pygen.ops import logistic_mixture_sample
    >>> parameters = torch.randn(16, 100, 8, 8)
    >>> x = logistic_mixture_sample(parameters, channels=3, generator=0)
    >>> pixel = parameters[5:6, :, 2:3, 1:2]
    >>> one = logistic_mixture_sample(pixel, channels=3, generator=0, first_sample=5, offset=17 * 4)
    >>> torch.equal(x[5, :, 2, 1], one[0, :, 0, 0])
    True
    """
    op = "logistic_mixture_sample"
    check_tensor(op, "parameters", parameters)
    if noise is not None:
        check_tensor(op, "noise", noise)
    not_differentiable(op, "detach parameters", parameters, *(() if noise is None else (noise,)))
    if type(channels) is not int:
        raise TypeError(f"{op}: expected channels as an integer, got {channels!r}")
    numbers = {"temperature": temperature, "scale_temperature": scale_temperature}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{op}: expected {name} as a number, got {value!r}")
        if not 0 <= value < math.inf:
            raise ValueError(f"{op}: expected {name} >= 0 and finite, got {value}")
    if not isinstance(quantized, bool):
        raise TypeError(f"{op}: expected quantized to be a bool, got {quantized!r}")
    common = _common(op, levels, layout, autoregressive, channels)
    options = SampleOptions(
        **common,
        channels=channels,
        temperature=float(temperature),
        scale_temperature=float(scale_temperature),
        quantized=quantized,
    )
    where = stream(batch_of(parameters), parameters.device, generator, first_sample, sample_ids, step, draw, offset)
    if backends.forced is not None and backends.choose(op, parameters) == "reference":
        return _default_sample(parameters, noise, *where, options)
    x: Tensor = torch.ops.pygen.logistic_mixture_sample(parameters, noise, *where, str(options))
    return x
