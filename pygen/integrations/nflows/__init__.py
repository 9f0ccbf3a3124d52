"""nflows' splines in one pass, for callers of nflows, of normflows, and of what is built on them, its autoregressive
inverses in one sweep, and its flows as models of pygen (`from_nflows`, `to_nflows`).

    from pygen.integrations.nflows import patch, unconstrained_rational_quadratic_spline
    patch()                # installed nflows and normflows, and who imported their splines, from now on
    with patch():          # while it lasts
        flow.log_prob(x)

The functions have the signatures of nflows.transforms.splines, and its results: `pygen.ops.rational_quadratic_spline`,
whose inverse has no assertion to fail and whose backward saves the raw parameters alone. They are differentiable once.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

from ... import ops
from ...ops.rational_quadratic_spline import BINS, parameter_dtypes
from ._flows import from_nflows, to_nflows
from ._sweep import swept

__all__ = [
    "Patch",
    "from_nflows",
    "patch",
    "rational_quadratic_spline",
    "to_nflows",
    "unconstrained_rational_quadratic_spline",
]

Spline = Callable[..., tuple[Tensor, Tensor]]


def unconstrained_rational_quadratic_spline(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    tails: str = "linear",
    tail_bound: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Splines on [-tail_bound, tail_bound], beyond which they are the identity: outputs and logabsdet of inputs' shape.

    inputs: [...]. unnormalized_widths, unnormalized_heights: [..., K]; unnormalized_derivatives: [..., K - 1], or
    [..., K] for tails="circular" (normflows). See `pygen.ops.rational_quadratic_spline`.

    Raises RuntimeError for other tails, as nflows does, ValueError and TypeError for what the op does not take.
    """
    if tails not in ("linear", "circular"):
        raise RuntimeError(f"{tails} tails are not implemented.")
    return ops.rational_quadratic_spline(
        inputs, unnormalized_widths, unnormalized_heights, unnormalized_derivatives,
        inverse=bool(inverse), tails=tails, bounds=tail_bound,
        min_width=min_bin_width, min_height=min_bin_height, min_derivative=min_derivative,
    )  # fmt: skip


def rational_quadratic_spline(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    left: float = 0.0,
    right: float = 1.0,
    bottom: float = 0.0,
    top: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Splines from [left, right] to [bottom, top], without tails: outputs and logabsdet of inputs' shape.

    As `unconstrained_rational_quadratic_spline`, of [..., K + 1] derivatives. On the CPU it raises InputOutsideDomain
    for inputs that are not within their interval (where nflows is imported, its own too, as well as `pygen.ops`'); on a
    GPU, where that would be a wait for it, they are NaN.
    """
    with _their_errors():
        return ops.rational_quadratic_spline(
            inputs, unnormalized_widths, unnormalized_heights, unnormalized_derivatives,
            inverse=bool(inverse), tails=None, bounds=(left, right, bottom, top),
            min_width=min_bin_width, min_height=min_bin_height, min_derivative=min_derivative,
        )  # fmt: skip


@contextlib.contextmanager
def _their_errors() -> Iterator[None]:
    """InputOutsideDomain as callers of nflows know it."""
    try:
        yield
    except ops.InputOutsideDomain as error:
        raise _outside_domain(str(error)) from None


def _outside_domain(message: str) -> Exception:
    """What callers of nflows catch, and others too, who may know ValueError alone."""
    base = sys.modules.get("nflows.transforms.base")
    return (ops.InputOutsideDomain if base is None else _both(base.InputOutsideDomain))(message)


@functools.cache
def _both(theirs: type[Exception]) -> type[Exception]:
    pickled = {"__reduce__": lambda self: (_outside_domain, self.args)}  # no module has the class
    return type("InputOutsideDomain", (theirs, ops.InputOutsideDomain), pickled)


_SPLINES = (unconstrained_rational_quadratic_spline, rational_quadratic_spline)
_HOMES = ("nflows.transforms.splines.rational_quadratic", "normflows.utils.splines")
_NUMBERS = (
    "tail_bound", "left", "right", "bottom", "top", "min_bin_width", "min_bin_height", "min_derivative",
)  # fmt: skip


_lock = threading.RLock()
_in_force: list[Patch] = []  # together they replace functions once, and whichever is undone last puts them back
_replaced: list[tuple[Spline, Spline]] = []  # the libraries' own, and what is in their places
_inverses: list[tuple[Any, Callable[..., Any]]] = []  # classes, and the methods `inverse` that were their own


def _has(given: dict[str, Any]) -> bool:
    """Whether pygen's splines have what is called for."""
    widths = given["unnormalized_widths"]
    return (
        BINS[0] <= widths.shape[-1] <= BINS[1]
        and widths.dtype in parameter_dtypes(given["inputs"].dtype)
        and isinstance(given.get("tails", ""), str)
        and all(isinstance(given.get(name, 0.0), (int, float)) for name in _NUMBERS)
    )


def _replacement(original: Spline, spline: Spline) -> Spline:
    """A spline in the place of `original`, which is called for what pygen's does not have."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def replaced(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        given = signature.bind(*args, **kwargs).arguments
        # what was imported under another name while a patch lasted stays where it is
        return spline(**given) if _in_force and _has(given) else original(*args, **kwargs)

    return replaced


class Patch:
    """What was replaced; `undo`, or the end of a `with` statement, puts them back, if no other patch lasts."""

    def __init__(self) -> None:
        self.__enter__()

    def undo(self) -> None:
        with _lock:
            if self in _in_force:
                _in_force.remove(self)
                if not _in_force:
                    _put_back()

    def __enter__(self) -> Patch:
        with _lock:
            if not _in_force:
                _replace()
            if self not in _in_force:
                _in_force.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()


def _replace() -> None:
    _replaced[:] = _replacements()
    _swap(_replaced)
    transforms = _installed("nflows.transforms.autoregressive")
    if transforms is not None:
        owner = transforms.AutoregressiveTransform
        _inverses.append((owner, owner.inverse))
        owner.inverse = _their_errors()(swept(owner.inverse))


def _put_back() -> None:
    _swap((spline, original) for original, spline in _replaced)
    while _inverses:
        owner, original = _inverses.pop()
        owner.inverse = original


def _replacements() -> list[tuple[Spline, Spline]]:
    homes = [home for name in _HOMES if (home := _installed(name)) is not None]
    if not homes:
        raise ImportError("expected nflows or normflows to be installed")
    originals = [(getattr(home, spline.__name__), spline) for home in homes for spline in _SPLINES]
    return [(original, _replacement(original, spline)) for original, spline in originals]


def _swap(pairs: Iterable[tuple[Spline, Spline]]) -> None:
    """The second of each in the place of the first, wherever a module has that under its name."""
    new = {id(old): new for old, new in pairs}
    for module in list(sys.modules.values()):
        for name in (spline.__name__ for spline in _SPLINES):
            found = getattr(module, "__dict__", {}).get(name)
            if id(found) in new:
                setattr(module, name, new[id(found)])


def _installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def patch() -> Patch:
    """Replaces the splines of installed nflows and normflows by this module's, wherever a module has them under their
    names, and the inverses of nflows' masked affine and rational-quadratic autoregressive transforms by one sweep
    (`pygen.ops.made_inverse`): in all threads, from now on, or, as `with patch():`, while that lasts.

    What pygen does not have (splines of 1 bin, of more than 64, of a tensor of bounds, of tails by dimension, of
    float64 beside other dtypes; nets with batch normalisation, with dropout in training, with activations that
    `pygen.nn.MADE` lacks) the libraries' own compute as before. Modules that are imported later find the replacements,
    too.

    What is replaced is differentiable once, and not by torch.func: while a patch lasts, second derivatives raise
    NotImplementedError where the libraries' own would have them.

    Raises ImportError with neither library.
    """
    return Patch()
