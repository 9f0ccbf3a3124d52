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
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from ... import ops
from ...ops.rational_quadratic_spline import BINS
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
    for inputs that are not within their interval (nflows' own if nflows is installed, else `pygen.ops`'); on a GPU,
    where that would be a wait for it, they are NaN.
    """
    with _their_errors():
        return ops.rational_quadratic_spline(
            inputs, unnormalized_widths, unnormalized_heights, unnormalized_derivatives,
            inverse=bool(inverse), tails=None, bounds=(left, right, bottom, top),
            min_width=min_bin_width, min_height=min_bin_height, min_derivative=min_derivative,
        )  # fmt: skip


@contextlib.contextmanager
def _their_errors() -> Iterator[None]:
    """InputOutsideDomain as nflows', if nflows is there."""
    try:
        yield
    except ops.InputOutsideDomain as error:
        base = sys.modules.get("nflows.transforms.base")
        raise (ops.InputOutsideDomain if base is None else base.InputOutsideDomain)(str(error)) from None


_SPLINES = (unconstrained_rational_quadratic_spline, rational_quadratic_spline)
_HOMES = ("nflows.transforms.splines.rational_quadratic", "normflows.utils.splines")
_NUMBERS = (
    "tail_bound", "left", "right", "bottom", "top", "min_bin_width", "min_bin_height", "min_derivative",
)  # fmt: skip


def _replacement(original: Spline, spline: Spline) -> Spline:
    """A spline in the place of `original`, which is called for what pygen's does not have: other numbers of bins, a
    tensor of bounds, tails of their own for each dimension."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def replaced(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        given = signature.bind(*args, **kwargs).arguments
        bins = given["unnormalized_widths"].shape[-1]
        numbers = all(isinstance(given.get(name, 0.0), (int, float)) for name in _NUMBERS)
        if numbers and BINS[0] <= bins <= BINS[1] and isinstance(given.get("tails", ""), str):
            return spline(**given)
        return original(*args, **kwargs)

    return replaced


class Patch:
    """Functions that were replaced; `undo`, or the end of a `with` statement, puts them back."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Spline, Spline]] = []
        homes = [home for name in _HOMES if (home := _installed(name)) is not None]
        if not homes:
            raise ImportError("expected nflows or normflows to be installed")
        for home in homes:
            for spline in _SPLINES:
                original = getattr(home, spline.__name__)
                self._replaced.append((original, _replacement(original, spline)))
                _swap(*self._replaced[-1])
        self._transforms: Any = _installed("nflows.transforms.autoregressive")
        if self._transforms is not None:
            self._inverse = self._transforms.AutoregressiveTransform.inverse
            self._transforms.AutoregressiveTransform.inverse = _their_errors()(swept(self._inverse))

    def undo(self) -> None:
        while self._replaced:
            original, spline = self._replaced.pop()
            _swap(spline, original)
        if self._transforms is not None:
            self._transforms.AutoregressiveTransform.inverse = self._inverse
            self._transforms = None

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()


def _swap(old: Spline, new: Spline) -> None:
    """Wherever a module has it under its name."""
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(old.__name__) is old:
            setattr(module, old.__name__, new)


def _installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def patch() -> Patch:
    """Replaces the splines of installed nflows and normflows by this module's, wherever they were imported, and the
    inverses of nflows' masked affine and rational-quadratic autoregressive transforms by one sweep
    (`pygen.ops.made_inverse`): from now on, or, as `with patch():`, while that lasts.

    What pygen does not have (splines of 1 bin, of more than 64, of a tensor of bounds, of tails by dimension; nets with
    batch normalisation, with dropout in training, with activations that `pygen.nn.MADE` lacks) the libraries' own
    compute as before. Modules that are imported later find the replacements, too.

    Raises ImportError with neither library.
    """
    return Patch()
