"""One place where ops are declared: schema, default kernel, fake, gradient, CUDA owner."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

lib = torch.library.Library("pygen", "DEF")


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
    setup_context: Kernel | None,
    backward: Kernel,
    cuda: str | None,
) -> None:
    """Declares one op.

    schema: in torch's schema language, with the op's name and without the namespace.
    default: the reference kernel; serves every device that no native kernel serves.
    fake: shapes, dtypes and strides of the outputs.
    setup_context, backward: the gradient, as in `torch.library.register_autograd`. An op without a derivative of
        its own passes a `backward` that raises (`once_differentiable`): without one, second-order gradients through
        it would be silently wrong.
    cuda: "triton" registers `launch_<name>` of `kernels/<family>.py` at the CUDA key, imported at its first call.
        "cuda" leaves that key to the C++ glue.
    """
    name = schema.split("(", 1)[0]
    lib.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    lib.impl(name, default, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pygen::{name}", fake, lib=lib)
    torch.library.register_autograd(f"pygen::{name}", backward, setup_context=setup_context, lib=lib)
    if cuda == "triton" and importlib.util.find_spec("triton") is not None:

        def launch(*args: Any) -> Any:
            return getattr(importlib.import_module(f"pygen.kernels.{family}"), f"launch_{name}")(*args)

        lib.impl(name, launch, "CUDA")
    OPS[name] = Op(name, family, cuda)


def once_differentiable(name: str) -> Kernel:
    """The `backward` of a backward op that has no derivative: raises, because torch would otherwise return zeros."""

    def backward(ctx: Any, *grads: torch.Tensor) -> None:
        raise NotImplementedError(f"pygen::{name} has no derivative: the op it belongs to is differentiable once")

    return backward
