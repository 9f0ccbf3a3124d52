"""Cached sampling of autoregressive models: the public function, the torch op, checks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _ext, backends
from .._lib import FLOATS, define, names, not_differentiable
from .._options import Options
from .._seed import Source
from ..program import Program
from ..reference.causal_sampler import causal_sampler as reference
from .random import STREAM, check_stream, check_tensor, drawn, samples_of, stream

Progress = Callable[[int, int], None]
_LEAST = 1e-38  # of temperatures above 0: float32 holds it and its inverse

_WEIGHTS = (torch.float32, torch.float64, torch.bfloat16)


@dataclass(frozen=True)
class SamplerOptions(Options):
    """Options of `causal_sampler` that are no tensors; csrc/cpu/causal_sampler_glue.h reads the same."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    log_prob: bool = False

    def __post_init__(self) -> None:
        if self.temperature != 0 and not _LEAST <= self.temperature <= 1 / _LEAST:
            raise ValueError(
                f"causal_sampler: expected temperature 0, or within [{_LEAST}, {1 / _LEAST}], got {self.temperature}"
            )
        if not 0 <= self.top_k < 1 << 31:
            raise ValueError(f"causal_sampler: expected top_k in [0, 2^31), got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"causal_sampler: expected top_p in (0, 1], got {self.top_p}")


def _check_shapes(
    x: Tensor,
    known: Tensor,
    noise: Tensor | None,
    words: Tensor,
    tensors: Sequence[Tensor],
    conditions: Sequence[Tensor],
    ids: Tensor,
    seed: int | None,
    first_sample: int,
    step: int,
    offset: int,
    options: SamplerOptions,
) -> None:
    op = "causal_sampler"
    if x.dtype != torch.int64 or x.dim() != 4:
        raise ValueError(f"{op}: expected x as int64 levels [B, C, H, W], got {x.dtype} {tuple(x.shape)}")
    if known.dtype != torch.bool or known.shape != x.shape:
        raise ValueError(
            f"{op}: expected known as bool of x's shape {tuple(x.shape)}, got {known.dtype} {tuple(known.shape)}"
        )
    dtype = next((tensor.dtype for tensor in tensors if tensor.dim() == 3), None)
    if dtype is None:
        raise ValueError(f"{op}: expected packed weights among the tensors, got none")
    if dtype not in _WEIGHTS:
        raise TypeError(f"{op}: expected weights of {names(_WEIGHTS)}, got {dtype}")
    wide = torch.promote_types(dtype, torch.float32)
    for i, tensor in enumerate(tensors):
        wanted = dtype if tensor.dim() == 3 else wide
        if tensor.dtype != wanted:
            raise TypeError(f"{op}: expected tensor {i} of {wanted}, got {tensor.dtype}")
    for i, tensor in enumerate(conditions):
        if tensor.dtype != wide:
            raise TypeError(f"{op}: expected condition {i} of {wide}, got {tensor.dtype}")
    given = [("known", known), ("noise", noise), *(("a tensor", t) for t in tensors)]
    for name, other in [*given, *(("a condition", t) for t in conditions)]:
        if other is not None and other.device != x.device:
            raise ValueError(f"{op}: expected {name} on {x.device} as x, got {other.device}")
    if noise is not None:
        if noise.dtype not in FLOATS:
            raise TypeError(f"{op}: expected noise of {names(FLOATS)}, got {noise.dtype}")
        admitted = [(x.shape[0], x.shape[1] + more, *x.shape[2:]) for more in (0, 1)]
        if tuple(noise.shape) not in admitted:
            raise ValueError(f"{op}: expected noise of shape {admitted[0]}, or {admitted[1]} for a mixture, got "
                             f"{tuple(noise.shape)}")  # fmt: skip
    check_stream(op, x.shape, ids, first_sample, step, offset)


def _check(*args: Any) -> Program:
    _check_shapes(*args)
    x, known, noise, words, tensors, conditions, *_ = args
    try:
        program = Program.decode(words)
        program.check_tensors(tensors, conditions, len(x))
    except ValueError as error:
        raise ValueError(f"causal_sampler: {error}") from None
    size = (program.channels, program.height, program.width)
    if tuple(x.shape[1:]) != size:
        raise ValueError(f"causal_sampler: expected x [B, {', '.join(map(str, size))}], got {tuple(x.shape)}")
    if noise is not None and noise.shape[1] != program.draws:
        raise ValueError(f"causal_sampler: expected noise of {program.draws} numbers a pixel, got {noise.shape[1]}")
    check_stream("causal_sampler", (len(x), program.draws, *x.shape[2:]), *args[6:7], *args[8:11])
    if x.device.type == "cpu":
        wrong = x[known & ((x < 0) | (x >= program.levels))]
        if len(wrong):
            raise ValueError(f"causal_sampler: expected levels in [0, {program.levels}), got {int(wrong[0])}")
        if program.groups == 1 and not torch.equal(known.any(1), known.all(1)):
            raise ValueError(
                "causal_sampler: expected known to be the same for all channels of a pixel, which are drawn together"
            )
        if noise is not None and noise.numel() and not bool(((noise >= 0) & (noise < 1)).all()):
            raise ValueError(
                f"causal_sampler: expected noise in [0, 1), got {noise.min().item()} to {noise.max().item()}"
            )
    return program


class _Reporting(threading.local):
    """What a call's progress is reported to, by this thread."""

    progress: Progress | None = None

    @contextlib.contextmanager
    def to(self, progress: Progress | None) -> Iterator[None]:
        previous, self.progress = self.progress, progress
        _ext.report_to(progress)
        try:
            yield
        finally:
            self.progress = previous
            _ext.report_to(previous)


_reporting = _Reporting()


def _default(*args: Any) -> tuple[Tensor, Tensor]:
    program = _check(*args)
    x, known, noise, _, tensors, conditions, ids, seed, first_sample, step, offset, options = args
    y, log_prob = reference(
        program,
        tensors,
        conditions,
        x,
        known,
        noise,
        ids=samples_of(ids, first_sample, len(x)),
        seed=drawn(seed) if noise is None else 0,
        step=step,
        offset=offset,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        progress=_reporting.progress,
    )
    return y, log_prob if options.log_prob else log_prob.new_empty(0)


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    _check_shapes(*args)
    x, options = args[0], args[-1]
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(
        len(x) if options.log_prob else 0, dtype=torch.float64
    )


define(
    "causal_sampler(Tensor x, Tensor known, Tensor? noise, Tensor words, Tensor[] tensors, Tensor[] conditions, "
    f"{STREAM}, str options) -> (Tensor, Tensor)",
    family="causal_sampler",
    default=_default,
    fake=_fake,
    check=_check_shapes,
    options=SamplerOptions,
    cuda="cuda",
    draws=True,
)


def causal_sampler(
    program: Program,
    tensors: Sequence[Tensor],
    x: Tensor,
    known: Tensor,
    conditions: Sequence[Tensor] = (),
    *,
    noise: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    log_prob: bool = False,
    progress: Progress | None = None,
    generator: Source = None,
    first_sample: int = 0,
    sample_ids: Tensor | None = None,
    step: int = 0,
    draw: int = 0,
    offset: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Draws the images of an autoregressive model, pixel by pixel, computing every feature once.

    A model is a pixel program (`pygen.program`; `model.program()` of `pygen.models` makes one): stages that fill planes
    of features. For pixels in raster order, and in each for the groups of channels that are drawn together::

        parameters = the program's stages, of what is known of the image
        x = x where known, else a draw from the head's distribution with these parameters

    "categorical" heads: parameters are logits z of L levels. With w / 2^32 uniform in [0, 1), as in
    `pygen.random.categorical`::

        z' = (z - max z) / temperature, and -inf where top_k or top_p leave a level out
        x  = the first level up to which softmax(z') sums to more than w / 2^32

    "mixture" heads: as `pygen.ops.logistic_mixture_sample` with both temperatures. Caching is exact: what is drawn is
    what a loop draws that runs the whole net for each pixel (van den Oord et al. 2016, arXiv 1601.06759, section 3),
    up to the rounding of sums in another order; van den Oord et al. 2016 (arXiv 1609.03499) and Ramachandran et al.
    2017 (arXiv 1704.06001) cached so first.

    program: what to run. tensors: its packed weights (float32, float64 or bfloat16, all of one dtype) and biases
        (float32, or float64 beside float64 weights). Arithmetic is in the biases' dtype.
    x: [B, C, H, W], int64, levels 0 .. L - 1 where known is True; anything elsewhere.
    known: bool, of x's shape; a mixture's channels are known together. Rows and stretches that are known in all images
        are computed side by side, and nothing after the last unknown pixel is.
    conditions: what the program's stages add, [B, N] or [B, H, W, N], of the biases' dtype.
    noise: uniform numbers in [0, 1) instead of the stream's: [B, C, H, W], or [B, 1 + C, H, W] for a mixture; any of
        the dtypes. The stream's number of pixel p and draw d is element offset + p D + d of a sample, D its draws.
    temperature: >= 0; 0, and what is below 1e-38, takes the likeliest level.
    top_k: draws from the levels whose logit is at least the top_k-th largest; 0: from all. Levels alike stay together.
    top_p: of what is left, from the likeliest levels up to which the probability is top_p: those are left out before
        which likelier ones already sum to it. In (0, 1]; 1.
    log_prob: whether to return log p of what was drawn, at temperature 1, all levels admitted.
    progress: progress(done, total) is called now and then, and at the end, counting rows of images; what it raises ends
        the call, as Ctrl-C does. On CUDA nobody calls it, and Ctrl-C waits for the end.
    generator, first_sample, sample_ids, step, draw, offset: where in the stream, see `pygen.random`.

    Returns (x [B, C, H, W], int64, contiguous; log p [B], float64 nats, summed over what was not known, or None).
    An image depends on its own sample, seed, noise, conditions and known pixels alone: the native kernel gives the same
    bits alone or among others, on any number of threads. Nothing is changed in place.

    Not differentiable: it raises for tensors that require grad where gradients are recorded, so detach them.
    torch.autocast changes nothing. Bytes moved: the weights of a pixel's stages for every pixel, from the cache that
    holds them. Backends: C++ (AVX-512, AVX2, baseline) on the CPU, CUDA C++, else the reference, which is cached too.

    Raises ValueError for a program that cannot be run, shapes, devices and options, for levels and noise out of range
    and for logits or a mixture's parameters that are NaN (on the CPU), TypeError for dtypes, NotImplementedError for
    tensors that require grad.

    >>> import torch
    >>> from pygen.models import GatedPixelCNN
    >>> from pygen.ops import causal_sampler
    >>> compiled = GatedPixelCNN((1, 8, 8), levels=4, hidden=8, layers=2).program()
    >>> x, known = torch.zeros(5, 1, 8, 8).long(), torch.zeros(5, 1, 8, 8).bool()
    >>> drawn, log_p = causal_sampler(compiled.program, compiled.tensors, x, known, generator=0, log_prob=True)
    >>> drawn.shape, log_p.shape
    (torch.Size([5, 1, 8, 8]), torch.Size([5]))
    """
    op = "causal_sampler"
    if not isinstance(program, Program):
        raise TypeError(f"{op}: expected a pygen.program.Program, got {type(program).__name__}")
    for name, tensor in (("x", x), ("known", known)):
        check_tensor(op, name, tensor)
    if noise is not None:
        check_tensor(op, "noise", noise)
    not_differentiable(op, "detach it", *tensors, *conditions, *(() if noise is None else (noise,)))
    if type(top_k) is not int:
        raise TypeError(f"{op}: expected top_k as an integer, got {top_k!r}")
    for name, number in (("temperature", temperature), ("top_p", top_p)):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise TypeError(f"{op}: expected {name} as a number, got {number!r}")
    temperature = 0 if 0 <= temperature < _LEAST else temperature  # what divides by less takes the likeliest
    options = SamplerOptions(float(temperature), top_k, float(top_p), log_prob)
    where = stream(len(x), x.device, generator, first_sample, sample_ids, step, draw, offset)
    args = (x, known, noise, program.encode(), list(tensors), list(conditions), *where)
    with contextlib.nullcontext() if torch.compiler.is_compiling() else _reporting.to(progress):
        if backends.forced is not None and backends.choose(op, x) == "reference":
            y, log_p = _default(*args, options)
        else:
            y, log_p = torch.ops.pygen.causal_sampler(*args, str(options))
    return y, log_p if log_prob else None
