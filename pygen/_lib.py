"""One place where ops are declared: schema, default kernel, fake, gradient, CUDA owner."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ._options import Options

lib = torch.library.Library("pygen", "DEF")

# What tensors of data may hold.
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def names(dtypes: Sequence[torch.dtype]) -> str:
    """As messages list them."""
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


@dataclass(frozen=True)
class Op:
    """What `pygen info`, `pygen.backends.explain` and the tests know of one op.

    name: the op's name in `torch.ops.pygen`.
    family: the file that holds it in every room (`pygen/ops/<family>.py`, `csrc/cpu/<family>.cpp`, ...).
    cuda: who owns the CUDA dispatch key: "triton" (`kernels/<family>.py`), "cuda" (`csrc/cuda/<family>.cpp`) or None.
    """

    name: str
    family: str
    cuda: str | None


OPS: dict[str, Op] = {}

Kernel = Callable[..., Any]


def define(
    schema: str,
    *,
    family: str,
    default: Kernel,
    fake: Kernel,
    check: Kernel,
    cuda: str | None,
    setup_context: Kernel | None = None,
    backward: Kernel | None = None,
    options: type[Options] | None = None,
    draws: bool = False,
) -> None:
    """Declares one op.

    schema: in torch's schema language, with the op's name and without the namespace.
    default: the reference kernel; serves every device that no native kernel serves.
    fake: shapes, dtypes and strides of the outputs.
    check: raises for arguments that the op does not admit; called before a Triton launcher is (`default` and `fake` see
        to it themselves).
    cuda: "triton" registers `launch_<name>` of `kernels/<family>.py` at the CUDA key, imported at its first call.
        "cuda" leaves that key to the C++ glue.
    setup_context, backward: the gradient, as in `torch.library.register_autograd`. A backward op without a derivative
        of its own passes a `backward` that raises (`once_differentiable`): without one, second-order gradients through
        it would be silently wrong. None: the outputs never require grad, whatever the inputs do.
    options: what the schema's argument `str options` stands for: default, fake, check and the Triton launcher get it
        parsed; setup_context and backward get the string.
    draws: it may advance a random generator: compilers neither drop, merge nor repeat its calls.
    """
    name, arguments = schema.split("->")[0].rstrip(" )").split("(", 1)
    place = arguments.split(", ").index("str options") if options is not None else 0

    def parsed(kernel: Kernel) -> Kernel:
        if options is None:
            return kernel
        parse = options.parse
        return lambda *args: kernel(*args[:place], parse(args[place]), *args[place + 1 :])

    tags = (torch.Tag.pt2_compliant_tag, *([torch.Tag.nondeterministic_seeded] if draws else []))
    lib.define(schema, tags=tags)
    lib.impl(name, parsed(default), "CompositeExplicitAutograd")
    torch.library.register_fake(f"pygen::{name}", parsed(fake), lib=lib)
    if backward is None:
        lib.impl(name, torch.library.fallthrough_kernel, "Autograd")
    else:
        torch.library.register_autograd(f"pygen::{name}", backward, setup_context=setup_context, lib=lib)
    if cuda == "triton" and importlib.util.find_spec("triton") is not None:

        def launch(*args: Any) -> Any:
            check(*args)
            return getattr(importlib.import_module(f"pygen.kernels.{family}"), f"launch_{name}")(*args)

        lib.impl(name, parsed(launch), "CUDA")
    OPS[name] = Op(name, family, cuda)


def once_differentiable(name: str) -> Kernel:
    """The `backward` of a backward op that has no derivative: raises, because torch would otherwise return zeros."""

    def backward(ctx: Any, *grads: torch.Tensor) -> None:
        raise NotImplementedError(f"pygen::{name} has no derivative: the op it belongs to is differentiable once")

    return backward


def not_differentiable(op: str, instead: str, *tensors: torch.Tensor) -> None:
    """Raises where a gradient would be recorded and lost: the op has none, and never detaches in silence."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise NotImplementedError(f"{op} is not differentiable, and an input requires grad: {instead}")


def without_autocast(x: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Matrix products in the dtype of their factors, also where x's device is under torch.autocast."""
    available = torch.amp.is_autocast_available(x.device.type)
    return torch.autocast(x.device.type, enabled=False) if available else contextlib.nullcontext()


def layout(x: torch.Tensor) -> torch.memory_format:
    """Memory format of every output: channels_last where x is so and not contiguous too, else contiguous."""
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def refuse_tangents(op: str, *tensors: torch.Tensor | None) -> None:
    """Raises for forward-mode differentiation, which torch would otherwise ignore: no op has a formula for it."""
    for tensor in tensors:
        if tensor is not None and torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                f"{op} has no forward-mode derivative (torch.func.jvp, torch.autograd.forward_ad)"
            )
