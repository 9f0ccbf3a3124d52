"""The training loss of diffusion models: the public function, its torch ops, fakes and gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _ext, backends
from .._lib import FLOATS, define, layout, not_differentiable, once_differentiable, refuse_tangents
from .._seed import Source
from ..reference.diffusion_loss import COLUMNS, diffusion_loss_backward, weighted_mean
from ..reference.diffusion_loss import difference as difference_of
from ..reference.diffusion_step import arithmetic
from ._diffusion import PIXELS, check_draws, check_index, check_table, check_tensors, noise_of, row_or_index, stream_of

OP, BACKWARD = "diffusion_loss", "diffusion_loss_backward"

# --- checks -----------------------------------------------------------------------------------------------------------


def _check(
    output: Tensor,
    x0: Tensor,
    table: Tensor,
    index: Tensor | None,
    row: int,
    noise: Tensor | None,
    draws: bool,
    ids: Tensor | None,
    seed: int | None,
    first_sample: int,
    step: int,
    kept: torch.dtype | None,
) -> None:
    if output.dim() < 1:
        raise ValueError(f"{OP}: expected output of shape [B, ...], got {tuple(output.shape)}")
    like = ("output", output)
    check_tensors(OP, like, output.shape, FLOATS, output=output, noise=noise)
    check_tensors(OP, like, output.shape, PIXELS, x0=x0)
    check_table(OP, like, table, index, row, COLUMNS, "a, s and weight")
    if noise is not None and draws:
        raise ValueError(f"{OP}: expected noise or draws, got both")
    if draws:
        check_draws(OP, like, table, index, ids, first_sample, step)


def _check_backward(
    grad: Tensor,
    difference: Tensor,
    loss: Tensor,
    table: Tensor,
    index: Tensor | None,
    row: int,
    output: torch.dtype | None,
    x0: torch.dtype | None,
    noise: torch.dtype | None,
) -> None:
    """Raises for what the backward op does not admit; autograd gives it nothing of the kind."""
    batch = tuple(difference.shape[:1])
    if not batch or grad.shape != batch or loss.shape != batch:
        raise ValueError(
            f"{BACKWARD}: expected grad and loss [B] and a difference [B, ...], got {tuple(grad.shape)}, "
            f"{tuple(loss.shape)} and {tuple(difference.shape)}"
        )
    if grad.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{BACKWARD}: expected grad of float32 or float64, got {grad.dtype}")


# --- the ops ----------------------------------------------------------------------------------------------------------


def _default(
    output: Tensor,
    x0: Tensor,
    table: Tensor,
    index: Tensor | None,
    row: int,
    noise: Tensor | None,
    draws: bool,
    ids: Tensor | None,
    seed: int | None,
    first_sample: int,
    step: int,
    kept: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    _check(output, x0, table, index, row, noise, draws, ids, seed, first_sample, step, kept)
    check_index(OP, output, table, index)
    if draws:
        noise = noise_of(output, index, row, ids, seed, first_sample, step)
    difference, weight = difference_of(output, x0, table, row if index is None else index, noise)
    loss = weighted_mean(difference, weight)
    if kept is None:
        return loss, output.new_empty(0)
    return loss, difference.to(kept).contiguous(memory_format=layout(output))


def _fake(output: Tensor, x0: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    _check(output, x0, *others)
    kept = others[-1]
    loss = output.new_empty(output.shape[:1], dtype=arithmetic(output, [x0]))
    return loss, output.new_empty(0) if kept is None else _empty(output, kept)


def _empty(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(like.shape, dtype=dtype, device=like.device, memory_format=layout(like))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    prediction, x0, table, index, ctx.row, noise, *_, ctx.kept = inputs
    loss, difference = output
    ctx.set_materialize_grads(False)  # no zeros in the shape of the difference
    ctx.mark_non_differentiable(difference)
    ctx.dtypes = [None if t is None else t.dtype for t in (prediction, x0, noise)]
    ctx.save_for_backward(difference, loss, table, index)


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    grads: list[Tensor | None] = [None] * 12
    if grad is None:
        return tuple(grads)
    if ctx.kept is None:
        raise RuntimeError(f"{OP}: expected the dtype of what is kept for a call that is differentiated, got None")
    difference, loss, table, index = ctx.saved_tensors
    places = (0, 1, 5)  # of output, x0 and noise
    wanted = [dtype if ctx.needs_input_grad[i] else None for i, dtype in zip(places, ctx.dtypes, strict=True)]
    found = torch.ops.pygen.diffusion_loss_backward(grad, difference, loss, table, index, ctx.row, *wanted)
    for i, dtype, gradient in zip(places, wanted, found, strict=True):
        grads[i] = None if dtype is None else gradient
    return tuple(grads)


def _default_backward(
    grad: Tensor,
    difference: Tensor,
    loss: Tensor,
    table: Tensor,
    index: Tensor | None,
    row: int,
    *dtypes: torch.dtype | None,
) -> tuple[Tensor, ...]:
    _check_backward(grad, difference, loss, table, index, row, *dtypes)
    found = diffusion_loss_backward(grad, difference, table, row if index is None else index)
    return tuple(
        difference.new_empty(0) if dtype is None else t.to(dtype).contiguous(memory_format=layout(difference))
        for t, dtype in zip(found, dtypes, strict=True)
    )


def _fake_backward(grad: Tensor, difference: Tensor, *others: Any) -> tuple[Tensor, ...]:
    _check_backward(grad, difference, *others)
    return tuple(difference.new_empty(0) if dtype is None else _empty(difference, dtype) for dtype in others[-3:])


define(
    "diffusion_loss(Tensor output, Tensor x0, Tensor table, Tensor? index, SymInt row, Tensor? noise, bool draws, "
    "Tensor? ids, SymInt? seed, SymInt first_sample, SymInt step, ScalarType? kept) -> (Tensor loss, Tensor diff)",
    family="diffusion_loss",
    default=_default,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    check=_check,
    cuda="triton",
    draws=True,
)
# loss takes no part: through it a second derivative finds its way here, and raises.
define(
    "diffusion_loss_backward(Tensor grad, Tensor difference, Tensor loss, Tensor table, Tensor? index, SymInt row, "
    "ScalarType? output, ScalarType? x0, ScalarType? noise) -> (Tensor grad_output, Tensor grad_x0, Tensor grad_noise)",
    family="diffusion_loss",
    default=_default_backward,
    fake=_fake_backward,
    backward=once_differentiable(BACKWARD),
    check=_check_backward,
    cuda="triton",
)


def kept_dtype(output: Tensor, x0: Tensor, noise: Tensor | None) -> torch.dtype | None:
    """Of output - target, which the backward scales; None where no gradient is recorded. The output's, whose gradient
    it becomes; but that of the arithmetic for gradients of the others, and where float16 might overflow."""
    if not torch.is_grad_enabled():
        return None
    others = x0.requires_grad or (noise is not None and noise.requires_grad)
    if not (output.requires_grad or others):
        return None
    return arithmetic(output, [x0]) if others or output.dtype == torch.float16 else output.dtype


def diffusion_loss(
    output: Tensor,
    x0: Tensor,
    table: Tensor,
    index: Tensor | int,
    *,
    noise: Tensor | None = None,
    draws: bool = False,
    generator: Source = None,
    first_sample: int = 0,
    sample_ids: Tensor | None = None,
    step: int = 0,
) -> Tensor:
    """A diffusion model's loss, sample by sample, with its gradient in the same pass::

        loss_b = mean over the sample's elements of  w (output - (a x0 + s z))^2

    for clean samples x0, standard normal noise z and coefficients (a, s, w) of the timestep. Whatever the target is, it
    is linear in x0 and z: the noise (a = 0, s = 1; Ho et al. 2020, arXiv 2006.11239, equation 14), the clean sample,
    the velocity (Salimans and Ho 2022, arXiv 2202.00512, section 4), the flow (Lipman et al. 2023, arXiv 2210.02747,
    section 4.1), EDM's (Karras et al. 2022, arXiv 2206.00364, equation 8). `pygen.diffusion.losses` makes the tables.

    output: what the model predicts, [B, ...]; float32, float64, bfloat16 or float16.
    x0: of output's shape, any of these dtypes, or uint8, which stands for (x0 - 127.5) / 127.5.
    table: [R, 3], float64 or float32: a row a timestep, of a, s and w. On the CPU or on output's device.
    index: which row of the table, the timestep: an int64 tensor on output's device, [B] (one a sample), [B, L] (one a
        token, for output [B, L, ...]) or []; or an int. With a tensor the table is on output's device.
    noise: z, of output's shape, any floating-point dtype; None: see draws.
    draws: z from the package's stream, bit by bit `pygen.random.normal` of output's shape at (generator, first_sample,
        sample_ids, step), at step + index where the whole batch has one row of the table: what
        `pygen.ops.diffusion_step` with the same arguments has drawn to make the model's input. It is drawn anew, and
        never stored. With neither noise nor draws s z is left out.
    generator, first_sample, sample_ids, step: where in the stream, see `pygen.random`; generator as the int with which
        the noise was drawn before.

    Returns loss [B], float64 if output or x0 is, else float32, the type of the arithmetic; contiguous. Sums are in
    float64 on the CPU. NaN reaches the loss of its sample. The same bits for any number of threads, and in any batch.

    Differentiable once with respect to output, x0 and noise; twice raises NotImplementedError, except under
    `pygen.backends.use("reference")`, which PyTorch differentiates. A table that requires grad raises. Where a gradient
    is recorded, the forward writes output - target, the one tensor that is kept: in output's dtype (float32 for
    float16, which might overflow; the arithmetic's for gradients of x0 and noise), and the backward scales it.

    torch.autocast leaves the op alone. Bytes moved: forward, output, x0 and noise in, and with a gradient the
    difference out; backward, that in, the gradients out. Backends: C++ (AVX-512, AVX2, baseline) on the CPU, Triton on
    CUDA, else the reference; nothing waits for the device.

    Raises ValueError for shapes, devices and an index out of range (of a tensor on a GPU, where nobody looks, its
    samples become NaN), TypeError for dtypes and types; both say what was expected and what was given.

    >>> import torch
    >>> from pygen.ops import diffusion_loss
    >>> output, x0, z = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 1.0]]), torch.tensor([[0.5, -0.5]])
    >>> table = torch.tensor([[0.0, 1.0, 1.0], [-0.6, 0.8, 1.0]])  # noise; velocity
    >>> diffusion_loss(output, x0, table, 0, noise=z)
    tensor([0.2500])
    """
    row, where = row_or_index(OP, index)
    ids, seed = None, None
    if draws:
        ids, seed, first_sample, step = stream_of(output, generator, first_sample, sample_ids, step)
    not_differentiable(f"{OP} with respect to table", "detach it", table)
    args = (output, x0, table, where, row, noise, draws, ids, seed, first_sample, step)
    if backends.forced is not None and backends.choose(OP, output) == "reference":
        return _default(*args, None)[0]
    if forward_ad._current_level >= 0:
        refuse_tangents(OP, output, x0, noise)
    op = _op if torch.compiler.is_compiling() else _quick_op
    loss: Tensor = op(*args, kept_dtype(output, x0, noise))[0]
    return loss


_op = torch.ops.pygen.diffusion_loss.default
_quick_op = _ext.quick(_op)
