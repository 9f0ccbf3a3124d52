"""A small op that keeps the whole contract, to try the checks on; `make` gives copies of it with parts replaced.

The op is y = x exp(s), logdet = sum of s over a sample, for x and s of one shape [B, ...]. Its copies live in a library
of their own, `torch.ops.pygen_test`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pygen import backends
from pygen._lib import layout, once_differentiable, refuse_tangents

from .calls import random
from .spec import ErrorInput, OpSpec, Sample

_library = torch.library.Library("pygen_test", "DEF")
_numbers = itertools.count()


# --- its parts --------------------------------------------------------------------------------------------------------


def reference(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """y = x exp(s), and the sum of s over each sample."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = (x.to(wide) * s.to(wide).exp()).to(x.dtype)
    return y, s.to(wide).flatten(1).sum(1)


def check(x: Tensor, s: Tensor) -> None:
    if x.shape != s.shape:
        raise ValueError(f"toy: expected s of shape {tuple(x.shape)} as x, got {tuple(s.shape)}")


def forward(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    check(x, s)
    y, logdet = reference(x, s)
    return y.contiguous(memory_format=layout(x)), logdet


def fake(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    check(x, s)
    return torch.empty_like(x, memory_format=layout(x)), x.new_empty(
        x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32)
    )


def gradient(
    grad_y: Tensor, grad_logdet: Tensor, y: Tensor, s: Tensor, need_x: bool, need_s: bool
) -> tuple[Tensor, Tensor]:
    """Gradients by formula; empty where not needed."""
    wide = torch.promote_types(y.dtype, torch.float32)
    grad_x, grad_s = grad_y.new_empty(0), s.new_empty(0)
    if need_x:
        grad_x = (grad_y.to(wide) * s.to(wide).exp()).to(y.dtype).contiguous()
    if need_s:
        rows = grad_logdet.reshape(-1, *[1] * (y.dim() - 1))
        grad_s = (grad_y.to(wide) * y.to(wide) + rows).to(s.dtype).contiguous()
    return grad_x, grad_s


def fake_gradient(
    grad_y: Tensor, grad_logdet: Tensor, y: Tensor, s: Tensor, need_x: bool, need_s: bool
) -> tuple[Tensor, Tensor]:
    return grad_y.new_empty(y.shape if need_x else 0), s.new_empty(s.shape if need_s else 0)


def save(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[0], inputs[1])


def samples() -> Iterator[Sample]:
    for i, shape in enumerate(((3, 5), (2, 3, 4, 5), (4, 33))):
        name = f"toy-{i}"
        yield Sample(name, {"x": random(f"{name} x", *shape), "s": random(f"{name} s", *shape)})


def extremes() -> Iterator[Sample]:
    yield Sample("large", {"x": random("large", 2, 4), "s": torch.tensor([[-900.0, 80.0, 900.0, 0.0]] * 2).double()})


def errors() -> Iterator[ErrorInput]:
    yield ErrorInput("shape", {"x": torch.ones(2, 3), "s": torch.ones(2, 4)}, ValueError, ("(2, 4)",))


def make(
    *,
    forward: Callable[..., Any] = forward,
    fake: Callable[..., Any] = fake,
    gradient: Callable[..., Any] = gradient,
    save: Callable[..., None] = save,
    registered: bool = True,
    derivative: Callable[..., Any] | None = None,
    vmap: Callable[..., Any] | None = None,
    forwards: bool = True,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
    **promises: Any,
) -> OpSpec:
    """The op with some parts replaced.

    registered: whether its gradient is registered.
    derivative: that of its backward; None: the one that raises; False: none.
    vmap: a batching rule.
    forwards: whether it refuses forward mode.
    wrap: makes the public function from that of the op.
    promises: fields of the `OpSpec`.
    """
    name = f"toy{next(_numbers)}"
    _library.define(f"{name}(Tensor x, Tensor s) -> (Tensor, Tensor)")
    _library.impl(name, forward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pygen_test::{name}", fake, lib=_library)
    op = getattr(torch.ops.pygen_test, name).default

    back = f"{name}_backward"
    _library.define(f"{back}(Tensor gy, Tensor gl, Tensor y, Tensor s, bool need_x, bool need_s) -> (Tensor, Tensor)")
    _library.impl(back, gradient, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pygen_test::{back}", fake_gradient, lib=_library)
    if derivative is not False:
        torch.library.register_autograd(f"pygen_test::{back}", derivative or once_differentiable(back), lib=_library)
    op_backward = getattr(torch.ops.pygen_test, back).default

    def backward(ctx: Any, grad_y: Tensor, grad_logdet: Tensor) -> tuple[Tensor | None, ...]:
        need = ctx.needs_input_grad
        grads = op_backward(grad_y, grad_logdet, *ctx.saved_tensors, *need)
        return tuple(g if n else None for g, n in zip(grads, need, strict=True))

    if registered:
        torch.library.register_autograd(f"pygen_test::{name}", backward, setup_context=save, lib=_library)
    if vmap is not None:
        torch.library.register_vmap(f"pygen_test::{name}", vmap, lib=_library)

    def public(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        if backends.forced == "reference":
            check(x, s)
            y, logdet = reference(x, s)
            return y.contiguous(memory_format=layout(x)), logdet
        if forwards and forward_ad._current_level >= 0:
            refuse_tangents(name, x, s)
        return op(x, s)

    fields = {
        "name": name,
        "function": wrap(public),
        "reference": reference,
        "outputs": ("y", "logdet"),
        "roles": {"x": "data", "s": "parameters"},
        "batched": frozenset({"x", "s", "y", "logdet"}),
        "order": 1,
        "samples": samples,
        "extremes": extremes,
        "errors": errors,
        "keeps": lambda sample: frozenset({"y", "s"}),
        "namespace": "pygen_test",
    }
    return OpSpec(**fields | promises)


def make_backward(gradient: Callable[..., Any] = gradient) -> OpSpec:
    """The backward as an op of its own, with its outputs that may be skipped."""

    def function(**arguments: Any) -> tuple[Tensor, Tensor]:
        return gradient(**arguments)

    def backward_samples() -> Iterator[Sample]:
        names = ("grad_y", "grad_logdet", "y", "s")
        shapes = ((3, 5), (3,), (3, 5), (3, 5))
        inputs = {k: random(k, *shape) for k, shape in zip(names, shapes, strict=True)}
        yield Sample("toy", inputs, {"need_x": True, "need_s": True})

    return OpSpec(
        name="toy_backward",
        function=function,
        reference=gradient,
        outputs=("grad_x", "grad_s"),
        roles={"grad_y": "data", "grad_logdet": "accumulate", "y": "data", "s": "parameters"},
        batched=frozenset({"grad_y", "grad_logdet", "y", "s", "grad_x", "grad_s"}),
        order=0,
        samples=backward_samples,
        skips={"need_x": 0, "need_s": 1},
        public=False,
    )
