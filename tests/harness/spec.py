"""What an op says of itself, so that the generic suite can test it; and the registry of all ops."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sample:
    """One call of an op. Its floating-point tensors are float64 on the CPU: the harness casts, moves and lays them out.

    inputs: every tensor argument, by keyword; None for an absent one.
    options: the other arguments, by keyword.
    traits: what it tries, by name; small subsets of samples are chosen so that each still occurs. None: its options.
    """

    name: str
    inputs: Mapping[str, Tensor | None]
    options: Mapping[str, Any] = field(default_factory=dict)
    traits: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        shapes = {k: None if v is None else tuple(v.shape) for k, v in self.inputs.items()}
        return f"Sample({self.name}: {shapes}, {dict(self.options)})"


@dataclass(frozen=True)
class ErrorInput:
    """Keyword arguments that an op does not admit, as they are; what it raises; words that the message must hold.

    by_value: it takes an index's values to see it, which fake and meta tensors do not have.
    """

    name: str
    arguments: Mapping[str, Any]
    error: type[Exception]
    words: tuple[str, ...] = ()
    by_value: bool = False

    def __str__(self) -> str:
        return self.name


class Dtypes(NamedTuple):
    """Storage of the data and of the parameters. What accumulates is float32 or wider, or always float64."""

    data: torch.dtype
    parameters: torch.dtype

    @property
    def accumulate(self) -> torch.dtype:
        return torch.promote_types(self.data, torch.float32)

    @property
    def double(self) -> torch.dtype:
        return torch.float64

    def __str__(self) -> str:
        return "-".join(dict.fromkeys(str(d).removeprefix("torch.") for d in self))


F32, F64, BF16, F16 = (Dtypes(d, d) for d in (torch.float32, torch.float64, torch.bfloat16, torch.float16))
MIXED_BF16, MIXED_F16 = Dtypes(torch.float32, torch.bfloat16), Dtypes(torch.float32, torch.float16)
ALL_DTYPES = (F32, F64, BF16, F16, MIXED_BF16, MIXED_F16)


def no_allowance(sample: Sample, inputs: Any, outputs: Any, upstream: Any, dtypes: Dtypes) -> dict[str, float]:
    return {}


@dataclass(frozen=True, eq=False)
class OpSpec:
    """An op's promises, and what to try it with.

    name: in `torch.ops.<namespace>`.
    function: what users call, with a sample's inputs and options as keywords. For an op that only other ops call
        (a backward), a wrapper with keywords; `public` is False then.
    reference: the truth in plain PyTorch, same keywords and outputs, float64-capable, differentiable.
    outputs: their names.
    roles: for each floating-point input, the dtype it takes: "data", "parameters", "accumulate" or "double" (see
        `Dtypes`).
    batched: the inputs and outputs whose first dimension counts independent samples.
    order: how often it is differentiable; once more raises NotImplementedError.
    dtypes: what it admits. The first is the one for checks that need only one.
    samples: small ones for every option; a few dozen elements each, since gradcheck walks over all of them.
    shapes: awkward sizes, ranks and empty tensors under a few options.
    threaded: large enough for several threads and several blocks of every kernel.
    extremes: huge, tiny or infinite values; where the true result is representable the kernels must find it.
    errors: what it does not admit.
    draw: a hypothesis strategy of samples.
    huge: checks a call with more than 2^31 elements; takes the device and needs `huge_gb` of memory.
    keeps: the inputs and outputs that the graph may keep for the backward of this sample; "grad_<input>": one tensor of
        that input's shape beside them, for an op whose forward computes the gradient.
    allowance: bounds of its own, for a mode that cannot meet the general one (see `tolerance`): from the float64
        inputs, outputs and upstream gradients to an absolute error for some outputs or gradients ("grad_<input>"), one
        number or one an element.
        A gradient with such a bound may be NaN where its sample has one; see `checks.nan_containment`.
    library: it calls LAPACK: the same bits are promised for the same number of threads only.
    exact: it draws: outputs are the reference's bit by bit, on every backend and for any dtype; and NaN raises.
    skips: for a backward op, {option that asks for a gradient: index of that output}; its output is empty if False.
    """

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    outputs: tuple[str, ...]
    roles: Mapping[str, str]
    batched: frozenset[str]
    order: int
    samples: Callable[[], Iterable[Sample]]
    shapes: Callable[[], Iterable[Sample]] = tuple
    threaded: Callable[[], Iterable[Sample]] = tuple
    extremes: Callable[[], Iterable[Sample]] = tuple
    errors: Callable[[], Iterable[ErrorInput]] = tuple
    draw: st.SearchStrategy[Sample] | None = None
    huge: Callable[[torch.device], None] | None = None
    huge_gb: float = 0
    keeps: Callable[[Sample], frozenset[str]] | None = None
    allowance: Callable[..., Mapping[str, Any]] = no_allowance
    library: bool = False
    exact: bool = False
    skips: Mapping[str, int] = field(default_factory=dict)
    dtypes: tuple[Dtypes, ...] = (F32, F64, BF16, F16)
    namespace: str = "pygen"
    public: bool = True

    def __str__(self) -> str:
        return self.name


SPECS: dict[str, OpSpec] = {}


def register(spec: OpSpec) -> OpSpec:
    if spec.name in SPECS:
        raise ValueError(f"{spec.name} is registered twice")
    SPECS[spec.name] = spec
    return spec


def load() -> dict[str, OpSpec]:
    """The specs of all ops: imports every `tests/<family>/samples.py` (once)."""
    tests = Path(__file__).parent.parent
    for path in sorted(tests.glob("*/samples.py")):
        importlib.import_module(f"{tests.name}.{path.parent.name}.samples")
    return SPECS
