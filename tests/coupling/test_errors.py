"""What affine_coupling does not admit: the type of the error, and a message that says what was expected and given."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from pygen import backends
from pygen.ops import affine_coupling

SHAPE = (2, 4, 3, 3)  # of x and params in a call that is right; two channels change


def zeros(*shape: int, **options: Any) -> torch.Tensor:
    return torch.zeros(shape, **options)


# what differs from a right call, the error, what the message says of the expected and of the given
ERRORS: list[tuple[dict[str, Any], type[Exception], str, str]] = [
    # shapes
    ({"x": zeros(4), "params": zeros(4)}, ValueError, "x of shape [B, C, ...]", "(4,)"),
    ({"x": zeros(), "params": zeros()}, ValueError, "x of shape [B, C, ...]", "()"),
    ({"x": zeros(3, 4, 3, 3)}, ValueError, "B = 3", "(2, 4, 3, 3)"),
    ({"params": zeros(2, 4, 3, 2)}, ValueError, "[B, channels, 3, 3]", "(2, 4, 3, 2)"),
    ({"params": zeros(2, 4, 9)}, ValueError, "[B, channels, 3, 3]", "(2, 4, 9)"),
    ({"params": zeros(2, 3, 3, 3)}, ValueError, "even number of channels in params", "3"),
    ({"params": zeros(2, 2, 3, 3)}, ValueError, "4 channels for 2 changing channels", "2"),
    ({"activation": "additive"}, ValueError, "2 channels for 2 changing channels", "4"),
    ({"part": "all"}, ValueError, "8 channels for 4 changing channels", "4"),
    ({"part": "even"}, ValueError, "8 channels for 4 changing channels", "4"),
    ({"x": zeros(2, 5, 3, 3)}, ValueError, "even number of channels in x to change its second half", "5"),
    ({"x": zeros(2, 5, 3, 3), "part": "first"}, ValueError, "even number of channels in x", "5"),
    ({"logdet": zeros(3)}, ValueError, "logdet of shape (2,)", "(3,)"),
    ({"logdet": zeros(2, 1)}, ValueError, "logdet of shape (2,)", "(2, 1)"),
    ({"logdet": zeros()}, ValueError, "logdet of shape (2,)", "()"),
    ({"gain": zeros(3)}, ValueError, "gain of 1 or 2 elements", "(3,)"),
    # types
    ({"inverse": "False"}, TypeError, "inverse to be a bool", "'False'"),
    ({"interleaved": 1}, TypeError, "interleaved to be a bool", "1"),
    ({"gain": None}, TypeError, "gain as a number or a floating-point tensor", "NoneType"),
    ({"gain": "x", "activation": "additive"}, TypeError, "gain as a number or a floating-point tensor", "str"),
    ({"x": [1.0, 2.0]}, TypeError, "x to be a tensor", "list"),
    ({"params": None}, TypeError, "params to be a tensor", "NoneType"),
    ({"logdet": 0.0}, TypeError, "logdet to be a tensor", "float"),
    ({"offset": 10**400}, ValueError, "offset to be finite", "an integer beyond it"),
    # dtypes
    ({"x": zeros(*SHAPE, dtype=torch.int64)}, TypeError, "float32 or float64 or bfloat16 or float16", "torch.int64"),
    ({"x": zeros(*SHAPE, dtype=torch.complex64)}, TypeError, "float32 or float64", "torch.complex64"),
    ({"params": zeros(*SHAPE, dtype=torch.int32)}, TypeError, "float32 or bfloat16 or float16", "torch.int32"),
    ({"params": zeros(*SHAPE, dtype=torch.float64)}, TypeError, "for x of torch.float32", "torch.float64"),
    ({"x": zeros(*SHAPE, dtype=torch.bfloat16)}, TypeError, "params of dtype bfloat16", "torch.float32"),
    ({"x": zeros(*SHAPE, dtype=torch.float64)}, TypeError, "params of dtype float64", "torch.float32"),
    ({"logdet": zeros(2, dtype=torch.float64)}, TypeError, "logdet of torch.float32", "torch.float64"),
    ({"logdet": zeros(2, dtype=torch.int64)}, TypeError, "logdet of torch.float32", "torch.int64"),
    ({"gain": zeros(2, dtype=torch.int64)}, TypeError, "a number or a floating-point tensor", "torch.int64"),
    ({"gain": zeros(2, dtype=torch.complex64)}, TypeError, "a number or a floating-point tensor", "torch.complex64"),
    # devices
    ({"params": zeros(*SHAPE, device="meta")}, ValueError, "params on cpu as x", "meta"),
    ({"x": zeros(*SHAPE, device="meta")}, ValueError, "params on meta as x", "cpu"),
    ({"logdet": zeros(2, device="meta")}, ValueError, "logdet on cpu as x", "meta"),
    ({"gain": zeros(2, device="meta")}, ValueError, "gain on cpu as x", "meta"),
    ({"part": zeros(2, dtype=torch.int64, device="meta")}, ValueError, "index on cpu as x", "meta"),
    # part
    ({"part": "middle"}, ValueError, "('first', 'second', 'all', 'even', 'odd')", "'middle'"),
    ({"part": "range"}, ValueError, "('first', 'second', 'all', 'even', 'odd')", "'range'"),
    ({"part": None}, TypeError, "a name, a slice, or a tensor or sequence of channel indices", "NoneType"),
    ({"part": 2}, TypeError, "a name, a slice, or a tensor or sequence of channel indices", "int"),
    ({"part": slice(3, 5)}, ValueError, "within the 4 channels", "slice(3, 5)"),
    ({"part": slice(-2, 4)}, ValueError, "within the 4 channels", "slice(-2, 4)"),
    ({"part": slice(3, 1)}, ValueError, "within the 4 channels", "slice(3, 1)"),
    ({"part": slice(0, 4, 2)}, ValueError, "slice(start, stop)", "slice(0, 4, 2)"),
    ({"part": [0, 0]}, ValueError, "distinct channel indices in [0, 4)", "[0, 0]"),
    ({"part": [-1, 0]}, ValueError, "distinct channel indices in [0, 4)", "[-1, 0]"),
    ({"part": torch.tensor([0, 4])}, ValueError, "distinct channel indices in [0, 4)", "[0, 4]"),
    ({"part": [0, 1, 2]}, ValueError, "6 channels for 3 changing channels", "4"),
    ({"part": torch.tensor([0, 1], dtype=torch.int32)}, TypeError, "one-dimensional int64 tensor", "torch.int32"),
    ({"part": torch.tensor([[0, 1]])}, TypeError, "one-dimensional int64 tensor", "(1, 2)"),
    ({"part": [0.5, 1.0]}, TypeError, "one-dimensional int64 tensor", "torch.float32"),
    ({"part": torch.tensor([True, True, False])}, ValueError, "one entry per channel of x (2, 4, 3, 3)", "(3,)"),
    ({"part": [True, True, False, False, False]}, ValueError, "one entry per channel of x (2, 4, 3, 3)", "(5,)"),
    ({"part": torch.ones(2, 4, dtype=torch.bool)}, ValueError, "one entry per channel of x (2, 4, 3, 3)", "(2, 4)"),
    ({"part": torch.tensor([True, True, True, False])}, ValueError, "6 channels for 3 changing channels", "4"),
    # names
    (
        {"activation": "relu"},
        ValueError,
        "activation to be one of ('exp', 'sigmoid', 'softplus', 'additive')",
        "'relu'",
    ),
    ({"activation": None}, ValueError, "activation to be one of", "None"),
    ({"squash": "sigmoid"}, ValueError, "squash to be one of (None, 'tanh', 'atan', 'softsign')", "'sigmoid'"),
    ({"shift": "both"}, ValueError, "shift to be one of ('after', 'before')", "'both'"),
    ({"order": "t"}, ValueError, "order to be one of ('st', 'ts')", "'t'"),
    # numbers
    *(
        ({option: value}, ValueError, f"{option} to be finite", str(value))
        for option in ("offset", "eps", "max_scale", "gain", "width", "shift_scale")
        for value in (math.nan, math.inf)
    ),
    *(
        ({option: value}, TypeError, f"{option} to be a number", type(value).__name__)
        for option in ("offset", "eps", "max_scale", "width", "shift_scale")
        for value in ("1", 1j)
    ),
    ({"gain": "1"}, TypeError, "gain as a number or a floating-point tensor", "str"),
    ({"shift_scale": zeros(2)}, TypeError, "shift_scale to be a number", "Tensor"),
    ({"eps": -1e-3}, ValueError, "eps >= 0", "-0.001"),
    ({"width": 0.0}, ValueError, "width to be finite and > 0", "0.0"),
    ({"width": -2.0}, ValueError, "width to be finite and > 0", "-2.0"),
    ({"max_scale": 0.0}, ValueError, "max_scale to be finite and > 0", "0.0"),
]


def name(changes: dict[str, Any]) -> str:
    values = (tuple(v.shape) if isinstance(v, torch.Tensor) else v for v in changes.values())
    return ",".join(f"{k}={v}" for k, v in zip(changes, values, strict=True))


def call(changes: dict[str, Any]) -> Any:
    return affine_coupling(**{"x": zeros(*SHAPE), "params": zeros(*SHAPE), **changes})


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(("changes", "error", "expected", "given"), ERRORS, ids=[name(e[0]) for e in ERRORS])
def test_error(changes: dict[str, Any], error: type[Exception], expected: str, given: str, backend: str | None) -> None:
    with backends.use(backend), pytest.raises(error) as info:
        call(changes)
    assert info.type is error
    message = re.escape("affine_coupling: expected ") + ".*" + re.escape(expected) + ".*got .*" + re.escape(given)
    assert re.match(message, str(info.value)), str(info.value)


def test_right_call() -> None:
    """What the errors differ from."""
    y, logdet = call({})
    assert y.shape == SHAPE
    assert logdet.shape == (2,)


COMPILED: list[tuple[dict[str, Any], str]] = [
    ({"params": zeros(2, 2, 3, 3)}, "expected params with 4 channels for 2 changing channels"),
    ({"x": zeros(*SHAPE, dtype=torch.int64)}, "expected x of dtype float32"),
    ({"eps": -1.0}, "expected eps >= 0, got -1.0"),
    ({"part": torch.tensor([0, 4])}, r"expected distinct channel indices in \[0, 4\), got \[0, 4\]"),
]


@pytest.mark.parametrize(("changes", "words"), COMPILED, ids=[name(c[0]) for c in COMPILED])
def test_error_under_compile(changes: dict[str, Any], words: str) -> None:
    """torch.compile wraps what is raised while it traces in errors of its own, with our message."""
    torch._dynamo.reset()
    with pytest.raises((ValueError, RuntimeError), match=words):
        torch.compile(call, backend="aot_eager", fullgraph=True)(changes)
