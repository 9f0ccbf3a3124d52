"""trace_sqrt_product and polar, as the contract suite (tests/harness) sees them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from pygen import ops, reference
from tests.harness.calls import random
from tests.harness.spec import F32, F64, Dtypes, ErrorInput, OpSpec, Sample, register

SIZES = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65)


def orthogonal(seed: str, *shape: int) -> Tensor:
    """[..., m, n] with orthonormal columns, or rows."""
    q = torch.linalg.qr(random(seed, *shape[:-2], max(shape[-2:]), min(shape[-2:])))[0]
    return q if shape[-2] >= shape[-1] else q.mT.contiguous()


def covariance(seed: str, *shape: int, power: float = 1.0) -> Tensor:
    """[..., d, d] with eigenvalues k^-power."""
    q = orthogonal(seed, *shape, shape[-1])
    values = torch.arange(1, shape[-1] + 1, dtype=torch.float64) ** -power
    return (q * values) @ q.mT


def pair(name: str, *shape: int, scale: float = 1.0) -> Sample:
    return Sample(name, {"sigma1": scale * covariance(f"{name} 1", *shape), "sigma2": covariance(f"{name} 2", *shape)})


def pairs() -> Iterator[Sample]:
    yield pair("one", 1, 4)
    yield pair("batch", 3, 5)
    yield pair("batches", 2, 1, 6)


def pair_shapes() -> Iterator[Sample]:
    for d in SIZES:
        yield pair(f"{d}x{d}", 2, d)
    for shape in ((0, 3), (3, 0), (0, 0)):
        empty = torch.zeros(*shape, shape[-1], dtype=torch.float64)
        yield Sample(f"empty-{shape}", {"sigma1": empty, "sigma2": empty.clone()})


def pair_errors() -> Iterator[ErrorInput]:
    s = torch.eye(3, dtype=torch.float64)
    for name, one, two, error, words in (
        ("float32", s.float(), s, TypeError, ("sigma1", "float64", "float32")),
        ("float32 second", s, s.float(), TypeError, ("sigma2", "float64")),
        ("integer", s.long(), s.long(), TypeError, ("float64", "int64")),
        ("not square", s[:2], s[:2], ValueError, ("(2, 3)",)),
        ("vector", s[0], s[0], ValueError, ("(3,)",)),
        ("other size", s, torch.eye(4, dtype=torch.float64), ValueError, ("(3, 3)", "(4, 4)")),
        ("other batch", s, s[None], ValueError, ("(3, 3)", "(1, 3, 3)")),
    ):
        yield ErrorInput(name, {"sigma1": one, "sigma2": two}, error, words)


def own_bound(
    s: Sample, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], upstream: Any, dtypes: Dtypes
) -> dict[str, float]:
    """What the op says of itself. The bound is each backend's own. A layout that repeats elements makes matrices
    indefinite, which are none for the op: CUDA's needs both factors, the reference one."""
    definite = all((torch.linalg.cholesky_ex(t).info == 0).all() for t in inputs.values())
    bound = outputs["bound"].max().item() if definite and outputs["bound"].numel() else 0.0
    return {"trace": bound if definite else math.inf, "bound": math.inf}


register(
    OpSpec(
        name="trace_sqrt_product",
        function=ops.trace_sqrt_product,
        reference=reference.trace_sqrt_product,
        outputs=("trace", "bound"),
        roles={"sigma1": "double", "sigma2": "double"},
        batched=frozenset(("sigma1", "sigma2", "trace", "bound")),
        order=0,
        dtypes=(F32,),  # of nothing: covariances are float64
        allowance=own_bound,
        samples=pairs,
        shapes=pair_shapes,
        threaded=lambda: [pair("160x160", 3, 160), pair("333x333", 333)],
        errors=pair_errors,
        draw=st.builds(lambda batch, d: pair("drawn", batch, d), st.integers(1, 3), st.integers(1, 40)),
    )
)


# --- polar ------------------------------------------------------------------------------------------------------------


def matrix(name: str, *shape: int) -> Sample:
    """Singular values from 1 to 1/4: the factor of a matrix near a singular one is no function of it, in floats."""
    u, v = orthogonal(f"{name} u", *shape), orthogonal(f"{name} v", *shape[:-2], min(shape[-2:]), min(shape[-2:]))
    values = torch.linspace(1, 0.25, v.shape[-1], dtype=torch.float64)
    b = (u * values) @ v if shape[-2] >= shape[-1] else v @ (values[:, None] * u)
    return Sample(name, {"b": b})


def matrices() -> Iterator[Sample]:
    yield matrix("square", 1, 4, 4)
    yield matrix("tall", 3, 7, 4)
    yield matrix("wide", 2, 1, 3, 5)


def matrix_shapes() -> Iterator[Sample]:
    for n in SIZES:
        yield matrix(f"{n}x{n}", 2, n, n)
        yield matrix(f"{2 * n + 1}x{n}", 2, 2 * n + 1, n)
    for shape in ((0, 3, 3), (2, 0, 3), (2, 3, 0), (0, 0)):
        yield Sample(f"empty-{shape}", {"b": torch.zeros(shape, dtype=torch.float64)})


def matrix_errors() -> Iterator[ErrorInput]:
    b = torch.ones(3, 3)
    yield ErrorInput("half", {"b": b.half()}, TypeError, ("float32", "float16"))
    yield ErrorInput("integer", {"b": b.long()}, TypeError, ("float32", "int64"))
    yield ErrorInput("vector", {"b": b[0]}, ValueError, ("(3,)",))


@functools.wraps(ops.polar)
def nuclear_norm(b: Tensor) -> Tensor:
    return ops.polar(b)[1]


def true_nuclear_norm(b: Tensor) -> Tensor:
    """The sum of the singular values."""
    return reference.polar(b)[1]


def undetermined(
    s: Sample, inputs: Mapping[str, Any], outputs: Any, upstream: Mapping[str, Tensor], dtypes: Dtypes
) -> dict[str, float]:
    """Where b is singular (a layout repeats its rows) the polar factor there is any of length 1 at most.

    Elsewhere: eps, the rounding of an iteration's last step in sums of products of rows of length 1, which a library's
    singular vectors of small matrices may be spared on some processors. (Seen: Triton's interpreter, RMS error 2.2e-7
    where LAPACK's on Zen 5 allowed 2.0e-7.)
    """
    values = torch.linalg.svdvals(inputs["b"].double()) if inputs["b"].numel() else torch.ones(1, 1)
    singular = (values[..., -1] < 1e-3 * values[..., 0]).any()
    largest = upstream["norm"].double().abs().amax().item() if upstream["norm"].numel() else 0.0
    return {"grad_b": largest * (2 if singular else torch.finfo(dtypes.data).eps)}


register(
    OpSpec(
        name="polar",
        function=nuclear_norm,
        library=True,
        reference=true_nuclear_norm,
        outputs=("norm",),
        roles={"b": "data"},
        batched=frozenset(("b", "norm")),
        order=1,
        allowance=undetermined,
        dtypes=(F32, F64),
        samples=matrices,
        shapes=matrix_shapes,
        threaded=lambda: [matrix("many", 20, 64, 64), matrix("large", 2, 300, 128)],
        errors=matrix_errors,
        draw=st.builds(
            lambda batch, m, n: matrix("drawn", batch, m, n), st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)
        ),
    )
)


def backward_samples() -> Iterator[Sample]:
    for shape in ((4, 3), (2, 3, 5)):
        matrices = {"b": random("b", *shape), "polar": random("polar", *shape)}
        yield Sample(str(shape), {"grad_norm": random("grad", *shape[:-2]), **matrices})


def times_polar(grad_norm: Tensor, b: Tensor, polar: Tensor) -> Tensor:
    """The gradient of the nuclear norm."""
    return grad_norm[..., None, None] * polar + 0 * b.nan_to_num()


register(
    OpSpec(
        name="polar_backward",
        function=lambda grad_norm, b, polar: torch.ops.pygen.polar_backward(grad_norm, b, polar),
        reference=times_polar,
        outputs=("grad_b",),
        roles=dict.fromkeys(("grad_norm", "b", "polar"), "data"),
        batched=frozenset(),
        order=0,
        dtypes=(F32, F64),
        samples=backward_samples,
        public=False,
    )
)
