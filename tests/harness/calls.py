"""From a sample to tensors, outputs and gradients; and what a public function hands to the dispatcher."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from .layouts import lay_out
from .spec import Dtypes, OpSpec, Sample

Tensors = dict[str, Tensor]


def random(seed: str, *shape: int) -> Tensor:
    """Standard normals in float64 that depend on nothing but the seed."""
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Call:
    """A sample with tensors of one dtype, layout and device."""

    inputs: dict[str, Tensor | None]
    options: Mapping[str, Any]

    @property
    def tensors(self) -> Tensors:
        return {name: t for name, t in self.inputs.items() if t is not None}

    @property
    def differentiable(self) -> list[str]:
        return [name for name, t in self.tensors.items() if t.is_floating_point()]

    def map(self, f: Callable[[Tensor], Tensor]) -> Call:
        return replace(self, inputs={k: None if t is None else f(t) for k, t in self.inputs.items()})

    def double(self) -> Call:
        """The same values in float64, contiguous."""
        return self.map(lambda t: (t.detach().double() if t.is_floating_point() else t.detach()).contiguous())

    def requiring_grad(self, names: Collection[str] | None = None) -> Call:
        """Its inputs as new leaves (same memory) of which some require grad: all that can, or those named."""
        names = self.differentiable if names is None else names
        inputs = {k: None if t is None else t.detach().requires_grad_(k in names) for k, t in self.inputs.items()}
        return replace(self, inputs=inputs)


def build(spec: OpSpec, sample: Sample, dtypes: Dtypes, layout: str = "contiguous", device: str = "cpu") -> Call:
    def cast(name: str, t: Tensor | None) -> Tensor | None:
        if t is None:
            return None
        return t.to(device, getattr(dtypes, spec.roles[name]) if t.is_floating_point() else t.dtype)

    inputs = {name: cast(name, t) for name, t in sample.inputs.items()}
    return Call(lay_out(inputs, layout), sample.options)


def trainable(spec: OpSpec, call: Call) -> Call:
    """The call as in training: every input that can require grad does, if the op is differentiable at all."""
    return call.requiring_grad() if spec.order else call


def run(spec: OpSpec, function: Callable[..., Any], call: Call) -> Tensors:
    """The function's outputs by name."""
    result = function(**call.inputs, **call.options)
    result = (result,) if isinstance(result, Tensor) else result
    assert len(result) == len(spec.outputs), f"{spec}: {len(result)} outputs, expected {spec.outputs}"
    return dict(zip(spec.outputs, result, strict=True))


# --- upstream gradients: what the outputs' consumers send back -------------------------------------------------------

UPSTREAM = ("contiguous", "sum", "transposed", "sliced", "offset", "first_only", "last_only")


def upstream_gradients(outputs: Tensors, kind: str) -> Tensors:
    """Gradients for the outputs, drawn in float64, in the outputs' dtypes. "sum": the stride-0 ones that `.sum()`
    sends; "first_only", "last_only": the other outputs get none."""
    names = list(outputs)
    if kind in ("first_only", "last_only"):
        names = [names[0 if kind == "first_only" else -1]]
    drawn = {k: random(f"upstream {k}", *outputs[k].shape).to(outputs[k]) for k in names}
    if kind == "sum":
        return {k: outputs[k].new_ones(()).expand(outputs[k].shape) for k in names}
    return lay_out(drawn, kind if kind in ("transposed", "sliced", "offset") else "contiguous")


def backward(
    outputs: Tensors, upstream: Tensors, call: Call, wrt: Collection[str] | None = None, create_graph: bool = False
) -> Tensors:
    """Gradients as "grad_<input>", zeros where an input does not count."""
    names = [k for k, t in call.tensors.items() if t.requires_grad] if wrt is None else list(wrt)
    pairs = [(outputs[k], g) for k, g in upstream.items() if outputs[k].requires_grad]
    inputs = [call.tensors[k] for k in names]
    if not pairs:
        return {f"grad_{k}": torch.zeros_like(t) for k, t in zip(names, inputs, strict=True)}
    grads = torch.autograd.grad(
        [output for output, _ in pairs],
        inputs,
        [gradient for _, gradient in pairs],
        allow_unused=True,
        materialize_grads=True,
        create_graph=create_graph,
    )
    return {f"grad_{k}": g for k, g in zip(names, grads, strict=True)}


def evaluate(
    spec: OpSpec, function: Callable[..., Any], call: Call, upstream: Tensors | str
) -> tuple[Tensors, Tensors]:
    """Outputs, and the gradients of all inputs that can have one, for the upstream gradients given or drawn; none for
    an op that is not differentiable."""
    call = trainable(spec, call)
    outputs = run(spec, function, call)
    if not spec.order:
        return outputs, {}
    if isinstance(upstream, str):
        upstream = upstream_gradients(outputs, upstream)
    else:
        upstream = {k: g.to(outputs[k].dtype) for k, g in upstream.items()}
    grads = backward(outputs, upstream, call)
    return {k: t.detach() for k, t in outputs.items()}, grads


# --- the op behind a public function ---------------------------------------------------------------------------------


class _Recorder(TorchFunctionMode):
    """Notes the calls of a namespace's ops as they enter the dispatcher, before autograd, whoever owns that; and makes
    them on copies, so that what it noted is what was given."""

    def __init__(self, namespace: str) -> None:
        super().__init__()
        self.namespace = namespace
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, torch._ops.OpOverloadPacket):
            func = func.default
        if isinstance(func, torch._ops.OpOverload) and func.namespace == self.namespace:
            self.calls.append((func, args, kwargs or {}))
            args, kwargs = tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs))
        return func(*args, **(kwargs or {}))


def raw_call(spec: OpSpec, call: Call) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """(op, args, kwargs) that the public function hands to the dispatcher for this call."""
    with _Recorder(spec.namespace) as recorder:
        run(spec, spec.function, call)
    assert recorder.calls, f"{spec}: its function calls no op of torch.ops.{spec.namespace}"
    op, args, kwargs = recorder.calls[0]
    assert op._schema.name == f"{spec.namespace}::{spec.name}", f"{spec}: its function calls {op} first"
    return op, args, kwargs


# --- comparing bits --------------------------------------------------------------------------------------------------

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit by bit (so NaN equals itself and 0 differs from -0)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    integer = _INTEGERS[a.element_size()]
    return torch.equal(a.detach().contiguous().view(integer), b.detach().contiguous().view(integer))


def assert_same_bits(ours: Tensors, theirs: Tensors, what: str) -> None:
    assert ours.keys() == theirs.keys(), f"{what}: {sorted(ours)} against {sorted(theirs)}"
    for name, t in ours.items():
        if not same_bits(t, theirs[name]):
            difference = (t.double() - theirs[name].double()).abs()
            raise AssertionError(f"{what}: {name} differs, by up to {difference.max().item():.3g}")


def strides(t: Tensor) -> tuple[int | None, ...]:
    """Its strides where they mean something: dimensions of more than one element, in a tensor that is not empty."""
    if math.prod(t.shape) == 0:
        return (None,) * t.dim()
    return tuple(None if n == 1 else s for n, s in zip(t.shape, t.stride(), strict=True))
