"""diffusers' schedulers in one pass a call: the same classes, configurations, signatures, state and results.

    from pygen.integrations.diffusers import patch, patch_scheduler
    patch_scheduler(pipe.scheduler)          # this one, from now on
    with patch():                            # every scheduler, while it lasts
        pipe(...)

A method computes what the scheduler's own does, in float32 at least (float64 for float64 samples) and rounds once; its
coefficients are float64, of the scheduler's float32 tables. Where it has an option that is not covered here (see
`covered`), or raises, the scheduler's own method is called. `add_noise`, `scale_noise` and `get_velocity` keep their
tables where samples are, look the batch's timesteps up there, and wait for no device: on a GPU a sample whose timestep
the scheduler does not have is NaN.

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

from . import _discrete, _noise, _sde, _sigmas, _solvers  # noqa: F401 (they register their methods)
from ._call import METHODS, Method, Unchanged, home_of

Noise = Literal["torch", "pygen"]

__all__ = ["covered", "patch", "patch_scheduler"]


def covered() -> tuple[str, ...]:
    """The names of the schedulers that have methods here.

    Replaced are `step` (`step_pred` and `step_correct`), `add_noise`, `scale_noise`, `get_velocity`, and
    `scale_model_input` where it scales.

    Not covered are, of their options: fixed_large_log variances, which are NaN there; `solver_p`; `get_velocity` of
    EulerDiscreteScheduler, which looks training's table up by the number of a sampling step. With them the scheduler's
    own method runs. Noise of DPMSolverSDEScheduler comes from its own Brownian tree (torchsde), except for
    noise="pygen", which has the same law.
    """
    return tuple(METHODS)


def _replacement(original: Callable[..., Any], function: Method) -> Callable[..., Any]:
    """A method in the place of `original`, of the same signature."""
    signature = inspect.signature(original)
    _, *names = signature.parameters
    known = frozenset(names)
    defaults = {name: p.default for name, p in signature.parameters.items() if p.default is not p.empty}

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        options = {**defaults, **dict(zip(names, args)), **kwargs}  # noqa: B905 (fewer arguments than names)
        if options.keys() == known:
            try:
                return function(self, options)
            except Unchanged:
                pass
        return original(self, *args, **kwargs)

    method.__signature__ = signature  # type: ignore[attr-defined]
    return method


def patch_scheduler(scheduler: Any, *, noise: Noise = "torch") -> Any:
    """Gives one scheduler the methods of this module, and returns it. Its type and configuration stay as they are.

    Of a subclass of diffusers' own, methods that it overrides stay too. A deep copy is patched as well; a shallow one
    (copy.copy) has methods that act on this scheduler.

    noise: of steps; "torch", as without the patch; "pygen", see above.

    Raises TypeError for a scheduler that is not covered, ValueError for another noise.
    """
    if noise not in ("torch", "pygen"):
        raise ValueError(f"expected noise as 'torch' or 'pygen', got {noise!r}")
    home = home_of(type(scheduler))
    for name, function in METHODS[home.__name__].items():
        original = getattr(home, name)
        if getattr(type(scheduler), name) is original:
            setattr(scheduler, name, _replacement(inspect.unwrap(original), function).__get__(scheduler))
    scheduler._pygen_noise = noise
    return scheduler


@contextmanager
def patch() -> Iterator[None]:
    """Gives every covered class of diffusers the methods of this module while the context lasts.

    Raises ImportError without diffusers.
    """
    import diffusers

    replaced = []
    try:
        for name, functions in METHODS.items():
            kind = getattr(diffusers, name)
            if not kind.__module__.startswith("diffusers.schedulers."):
                continue  # what it needs is not installed
            for method, function in functions.items():
                original = getattr(kind, method)
                replaced.append((kind, method, original))
                setattr(kind, method, _replacement(original, function))
        yield
    finally:
        for kind, method, original in reversed(replaced):
            setattr(kind, method, original)
