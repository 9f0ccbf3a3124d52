"""diffusers' schedulers with steps of one pass each: the same classes, configurations, signatures, state and results.

    from pygen.integrations.diffusers import patch, patch_scheduler
    patch_scheduler(pipe.scheduler)          # this one, from now on
    with patch():                            # every scheduler, while it lasts
        pipe(...)

`step` computes what the scheduler's own does, in float32 at least (float64 for float64 samples) and rounds once; its
coefficients are float64, of the scheduler's float32 tables. Where it has an option that is not covered here (see
`covered`), or raises, the scheduler's own `step` is called.

Noise is torch's own, of the generator or of the global seed, as without the patch; noise="pygen" takes it from
`pygen.random` instead, so that it depends on the seed, the sample and the step alone, whatever the batch or device. Its
seed is drawn from the generator, or torch's default one, at the first step of a run.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor

from . import _discrete, _sigmas, _solvers  # noqa: F401 (they register their steps)
from ._call import STEPS, Call, Unchanged, home_of

Noise = Literal["torch", "pygen"]

__all__ = ["covered", "patch", "patch_scheduler"]


def covered() -> tuple[str, ...]:
    """The names of the schedulers that have steps here.

    Not covered are, of their options: fixed_large_log variances, which are NaN there; per-token times and churn of
    flow matching; `solver_p`; noise of Brownian trees. With them the scheduler's own step runs.
    """
    return tuple(STEPS)


def _replacement(original: Callable[..., Any], function: Callable[[Call, Any], Any]) -> Callable[..., Any]:
    """A method in the place of `original`, of the same signature."""
    signature = inspect.signature(original)
    _, *names = signature.parameters
    known = frozenset(names)
    defaults = {name: p.default for name, p in signature.parameters.items() if p.default is not p.empty}

    @functools.wraps(original)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        options = {**defaults, **dict(zip(names, args)), **kwargs}  # noqa: B905 (fewer arguments than names)
        if options.keys() == known:
            output, sample, timestep = (options.pop(name) for name in ("model_output", "sample", "timestep"))
            if isinstance(output, Tensor) and isinstance(sample, Tensor) and output.dim() == sample.dim() > 0:
                try:
                    return function(Call(self, output, sample, options), timestep)
                except Unchanged:
                    pass
        return original(self, *args, **kwargs)

    step.__signature__ = signature  # type: ignore[attr-defined]
    return step


def patch_scheduler(scheduler: Any, *, noise: Noise = "torch") -> Any:
    """Gives one scheduler the steps of this module, and returns it. Its type and configuration stay as they are.

    noise: "torch", as without the patch; "pygen", see above.

    Raises TypeError for a scheduler that is not covered, ValueError for another noise.
    """
    if noise not in ("torch", "pygen"):
        raise ValueError(f"expected noise as 'torch' or 'pygen', got {noise!r}")
    home = home_of(type(scheduler))
    original = inspect.unwrap(type(scheduler).step)
    scheduler.step = _replacement(original, STEPS[home.__name__]).__get__(scheduler)
    scheduler._pygen_noise = noise
    return scheduler


@contextmanager
def patch() -> Iterator[None]:
    """Gives every covered class of diffusers the steps of this module while the context lasts.

    Raises ImportError without diffusers.
    """
    import diffusers

    replaced = []
    try:
        for name, function in STEPS.items():
            kind = getattr(diffusers, name)
            replaced.append((kind, kind.step))
            kind.step = _replacement(kind.step, function)
        yield
    finally:
        for kind, original in reversed(replaced):
            kind.step = original
