"""Random draws as torch ops: schemas, checks, fakes; `pygen.random` documents and calls them. And `dequantize`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _ext, backends
from .._lib import FLOATS, INTEGERS, define, names, refuse_tangents
from .._seed import Source, seed_of
from ..reference import random as reference

KINDS = ("bits", "uniform", "normal", "logistic", "gumbel")

# What says where in the stream an op draws. ids: of the samples [B]; or empty, and they are first_sample, ... (its
# device is the output's either way). seed: as a signed number; None: drawn from torch's default generator by the
# kernel, which a traced graph then repeats. step: the counter's whole word, the draw in its top 8 bits.
STREAM = "Tensor ids, SymInt? seed, SymInt first_sample, SymInt step, SymInt offset"
Stream = tuple[Tensor, int | None, int, int, int]


def stream(
    batch: int,
    device: torch.device | str | None,
    generator: Source,
    first_sample: int,
    sample_ids: Tensor | None,
    step: int,
    draw: int,
    offset: int,
) -> Stream:
    """The arguments of `STREAM` from those of the public functions, for a batch of samples."""
    where = place(generator, first_sample, step, draw, offset)
    if sample_ids is None:
        return torch.empty(0, dtype=torch.int64, device=device), *where
    return given_ids(batch, device, first_sample, sample_ids), *where


def place(generator: Source, first_sample: int, step: int, draw: int, offset: int) -> tuple[int | None, int, int, int]:
    """The arguments of `STREAM` but the ids."""
    seed = None
    if generator is not None:
        seed = seed_of(generator)
        seed -= (1 << 64) if seed >= 1 << 63 else 0
    bounds = (
        ("step", step, 1 << 24), ("draw", draw, 1 << 8), ("first_sample", first_sample, 1 << 63),
        ("offset", offset, 1 << 34),
    )  # fmt: skip
    for name, value, end in bounds:
        if type(value) is not int:
            raise TypeError(f"expected {name} as an integer, got {value!r}")
        if not 0 <= value < end:
            raise ValueError(f"expected {name} in [0, {end}), got {value}")
    return seed, first_sample, (draw << 24) + step, offset


def given_ids(batch: int, device: torch.device | str | None, first_sample: int, sample_ids: Tensor) -> Tensor:
    """`sample_ids` of the public functions, if it is as they ask."""
    if not isinstance(sample_ids, Tensor):
        raise TypeError(f"expected sample_ids as an int64 tensor, got {type(sample_ids).__name__}")
    if device is not None and sample_ids.device != (on := torch.empty(0, device=device).device):
        raise ValueError(f"expected sample_ids on {on}, got {sample_ids.device}")
    if first_sample:
        raise ValueError(f"expected first_sample or sample_ids, got both ({first_sample} and a tensor)")
    if sample_ids.numel() == 0 and batch:  # which to the op means that there are none
        raise ValueError(f"expected sample_ids of shape ({batch},), got {tuple(sample_ids.shape)}")
    return sample_ids


def samples_of(ids: Tensor, first_sample: int, batch: int) -> Tensor:
    return ids if len(ids) else first_sample + torch.arange(batch, device=ids.device)


# --- checks -----------------------------------------------------------------------------------------------------------


def check_stream(op: str, size: Sequence[int], ids: Tensor, first_sample: int, step: int, offset: int) -> None:
    if len(size) == 0:
        raise ValueError(f"{op}: expected a shape of at least one dimension, which counts samples, got ()")
    if any(n < 0 for n in size):  # not min(size), which a compiler guards on
        raise ValueError(f"{op}: expected sizes >= 0, got {tuple(size)}")
    if ids.dtype != torch.int64:
        raise TypeError(f"{op}: expected sample_ids of torch.int64, got {ids.dtype}")
    if ids.dim() != 1 or ids.shape[0] not in (0, size[0]):
        raise ValueError(f"{op}: expected sample_ids of shape ({size[0]},), got {tuple(ids.shape)}")
    if not (0 <= first_sample < 1 << 63 and 0 <= step < 1 << 32):
        raise ValueError(f"{op}: expected first_sample in [0, 2^63), step in [0, 2^32), got {first_sample}, {step}")
    if first_sample + size[0] > 1 << 63:
        raise ValueError(f"{op}: expected samples below 2^63, got {size[0]} from {first_sample} on")
    n = math.prod(size[1:])
    if offset < 0 or offset + n > 1 << 34:
        raise ValueError(f"{op}: expected elements of a sample in [0, 2^34), got [{offset}, {offset + n})")


def _check_on(op: str, name: str, tensor: Tensor, ids: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    if tensor.dtype not in dtypes:
        raise TypeError(f"{op}: expected {name} of one of {names(dtypes)}, got {tensor.dtype}")
    if tensor.device != ids.device:
        raise ValueError(f"{op}: expected sample_ids on {tensor.device} as {name}, got {ids.device}")


def _check_random(
    ids: Tensor,
    seed: int | None,
    first_sample: int,
    step: int,
    offset: int,
    size: Sequence[int],
    kind: str,
    dtype: torch.dtype,
) -> None:
    if kind not in KINDS:
        raise ValueError(f"random: expected kind to be one of {KINDS}, got {kind!r}")
    allowed = (torch.int32,) if kind == "bits" else FLOATS
    if dtype not in allowed:
        raise TypeError(f"{kind}: expected dtype to be one of {names(allowed)}, got {dtype}")
    check_stream(kind, size, ids, first_sample, step, offset)


def _check_bernoulli(p: Tensor, ids: Tensor, seed: int | None, first_sample: int, step: int, offset: int) -> None:
    _check_on("bernoulli", "p", p, ids, FLOATS)
    check_stream("bernoulli", p.shape, ids, first_sample, step, offset)


def _check_categorical(
    logits: Tensor, ids: Tensor, seed: int | None, first_sample: int, step: int, offset: int
) -> None:
    _check_on("categorical", "logits", logits, ids, FLOATS)
    if logits.dim() < 2:
        raise ValueError(f"categorical: expected logits of shape [B, ..., K], got {tuple(logits.shape)}")
    if not 1 <= logits.shape[-1] < 1 << 31:
        raise ValueError(f"categorical: expected 1 <= K < 2^31 categories, got {logits.shape[-1]}")
    check_stream("categorical", logits.shape[:-1], ids, first_sample, step, offset)


def _check_dequantize(
    x: Tensor,
    noise: Tensor | None,
    ids: Tensor,
    seed: int | None,
    first_sample: int,
    step: int,
    offset: int,
    levels: int,
    scale: float,
    shift: float,
    dtype: torch.dtype,
) -> None:
    if x.dtype not in INTEGERS:
        raise TypeError(f"dequantize: expected integer levels 0 .. {levels - 1} (uint8 to int64), got {x.dtype}")
    _check_on("dequantize", "x", x, ids, INTEGERS)
    if dtype not in FLOATS:
        raise TypeError(f"dequantize: expected dtype to be one of {names(FLOATS)}, got {dtype}")
    if levels < 1:
        raise ValueError(f"dequantize: expected levels >= 1, got {levels}")
    check_stream("dequantize", x.shape, ids, first_sample, step, offset)
    if noise is not None:
        if (noise.shape, noise.dtype) != (x.shape, dtype):
            raise ValueError(
                f"dequantize: expected noise of shape {tuple(x.shape)} and {dtype}, got {tuple(noise.shape)} "
                f"and {noise.dtype}"
            )
        if noise.device != x.device:
            raise ValueError(f"dequantize: expected noise on {x.device} as x, got {noise.device}")


# --- the ops ----------------------------------------------------------------------------------------------------------


def _default_random(
    ids: Tensor,
    seed: int | None,
    first_sample: int,
    step: int,
    offset: int,
    size: Sequence[int],
    kind: str,
    dtype: torch.dtype,
) -> Tensor:
    _check_random(ids, seed, first_sample, step, offset, size, kind, dtype)
    samples = samples_of(ids, first_sample, size[0])
    return reference.random(samples, size, drawn(seed), step, offset, kind, dtype)


def drawn(seed: int | None) -> int:
    return seed_of(None) if seed is None else seed


def _default_bernoulli(p: Tensor, ids: Tensor, seed: int | None, first_sample: int, step: int, offset: int) -> Tensor:
    _check_bernoulli(p, ids, seed, first_sample, step, offset)
    samples = samples_of(ids, first_sample, len(p))
    draws = reference.bernoulli(p.detach().contiguous(), samples, drawn(seed), step, offset)
    if p.device.type == "cpu" and draws.isnan().any():
        wrong = p[draws.isnan()][0].item()
        raise ValueError(f"bernoulli: expected probabilities in [0, 1], got {wrong}")
    return draws


def _default_categorical(
    logits: Tensor, ids: Tensor, seed: int | None, first_sample: int, step: int, offset: int
) -> Tensor:
    _check_categorical(logits, ids, seed, first_sample, step, offset)
    samples = samples_of(ids, first_sample, len(logits))
    draws = reference.categorical(logits.detach(), samples, drawn(seed), step, offset)
    if logits.device.type == "cpu" and (draws < 0).any():
        wrong = logits[draws < 0][0]
        what = next((str(v) for v in (math.nan, math.inf) if (wrong.isnan() | (wrong == v)).any()), "all of them -inf")
        raise ValueError(f"categorical: expected logits below infinity, some of each row above -inf, got {what}")
    return draws


def _default_dequantize(
    x: Tensor,
    noise: Tensor | None,
    ids: Tensor,
    seed: int | None,
    first_sample: int,
    step: int,
    offset: int,
    levels: int,
    scale: float,
    shift: float,
    dtype: torch.dtype,
) -> Tensor:
    _check_dequantize(x, noise, ids, seed, first_sample, step, offset, levels, scale, shift, dtype)
    if x.device.type == "cpu" and x.numel():
        low, high = int(x.min()), int(x.max())
        if low < 0 or high >= levels:
            raise ValueError(f"dequantize: expected levels in [0, {levels}), got {low if low < 0 else high}")
    samples, seed = samples_of(ids, first_sample, len(x)), drawn(seed) if noise is None else 0
    y = reference.dequantize(x, noise, samples, seed, step, offset, levels, scale, shift, dtype)
    return y.contiguous()


def _fake_random(*args: Any) -> Any:
    _check_random(*args)
    ids, *_, size, _, dtype = args
    return ids.new_empty(size, dtype=dtype)


def _fake_bernoulli(*args: Any) -> Any:
    _check_bernoulli(*args)
    p = args[0]
    return p.new_empty(p.shape)


def _fake_categorical(*args: Any) -> Any:
    _check_categorical(*args)
    logits = args[0]
    return logits.new_empty(logits.shape[:-1], dtype=torch.int64)


def _fake_dequantize(*args: Any) -> Any:
    _check_dequantize(*args)
    x, *_, dtype = args
    return x.new_empty(x.shape, dtype=dtype)


def _save_scale(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.scale = inputs[8]


def _dequantize_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return None, grad * ctx.scale if ctx.needs_input_grad[1] else None, *[None] * 9


define(
    f"random({STREAM}, SymInt[] size, str kind, ScalarType dtype) -> Tensor",
    family="random",
    default=_default_random,
    fake=_fake_random,
    check=_check_random,
    cuda="triton",
    draws=True,
)
define(
    f"bernoulli(Tensor p, {STREAM}) -> Tensor",
    family="random",
    default=_default_bernoulli,
    fake=_fake_bernoulli,
    check=_check_bernoulli,
    cuda="triton",
    draws=True,
)
define(
    f"categorical(Tensor logits, {STREAM}) -> Tensor",
    family="random",
    default=_default_categorical,
    fake=_fake_categorical,
    check=_check_categorical,
    cuda="triton",
    draws=True,
)
define(
    f"dequantize(Tensor x, Tensor? noise, {STREAM}, SymInt levels, float scale, float shift, ScalarType dtype)"
    " -> Tensor",
    family="random",
    default=_default_dequantize,
    fake=_fake_dequantize,
    setup_context=_save_scale,
    backward=_dequantize_backward,
    check=_check_dequantize,
    cuda="triton",
    draws=True,
)


# --- calls ------------------------------------------------------------------------------------------------------------

_DEFAULTS: dict[str, Callable[..., Tensor]] = {
    "random": _default_random,
    "bernoulli": _default_bernoulli,
    "categorical": _default_categorical,
    "dequantize": _default_dequantize,
}
_OPS = {name: getattr(torch.ops.pygen, name).default for name in _DEFAULTS}
_QUICK_OPS = {name: _ext.quick(op) for name, op in _OPS.items()}


def check_tensor(op: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: expected {name} as a tensor, got {type(value).__name__}")


def batch_of(tensor: Tensor) -> int:
    return tensor.shape[0] if tensor.dim() else 0


def call(name: str, ids: Tensor, *args: Any) -> Tensor:
    """One of the ops; ids, which are among its arguments, decide about the backend."""
    if backends.forced is not None and backends.choose(name, ids) == "reference":
        return _DEFAULTS[name](*args)
    op: Callable[..., Tensor] = (_OPS if torch.compiler.is_compiling() else _QUICK_OPS)[name]
    return op(*args)


def dequantize(
    x: Tensor,
    levels: int,
    noise: Tensor | float | None = None,
    dtype: torch.dtype | None = None,
    *,
    scale: float = 1.0,
    shift: float = 0.0,
    generator: Source = None,
    first_sample: int = 0,
    sample_ids: Tensor | None = None,
    step: int = 0,
    draw: int = 0,
    offset: int = 0,
) -> Tensor:
    """(x + u) scale + shift for levels x in {0, ..., levels - 1} and noise u in [0, 1), in one pass.

    A density p over x + u bounds the probability of x (Theis, van den Oord and Bethge 2016, arXiv 1511.01844,
    section 3.1)::

        log P(x) = log int p(x + u) du >= E_u log p(x + u)

    x: [B, ...], uint8, int8, int16, int32 or int64. Levels out of range raise ValueError on the CPU; on a GPU, where
        nobody looks, they become NaN.
    noise: u, a number or a tensor of x's shape in `dtype`; None (default): uniform, from the random stream.
    dtype: of the result: float32, float64, bfloat16 or float16; None: torch's default. Arithmetic is float64 for
        float64, else float32.
    scale, shift: numbers; 1 and 0.
    generator, first_sample, sample_ids, step, draw, offset: where in the stream, see `pygen.random`.

    Noise from the stream has the 24 - log2(levels) bits that float32 holds beside a level, so that x + u is exact and
    below x + 1, and the same in float32 and float64. bfloat16 and float16 hold fewer: the result is rounded, and may be
    that of the next level.

    Returns a contiguous tensor of x's shape. Differentiable with respect to a tensor `noise` (a flow's, as in
    variational dequantisation: Ho et al. 2019, arXiv 1902.00275), any number of times. torch.autocast leaves it alone.
    Bytes moved: x in, the result out. Backends: C++ on the CPU, Triton on CUDA, else the reference.

    Raises ValueError for shapes, devices, numbers and levels (on the CPU), TypeError for dtypes and types.

    >>> import torch
    >>> from pygen.ops import dequantize
    >>> x = torch.tensor([[0, 3, 255]], dtype=torch.uint8)
    >>> v = dequantize(x, 256, scale=2 / 256, shift=-1.0, generator=0)  # [-1, 1)
    >>> bool((((v + 1) * 128).floor() == x).all())
    True
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    check_tensor("dequantize", "x", x)
    if type(levels) is not int:
        raise TypeError(f"dequantize: expected levels as an integer, got {levels!r}")
    if not 1 <= levels < 1 << 63:
        raise ValueError(f"dequantize: expected levels in [1, 2^63), got {levels}")
    for name, value in (("scale", scale), ("shift", shift)):
        if not isinstance(value, (int, float)):
            raise TypeError(f"dequantize: expected {name} as a number, got {value!r}")
    where = stream(batch_of(x), x.device, generator, first_sample, sample_ids, step, draw, offset)
    if noise is not None and not isinstance(noise, Tensor):
        if isinstance(noise, bool) or not isinstance(noise, (int, float)):
            raise TypeError(f"dequantize: expected noise as a tensor or a number, got {noise!r}")
        if not 0 <= noise < 1:
            raise ValueError(f"dequantize: expected noise in [0, 1), got {noise}")
        noise = torch.full((), noise, dtype=dtype, device=x.device).expand(x.shape)
    if noise is not None and forward_ad._current_level >= 0:
        refuse_tangents("dequantize", noise)
    return call("dequantize", where[0], x, noise, *where, levels, float(scale), float(shift), dtype)
