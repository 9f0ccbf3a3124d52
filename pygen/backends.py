"""Which implementation serves an op, and why.

The automatic choice never raises: a native kernel where there is one, else the plain PyTorch reference. An explicit
one, `use("native")` or `PYGEN_BACKEND=native`, raises when it cannot be honoured.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from . import _ext
from ._lib import OPS

BACKENDS = ("reference", "native")

forced: str | None = None  # what every op is asked to use; None: the best there is


@dataclass(frozen=True)
class Explanation:
    """The choice for one op on one device: "native" or "reference", the implementation's name, and the reasons."""

    op: str
    device: str
    backend: str
    implementation: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        why = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        return f"{self.op} on {self.device}: {self.implementation}{why}"


def _native(op: str, device: str) -> tuple[str | None, str]:
    """The native implementation for a device type, or None; and why there is no better one."""
    if device == "cpu":
        if _ext.tier is not None:
            return f"C++ ({_ext.TIER_NAMES[_ext.tier]})", _ext.reason or ""
        return None, str(_ext.reason)
    if device == "cuda":
        owner = OPS[op].cuda
        if owner == "triton":
            if importlib.util.find_spec("triton") is not None:
                return "Triton", ""
            return None, "triton is not installed"
        if owner == "cuda":
            return ("CUDA C++", "") if _ext.has_cuda else (None, _ext.cuda_reason)
        return None, "no CUDA kernel"
    return None, f"no native kernel for device type {device!r}"


def explain(op: str, *args: object) -> Explanation:
    """What would run op for these arguments, and why. The first tensor, or device, or name of one, decides."""
    if op not in OPS:
        raise ValueError(f"explain: expected one of {', '.join(sorted(OPS))}, got {op!r}")
    device = "cpu"
    for arg in args:
        if isinstance(arg, torch.Tensor):
            device = arg.device.type
            break
        if isinstance(arg, (str, torch.device)):
            device = torch.device(arg).type
            break
    native, why_not = _native(op, device)
    if forced == "reference":
        return Explanation(op, device, "reference", "PyTorch reference", ("asked for",))
    if native is None:
        return Explanation(op, device, "reference", "PyTorch reference", (why_not,))
    reasons = [*(["asked for"] if forced == "native" else []), *([why_not] if why_not else [])]
    return Explanation(op, device, "native", native, tuple(reasons))


def choose(op: str, tensor: torch.Tensor) -> str:
    """ "reference" or "native" under an explicit request; raises RuntimeError when native was asked for in vain."""
    if forced == "native":
        native, why_not = _native(op, tensor.device.type)
        if native is None:
            raise RuntimeError(f"pygen::{op}: the native backend was asked for on {tensor.device.type}, but: {why_not}")
    return forced or "native"


def _checked(name: str | None) -> str | None:
    if name is not None and name not in BACKENDS:
        raise ValueError(f"expected a backend in {BACKENDS} or None, got {name!r}")
    return name


@contextlib.contextmanager
def _restoring(previous: str | None) -> Iterator[None]:
    global forced
    try:
        yield
    finally:
        forced = previous


def use(name: str | None) -> contextlib.AbstractContextManager[None]:
    """Makes every op use the named backend from now on; as a context manager, until its end. None: automatic again."""
    global forced
    previous, forced = forced, _checked(name)
    return _restoring(previous)


try:
    use(os.environ.get("PYGEN_BACKEND") or None)
except ValueError as error:
    raise ValueError(f"PYGEN_BACKEND: {error}") from None
