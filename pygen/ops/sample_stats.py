"""Sums and a quantile of each sample of a batch: the public functions, their torch ops, fakes and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _ext, backends
from .._lib import FLOATS, define, not_differentiable, refuse_tangents
from ..reference.diffusion_step import Columns, arithmetic
from ..reference.sample_stats import quantile_abs as reference_quantile
from ..reference.sample_stats import sample_stats as reference
from ..reference.sample_stats import sample_stats_backward
from ._diffusion import PIXELS, check_index, check_table, check_tensors, row_or_index

MOST_OUTPUTS = 4

# --- sample_stats -----------------------------------------------------------------------------------------------------


def _check(a: Tensor, b: Tensor | None) -> None:
    op = "sample_stats"
    if a.dim() < 1:
        raise ValueError(f"{op}: expected a of shape [B, ...], got {tuple(a.shape)}")
    check_tensors(op, ("a", a), a.shape, FLOATS, a=a, b=b)


def _default(a: Tensor, b: Tensor | None) -> Tensor:
    _check(a, b)
    return reference(a, b)


def _fake(a: Tensor, b: Tensor | None) -> Tensor:
    _check(a, b)
    return a.new_empty((a.shape[0], 2 if b is None else 5), dtype=torch.float64)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    return sample_stats_backward(grad, *ctx.saved_tensors, *ctx.needs_input_grad)


define(
    "sample_stats(Tensor a, Tensor? b) -> Tensor",
    family="sample_stats",
    default=_default,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    check=_check,
    cuda="triton",
)


def sample_stats(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Sums over the elements of each sample, from which means, variances, norms and projections follow::

        stats[b] = (sum a, sum b, sum a a, sum a b, sum b b)        without b: (sum a, sum a a)

    One pass over a model's two outputs gives what guidance needs of them, for any scale; `pygen.diffusion.guidance` has
    the formulas: rescaled guidance (Lin et al. 2023, arXiv 2305.08891, equations 15 and 16), projected guidance (Sadat
    et al. 2024, arXiv 2410.02416), CFG-Zero* (Fan et al. 2025, arXiv 2503.18886), and the step of Langevin correctors
    (Song et al. 2021, arXiv 2011.13456, algorithms 4 and 5).

    a: [B, ...]; float32, float64, bfloat16 or float16.
    b: of a's shape, any of these dtypes; None (default): none.

    Returns float64 [B, 5] ([B, 2] without b), contiguous. Products and sums are in float64, on a GPU too: products of
    float32 and narrower are exact. NaN reaches the sums of its sample that it is a term of. The same bits for any
    number of threads, and in any batch.

    Differentiable any number of times with respect to a and b, which the graph keeps.

    torch.autocast leaves the op alone. Bytes moved: a and b once in. Backends: C++ (AVX-512, AVX2, baseline) on the
    CPU, Triton on CUDA, else the reference.

    Raises ValueError for shapes and devices that do not fit, TypeError for dtypes; both say what was expected and what
    was given.

    >>> import torch
    >>> from pygen.ops import sample_stats
    >>> sample_stats(torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [1.0, -1.0]])).tolist()
    [[3.0, 1.0, 5.0, 1.0, 1.0], [3.0, 0.0, 9.0, -3.0, 2.0]]
    """
    if backends.forced is not None and backends.choose("sample_stats", a) == "reference":
        return _default(a, b)
    if forward_ad._current_level >= 0:
        refuse_tangents("sample_stats", a, b)
    op = _op if torch.compiler.is_compiling() else _quick_op
    return op(a, b)  # type: ignore[no-any-return]


_op = torch.ops.pygen.sample_stats.default
_quick_op = _ext.quick(_op)


# --- quantile_abs -----------------------------------------------------------------------------------------------------


def _check_quantile(
    x: Tensor,
    outputs: Sequence[Tensor],
    table: Tensor,
    index: Tensor | None,
    row: int,
    q: float,
    rescale: Tensor | None,
) -> None:
    op = "quantile_abs"
    if x.dim() < 1:
        raise ValueError(f"{op}: expected x of shape [B, ...], got {tuple(x.shape)}")
    if len(outputs) > MOST_OUTPUTS:
        raise ValueError(f"{op}: expected 0 to {MOST_OUTPUTS} outputs, got {len(outputs)}")
    if any(n == 0 for n in x.shape[1:]):
        raise ValueError(f"{op}: expected samples of an element at least, got x of shape {tuple(x.shape)}")
    if not 0 <= q <= 1:
        raise ValueError(f"{op}: expected q in [0, 1], got {q}")
    like = ("x", x)
    check_tensors(op, like, x.shape, PIXELS, x=x)
    check_tensors(op, like, x.shape, FLOATS, **{f"output {i}": t for i, t in enumerate(outputs)})
    check_tensors(op, like, x.shape[:1], FLOATS, rescale=rescale)
    columns = Columns.of(len(outputs)).clip
    check_table(op, like, table, index, row, columns, "these outputs", more=True)


def _default_quantile(
    x: Tensor,
    outputs: Sequence[Tensor],
    table: Tensor,
    index: Tensor | None,
    row: int,
    q: float,
    rescale: Tensor | None,
) -> Tensor:
    _check_quantile(x, outputs, table, index, row, q, rescale)
    check_index("quantile_abs", x, table, index)
    return reference_quantile(x, outputs, table, row if index is None else index, q, rescale=rescale)


def _fake_quantile(x: Tensor, outputs: Sequence[Tensor], *others: Any) -> Tensor:
    _check_quantile(x, outputs, *others)
    return x.new_empty(x.shape[:1], dtype=arithmetic(x, outputs))


define(
    "quantile_abs(Tensor x, Tensor[] outputs, Tensor table, Tensor? index, SymInt row, float q, Tensor? rescale)"
    " -> Tensor",
    family="sample_stats",
    default=_default_quantile,
    fake=_fake_quantile,
    check=_check_quantile,
    cuda="triton",
)


def quantile_abs(
    x: Tensor,
    outputs: Sequence[Tensor],
    table: Tensor,
    index: Tensor | int,
    q: float,
    *,
    rescale: Tensor | None = None,
) -> Tensor:
    """The quantile of a prediction's magnitudes, sample by sample: the threshold of dynamic thresholding::

        g  = r_b sum_j w_j m_j        x0 = p x + q' g        s_b = the quantile q of |x0| over the sample's elements

    With n elements in order v_0 <= ... <= v_(n-1) and t = q (n - 1), that is v_k + (t - k) (v_(k+1) - v_k) for
    k = floor(t): torch.quantile(x0.abs().flatten(1), q, 1), but for samples of any size. Dynamic thresholding (Saharia
    et al. 2022, arXiv 2205.11487, section 2.3) clamps x0 to [-s, s] and divides by s = max(1, quantile):
    `pygen.ops.diffusion_step` with this table and `threshold=s`.

    x: [B, ...] with an element a sample at least; float32, float64, bfloat16, float16, or uint8, which stands for
        (x - 127.5) / 127.5.
    outputs: up to 4 of a model's outputs m_j, of x's shape, each of any floating-point dtype.
    table: [R, columns], float64 or float32: a step's table, of which the w_j, p and q' are read, its first columns
        (see `pygen.ops.diffusion_step`); those behind need not be there.
    index: which row of the table: an int, or an int64 tensor [], [B] or [B, L], as for `pygen.ops.diffusion_step`.
    q: a number in [0, 1].
    rescale: r_b, [B], any floating-point dtype; None (default): 1.

    Returns [B], float64 if x or an output is, else float32. The arithmetic is in that type; what is selected is exact.
    x0 is computed anew in each of about two passes and never written: elements are counted by their leading bits, then
    those with the leading bits of the quantile are looked at. NaN in a sample gives NaN. The same bits for any number
    of threads, and in any batch.

    Not differentiable: it raises where gradients are recorded for an input that requires grad, so detach them (which
    guidance under torch.no_grad need not).

    torch.autocast leaves the op alone. Bytes moved: x and the outputs in, twice or thrice. Backends: C++ (AVX-512,
    AVX2, baseline) on the CPU, Triton on CUDA, else the reference; nothing waits for the device.

    Raises ValueError for shapes, devices, q, and an index out of range (of a tensor on a GPU, where nobody looks, its
    samples become NaN), TypeError for dtypes and types, NotImplementedError for inputs that require grad; all say what
    was expected and what was given.

    >>> import torch
    >>> from pygen.ops import quantile_abs
    >>> x, eps = torch.tensor([[0.0, 1.0, -2.0, 3.0, 4.0]]), torch.ones(1, 5)
    >>> w, p, q = 1.0, 2.0, -1.0
    >>> quantile_abs(x, [eps], torch.tensor([[w, p, q]]), 0, 0.75)  # of |2 x - eps|: 1, 1, 5, 5, 7
    tensor([5.])
    """
    op = "quantile_abs"
    if isinstance(q, bool) or not isinstance(q, (int, float)):
        raise TypeError(f"{op}: expected q as a number, got {q!r}")
    row, where = row_or_index(op, index)
    given = [t for t in (x, *outputs, table, rescale) if t is not None]
    not_differentiable(op, "detach them", *given)
    args = (x, outputs, table, where, row, float(q), rescale)
    if backends.forced is not None and backends.choose(op, x) == "reference":
        return _default_quantile(*args)
    if forward_ad._current_level >= 0:
        refuse_tangents(op, *given)
    function = _op_quantile if torch.compiler.is_compiling() else _quick_op_quantile
    return function(*args)  # type: ignore[no-any-return]


_op_quantile = torch.ops.pygen.quantile_abs.default
_quick_op_quantile = _ext.quick(_op_quantile)
