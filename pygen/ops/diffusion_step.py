"""Steps of diffusion samplers: the public function, its torch op, fakes and gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _ext, backends
from .._lib import FLOATS, define, layout, names, not_differentiable, once_differentiable, refuse_tangents
from .._options import Options
from .._seed import Source
from ..reference.diffusion_step import Each, arithmetic, diffusion_step_backward, result_dtypes, width
from ..reference.diffusion_step import diffusion_step as reference
from ._diffusion import PIXELS, check_draws, check_index, check_table, check_tensors, noise_of, row_or_index, stream_of

OP = "diffusion_step"
MOST_OUTPUTS, MOST_HISTORY, MOST_ROWS = 4, 4, 3
MASKS = (*FLOATS, torch.bool)


@dataclass(frozen=True)
class StepOptions(Options):
    """Options of `diffusion_step` that are no tensors; csrc/cpu/diffusion_step.cpp reads the same.

    dtypes: names of the results', with commas; "": the default.
    """

    rows: int = 1
    copies: int = 0
    draws: bool = False
    dtypes: str = ""

    @property
    def results(self) -> int:
        return self.rows + (self.copies > 0)

    def dtypes_for(self, x: Tensor) -> Sequence[torch.dtype]:
        given = [getattr(torch, name) for name in self.dtypes.split(",") if name]
        return result_dtypes(x, self.results, given)


# --- checks -----------------------------------------------------------------------------------------------------------


def _check(
    x: Tensor,
    outputs: Sequence[Tensor],
    history: Sequence[Tensor],
    table: Tensor,
    index: Tensor | None,
    row: int,
    noise: Tensor | None,
    rescale: Tensor | None,
    threshold: Tensor | None,
    log_std: Tensor | None,
    known: Tensor | None,
    known_mask: Tensor | None,
    known_noise: Tensor | None,
    ids: Tensor | None,
    seed: int | None,
    first_sample: int,
    step: int,
    options: StepOptions,
) -> None:
    if x.dim() < 1:
        raise ValueError(f"{OP}: expected x of shape [B, ...], got {tuple(x.shape)}")
    bounds = (
        ("outputs", len(outputs), 0, MOST_OUTPUTS), ("tensors of history", len(history), 0, MOST_HISTORY),
        ("rows", options.rows, 1, MOST_ROWS), ("copies", options.copies, 0, math.inf),
    )  # fmt: skip
    for name, count, least, most in bounds:
        if not least <= count <= most:
            raise ValueError(f"{OP}: expected {least} to {most} {name}, got {count}")
    of_x, batch = ("x", x), tuple(x.shape[:1])
    check_tensors(OP, of_x, x.shape, PIXELS, x=x, known=known)
    check_tensors(OP, of_x, x.shape, FLOATS, noise=noise, log_std=log_std, known_noise=known_noise)
    check_tensors(OP, of_x, x.shape, FLOATS, **{f"output {i}": t for i, t in enumerate(outputs)})
    check_tensors(OP, of_x, x.shape, FLOATS, **{f"history {i}": t for i, t in enumerate(history)})
    check_tensors(OP, of_x, x.shape, MASKS, known_mask=known_mask)
    check_tensors(OP, of_x, batch, FLOATS, rescale=rescale, threshold=threshold)
    if (known is None) != (known_mask is None):
        have = "known alone" if known_mask is None else "known_mask alone"
        raise ValueError(f"{OP}: expected known and known_mask, or neither, got {have}")
    if known_noise is not None and known is None:
        raise ValueError(f"{OP}: expected known_noise beside known, got it alone")
    if noise is not None and options.draws:
        raise ValueError(f"{OP}: expected noise or draws, got both")
    columns = width(len(outputs), len(history), options.rows)
    check_table(OP, of_x, table, index, row, columns, "these outputs, history and rows")
    given = options.dtypes.split(",") if options.dtypes else []
    if len(given) not in (0, options.results):
        raise ValueError(f"{OP}: expected {options.results} dtypes, one for each result, got {len(given)}")
    for name in given:
        if name not in names(FLOATS).split(" or "):
            raise TypeError(f"{OP}: expected dtypes among {names(FLOATS)}, got {name}")
    if options.draws:
        check_draws(OP, of_x, table, index, ids, first_sample, step)


# --- the op -----------------------------------------------------------------------------------------------------------


def _default(*args: Any) -> list[Tensor]:
    _check(*args)
    x, outputs, history, table, index, row, noise, *others, ids, seed, first_sample, step, options = args
    check_index(OP, x, table, index)
    if options.draws:
        noise = noise_of(x, index, row, ids, seed, first_sample, step)
    results = reference(
        x,
        outputs,
        table,
        row if index is None else index,
        rows=options.rows,
        history=history,
        noise=noise,
        **dict(zip(_OTHERS, others, strict=True)),
        copies=options.copies,
        dtypes=options.dtypes_for(x),
    )
    return [y.contiguous(memory_format=layout(x)) for y in results]


_OTHERS = ("rescale", "threshold", "log_std", "known", "known_mask", "known_noise")


def _fake(*args: Any) -> list[Tensor]:
    _check(*args)
    x, options = args[0], args[-1]

    def empty(batch: int, dtype: torch.dtype) -> Tensor:
        size = (batch, *x.shape[1:])
        return torch.empty(size, dtype=dtype, device=x.device, memory_format=layout(x))

    batches = [x.shape[0]] * options.rows + ([options.copies * x.shape[0]] if options.copies else [])
    return [empty(batch, dtype) for batch, dtype in zip(batches, options.dtypes_for(x), strict=True)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, outputs, history, table, index, ctx.row, noise, *others, _, _, _, _, options = inputs
    rescale, threshold, log_std, known, known_mask, known_noise = others
    ctx.options, parsed = options, StepOptions.parse(options)
    ctx.dtype = arithmetic(x, outputs, parsed.dtypes_for(x))
    with torch.enable_grad():  # which this function is called without
        _refuse_gradients(parsed.draws, table, rescale, threshold, log_std, known_mask)

    def wanted(*tensors: Tensor | None) -> bool:
        return any(tensor is not None and tensor.requires_grad for tensor in tensors)

    mask = wanted(known_mask)  # whose gradient has the result as a factor
    predicts = mask or wanted(x, *outputs)
    ctx.outputs, ctx.own_noise = len(outputs), known_noise is not None
    ctx.save_for_backward(
        x if predicts else None,
        table,
        index,
        noise if mask or wanted(log_std) else None,
        rescale,
        threshold,
        log_std if mask or wanted(noise, log_std) else None,
        known if mask else None,
        known_mask,
        known_noise if mask else None,
        *(output if predicts else None for output in outputs),
        *(h if mask else None for h in history),
    )


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    x, table, index, noise, *others = ctx.saved_tensors
    absent = torch.zeros((), dtype=ctx.dtype, device=grads[0].device).expand(grads[0].shape)
    given = dict(zip(_OTHERS, others, strict=False))
    if ctx.own_noise and given["known_noise"] is None:
        given["known_noise"] = absent
    lists = [absent if t is None else t for t in others[len(_OTHERS) :]]
    outputs, history = lists[: ctx.outputs], lists[ctx.outputs :]
    need = ctx.needs_input_grad
    wanted = [need[0], *need[1], *need[2], need[6], *need[9:13]]
    x = absent if x is None else x
    found = torch.ops.pygen.diffusion_step_backward(
        grads, x, outputs, history, table, index, ctx.row, noise, *given.values(), wanted, ctx.options
    )
    each = _each([grad if want else None for grad, want in zip(found, wanted, strict=True)], outputs, history)
    return (
        each.x, each.outputs, each.history, None, None, None, each.noise, None, None, each.log_std, each.known,
        each.known_mask, each.known_noise, None, None, None, None, None,
    )  # fmt: skip


def _each(values: Sequence[Any], outputs: Sequence[Tensor], history: Sequence[Tensor]) -> Each:
    """From what the backward op has as one list."""
    past = 1 + len(outputs)
    rest = past + len(history)
    return Each(values[0], list(values[1:past]), list(values[past:rest]), *values[rest:])


def _check_backward(*_: Any) -> None:
    """Only `_backward` calls the op."""


def _default_backward(
    grads: Sequence[Tensor],
    x: Tensor,
    outputs: Sequence[Tensor],
    history: Sequence[Tensor],
    table: Tensor,
    index: Tensor | None,
    row: int,
    noise: Tensor | None,
    *args: Any,
) -> list[Tensor]:
    *others, wanted, options = args
    found = diffusion_step_backward(
        grads,
        x,
        outputs,
        table,
        row if index is None else index,
        _each(wanted, outputs, history),
        dtype=arithmetic(x, outputs, options.dtypes_for(x)),
        rows=options.rows,
        history=history,
        noise=noise,
        **dict(zip(_OTHERS, others, strict=True)),
        copies=options.copies,
    )
    flat = (found.x, *found.outputs, *found.history, *found[3:])
    empty = _fake_backward(grads, x, outputs, *args)
    return [
        none if not want else none.zero_() if grad is None else grad.contiguous()
        for grad, want, none in zip(flat, wanted, empty, strict=True)
    ]


def _fake_backward(grads: Sequence[Tensor], x: Tensor, outputs: Sequence[Tensor], *args: Any) -> list[Tensor]:
    *_, wanted, options = args
    dtype = arithmetic(x, outputs, options.dtypes_for(x))
    return [x.new_empty(x.shape if want else (0,), dtype=dtype) for want in wanted]


def _refuse_gradients(draws: bool, *tensors: Tensor | None) -> None:
    """Of table, rescale, threshold, log_std, known_mask; the last two only where the noise is not at hand."""
    table, rescale, threshold, *drawn_with = tensors
    fixed = [t for t in (table, rescale, threshold) if t is not None]
    not_differentiable(f"{OP} with respect to table, rescale and threshold", "detach them", *fixed)
    if draws:
        instead = "draw the noise with pygen.random.normal and pass it as `noise`"
        given = [t for t in drawn_with if t is not None]
        not_differentiable(f"{OP} with draws=True with respect to log_std and known_mask", instead, *given)


define(
    "diffusion_step(Tensor x, Tensor[] outputs, Tensor[] history, Tensor table, Tensor? index, SymInt row, "
    "Tensor? noise, Tensor? rescale, Tensor? threshold, Tensor? log_std, Tensor? known, Tensor? known_mask, "
    "Tensor? known_noise, Tensor? ids, SymInt? seed, SymInt first_sample, SymInt step, str options) -> Tensor[]",
    family="diffusion_step",
    default=_default,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    check=_check,
    cuda="triton",
    options=StepOptions,
    draws=True,
)
define(
    "diffusion_step_backward(Tensor[] grads, Tensor x, Tensor[] outputs, Tensor[] history, Tensor table, "
    "Tensor? index, SymInt row, Tensor? noise, Tensor? rescale, Tensor? threshold, Tensor? log_std, Tensor? known, "
    "Tensor? known_mask, Tensor? known_noise, bool[] wanted, str options) -> Tensor[]",
    family="diffusion_step",
    default=_default_backward,
    fake=_fake_backward,
    backward=once_differentiable("diffusion_step_backward"),
    check=_check_backward,
    cuda=None,
    options=StepOptions,
)


def _options(rows: int, copies: int, draws: bool, dtypes: tuple[torch.dtype, ...] | None) -> str:
    listed = ",".join(str(dtype).removeprefix("torch.") for dtype in dtypes or ())
    return str(StepOptions(rows, copies, draws, listed))


_options_cached = lru_cache(maxsize=1024, typed=True)(_options)  # 1 is not True


def diffusion_step(
    x: Tensor,
    outputs: Sequence[Tensor],
    table: Tensor,
    index: Tensor | int = 0,
    *,
    rows: int = 1,
    history: Sequence[Tensor] = (),
    noise: Tensor | None = None,
    draws: bool = False,
    rescale: Tensor | None = None,
    threshold: Tensor | None = None,
    log_std: Tensor | None = None,
    known: Tensor | None = None,
    known_mask: Tensor | None = None,
    known_noise: Tensor | None = None,
    copies: int = 0,
    dtypes: Sequence[torch.dtype] | None = None,
    generator: Source = None,
    first_sample: int = 0,
    sample_ids: Tensor | None = None,
    step: int = 0,
) -> list[Tensor]:
    """One step of a diffusion sampler, whichever: guidance, prediction, clamp, update and next input in one pass.

    Of the model's outputs m_j at x, of history h_i and of standard normal noise z, element by element::

        g   = r_b sum_j w_j m_j                                      guidance, for every sample's rescaling r_b
        x0  = p x + q g                                              whatever the model predicts
        x0 <- x0 clamped to [-clip, clip], then to [-s_b, s_b] and divided by s_b
        y_k = A_k x + E_k g + B_k x0 + D_k std z + sum_i C_ki h_i    result k; std = exp(l + l' log_std), else 1
        y_0 <- (1 - mask) y_0 + mask (K known + N z')                what is known is kept (RePaint, inpainting)
        u   = scale y_0                                              the model's next input, repeated along the batch

    Every sampler that is linear in these is a table of coefficients: DDPM (Ho et al. 2020, arXiv 2006.11239, equations
    4, 6 and 7), DDIM (Song et al. 2021, arXiv 2010.02502, equation 12), Euler and Heun (Karras et al. 2022, arXiv
    2206.00364, algorithms 1 and 2), DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095, equation 9), UniPC (Zhao et al.
    2023, arXiv 2302.04867), and q_sample (no outputs; D = s, A = a). Guidance: Ho and Salimans 2022, arXiv 2207.12598,
    equation 6; dynamic thresholds: Saharia et al. 2022, arXiv 2205.11487, section 2.3; learned ranges of the variance:
    Nichol and Dhariwal 2021, arXiv 2102.09672, equation 15; RePaint: Lugmayr et al. 2022, arXiv 2201.09865, equation 8.

    x: [B, ...]; float32, float64, bfloat16, float16, or uint8, which stands for (x - 127.5) / 127.5.
    outputs: up to 4 of the model's outputs, of x's shape, each of any floating-point dtype. May include x itself.
    table: [R, columns], float64 or float32, of coefficients; `pygen.reference.diffusion_step.Columns` says which is
        where: the w_j, p, q, clip (inf: none), K, N, scale, l, l', and for each result A, E, B, D and the C_i. On the
        CPU, where the host reads it without a wait, or on x's device.
    index: which row of the table: an int; an int64 tensor on x's device: [] (a counter, such as a graph replays with),
        [B] (one a sample) or [B, L] (one a token, for x [B, L, ...]). With a tensor the table is on x's device.
    rows: the number K of results, 1 to 3.
    history: up to 4 tensors of x's shape, any floating-point dtype.
    noise: z, of x's shape, any floating-point dtype; None: see draws.
    draws: z from the package's stream, bit by bit `pygen.random.normal` of x's shape at (generator, first_sample,
        sample_ids, step); where the whole batch has one row of the table, at step + index. With neither noise nor draws
        terms of z are left out.
    rescale, threshold: r_b and s_b, [B], any floating-point dtype; None: r = 1, no threshold.
    log_std: the model's output for the variance, of x's shape, any floating-point dtype; None: std = 1.
    known, known_mask: what is to be kept (as x, uint8 too) and how much of it, 0 to 1 (any floating-point dtype, or
        bool), of x's shape; neither (default): nothing.
    known_noise: z', of x's shape, any floating-point dtype; None (default): z.
    copies: how often the next input repeats the batch; 0 (default): there is none.
    dtypes: of the results, the next input among them; None: x's, float32 for uint8.
    generator, first_sample, sample_ids, step: where in the stream, see `pygen.random`.

    Returns [y_0, ..., y_(K-1)] of x's shape, then u [copies * B, ...] if copies; in channels_last memory where x is
    (and is not contiguous too), else contiguous. Arithmetic is float64 if x, an output or a result is, else float32;
    results are rounded once. A = 1 beside zeros gives x exactly. A coefficient 0 times NaN is NaN. The same bits for
    any number of threads and any cut of the batch.

    Differentiable once with respect to x, outputs, history, noise, log_std, known, known_mask and known_noise; clamps
    have derivative 1 where they leave x0 alone. Twice raises NotImplementedError, except under
    `pygen.backends.use("reference")`, which PyTorch differentiates. Rather than detach in silence it raises that also
    for table, rescale and threshold that require grad, and, with draws, for log_std and known_mask. Keeps x and the
    outputs, beside what the gradients asked for are made of.

    torch.autocast leaves the op alone. Bytes moved: every tensor given once in, every result once out. Backends: C++
    (AVX-512, AVX2, baseline) on the CPU, Triton on CUDA, else the reference; nothing waits for the device.

    Raises ValueError for shapes, devices, numbers of tensors and an index out of range (of a tensor on a GPU, where
    nobody looks, its samples become NaN), TypeError for dtypes; all say what was expected and what was given.

    >>> import torch
    >>> from pygen.ops import diffusion_step
    >>> x, eps = torch.full((1, 2), 3.0), torch.ones(1, 2)
    >>> w, p, q, clip, a, e, b, d = 1.0, 1.0, -2.0, 1.0, 0.5, 0.0, 0.5, 0.0  # Euler from sigma 2 to sigma 1
    >>> table = torch.tensor([[w, p, q, clip, 0.0, 0.0, 1.0, 0.0, 0.0, a, e, b, d]])
    >>> diffusion_step(x, [eps], table)
    [tensor([[2., 2.]])]
    """
    row, where = row_or_index(OP, index)
    ids, seed = None, None
    if draws:
        ids, seed, first_sample, step = stream_of(x, generator, first_sample, sample_ids, step)
    compiling = torch.compiler.is_compiling()
    options = (_options if compiling else _options_cached)(
        rows, copies, draws, None if dtypes is None else tuple(dtypes)
    )
    args = (
        x, outputs, history, table, where, row, noise, rescale, threshold, log_std, known, known_mask, known_noise, ids,
        seed, first_sample, step, options,
    )  # fmt: skip
    if backends.forced is not None and backends.choose(OP, x) == "reference":
        _refuse_gradients(draws, table, rescale, threshold, log_std, known_mask)
        return _default(*args[:-1], StepOptions.parse(options))
    if forward_ad._current_level >= 0:
        others = (table, noise, rescale, threshold, log_std, known, known_mask, known_noise)
        refuse_tangents(OP, x, *outputs, *history, *others)
    op = _op if compiling else _quick_op
    return op(*args)  # type: ignore[no-any-return]


_op = torch.ops.pygen.diffusion_step.default
_quick_op = _ext.quick(_op)
