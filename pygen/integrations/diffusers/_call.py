"""A call of a scheduler's method: what it is given, what the scheduler knows, what it returns."""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import random
from ..._seed import seed_of
from ...diffusion.level import Level, Predicted, cumulative, predicted, ve
from ...diffusion.loop import Threshold
from ...diffusion.step import X0, Step, Z, table
from ...ops import diffusion_step


class Made(NamedTuple):
    """A step and its table."""

    step: Step
    table: Tensor


def cached(build: Callable[..., Step]) -> Callable[..., Made]:
    """A step's coefficients are made once for the same numbers."""

    @functools.lru_cache(maxsize=8192)
    def made(*args: Any) -> Made:
        step = build(*args)
        return Made(step, table([step]))

    return made


class Unchanged(Exception):
    """The scheduler's own method is to be called."""


def kept(scheduler: Any, key: Any, source: Tensor, make: Callable[[], Any]) -> Any:
    """What is made of a tensor of a scheduler; made again only when it is another tensor, or was written to."""
    cache = scheduler.__dict__.setdefault("_pygen_kept", {})
    version = None if source.is_inference() else source._version
    found = cache.get(key)
    if found is None or found[0] is not source or found[1] != version:
        found = cache[key] = source, version, make()
    return found[2]


def numbers(scheduler: Any, name: str) -> list[float]:
    """A table of a scheduler, as numbers."""
    tensor = getattr(scheduler, name)
    return kept(scheduler, name, tensor, tensor.tolist)  # type: ignore[no-any-return]


def index_of(scheduler: Any, timestep: Any) -> int:
    """Of the step that is due, for schedulers that count."""
    if scheduler.step_index is None:
        place = _place(scheduler, timestep)
        if place is None or scheduler.begin_index is not None:
            scheduler._init_step_index(timestep)
        else:
            scheduler._step_index = place
    return int(scheduler.step_index)


def _place(scheduler: Any, timestep: Any) -> int | None:
    """Where a timestep is among the scheduler's, if it is one of their views on a GPU: without a wait for it."""
    times = scheduler.timesteps
    if not isinstance(timestep, Tensor) or timestep.device.type == "cpu" or timestep.dim() != 0:
        return None
    if timestep.untyped_storage().data_ptr() != times.untyped_storage().data_ptr() or times.dim() != 1:
        return None
    place = timestep.storage_offset() - times.storage_offset()
    repeated = numbers(scheduler, "timesteps")
    return place // times.stride(0) if repeated.count(repeated[place // times.stride(0)]) == 1 else None


def number_of(scheduler: Any, timestep: Any) -> float:
    """A timestep as a number."""
    if not isinstance(timestep, Tensor):
        return float(timestep)
    place = _place(scheduler, timestep)
    return float(timestep.item()) if place is None else numbers(scheduler, "timesteps")[place]


def time_of(scheduler: Any, timestep: Any) -> int:
    """A timestep as a whole number."""
    return int(number_of(scheduler, timestep))


def level_of(scheduler: Any, time: int, beyond: str = "final_alpha_cumprod") -> Level:
    """Of a time of a discrete schedule; below 0, of an attribute of the scheduler."""
    if time >= 0:
        return cumulative(numbers(scheduler, "alphas_cumprod")[time])
    return cumulative(float(getattr(scheduler, beyond)))


def clamp_of(config: Any) -> tuple[float, Threshold | None]:
    """The bound of x0, or its dynamic threshold; one of at most 1 is a bound of 1."""
    if config.get("thresholding", False):
        if config.sample_max_value <= 1:
            return 1.0, None
        return math.inf, Threshold(config.dynamic_thresholding_ratio, config.sample_max_value)
    return (config.get("clip_sample_range", 1.0) if config.get("clip_sample", False) else math.inf), None


def prediction_of(config: Any) -> Any:
    kind = config.get("prediction_type", "epsilon")
    return "sample" if kind == "original_sample" else kind


class Call:
    """One call of a scheduler's step."""

    def __init__(self, scheduler: Any, model_output: Tensor, sample: Tensor, options: dict[str, Any]) -> None:
        self.scheduler, self.output, self.sample, self.options = scheduler, model_output, sample, options
        self.threshold: Threshold | None = None
        self.log_std: Tensor | None = None
        self.mask: tuple[Tensor, Tensor] | None = None

    def drawn(self, made: Made, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """Arguments of the op for noise, if the step has any: like the model's output, or of another type."""
        if not made.step.noisy:
            return {}
        given = self.options.get("variance_noise")
        if given is not None:
            return {"noise": given}
        return {"draws": True, **self._stream()} if self.own_noise else {"noise": self._randn(dtype)}

    def noise(self, dtype: torch.dtype) -> Tensor:
        """What a step draws, as a tensor."""
        if not self.own_noise:
            return self._randn(dtype)
        return random.normal(self.sample.shape, dtype=dtype, device=self.sample.device, **self._stream())

    @property
    def own_noise(self) -> bool:
        return bool(self.scheduler.__dict__.get("_pygen_noise") == "pygen")

    def _randn(self, dtype: torch.dtype | None) -> Tensor:
        """torch's own, by the function that the scheduler's module calls."""
        home = sys.modules[home_of(type(self.scheduler)).__module__]
        like, generator = self.output if self.log_std is None else self.sample, self.options.get("generator")
        return home.randn_tensor(  # type: ignore[no-any-return]
            like.shape, generator=generator, device=like.device, dtype=dtype or self.output.dtype
        )

    def _stream(self) -> dict[str, Any]:
        """Seed and step of the package's stream: steps are counted from where the scheduler's times were set."""
        generator = self.options.get("generator")
        if isinstance(generator, list):
            raise ValueError("expected one generator for noise='pygen', which tells samples apart by their number")
        state = self.scheduler.__dict__
        times = self.scheduler.timesteps
        if state.get("_pygen_run", (None,))[0] is not times:
            state["_pygen_run"] = (times, seed_of(generator), 0)
        _, seed, count = state["_pygen_run"]
        state["_pygen_run"] = (times, seed, count + 1)
        return {"generator": seed, "step": count}

    def apply(
        self,
        made: Made,
        history: Sequence[Any] = (),
        *,
        x: Tensor | None = None,
        noise_dtype: torch.dtype | None = None,
        dtypes: Sequence[torch.dtype] | None = None,
    ) -> list[Tensor]:
        """The step's results; the first in the type that its operands have together, unless `dtypes` says."""
        step = made.step
        x = self.sample if x is None else x
        bound = None
        if step.threshold and self.threshold is not None:
            bound = self.threshold.of(x, [self.output], made.table)
        own = torch.promote_types(x.dtype, self.output.dtype)
        return diffusion_step(
            x, [self.output], made.table, 0,
            rows=len(step.rows),
            history=[history[i] for i in step.reads],
            threshold=bound,
            log_std=self.log_std,
            known=None if self.mask is None else self.mask[0],
            known_mask=None if self.mask is None else self.mask[1],
            dtypes=dtypes or [own] * len(step.rows),
            **self.drawn(made, noise_dtype),
        )  # fmt: skip


class _Pair(tuple):  # type: ignore[type-arg]
    """(prev_sample, x0) whose second is computed when it is asked for, since pipelines never do."""

    _compute: Callable[[], Tensor]
    _computed: Tensor | None

    def __new__(cls, first: Tensor, second: Callable[[], Tensor]) -> _Pair:
        pair = super().__new__(cls, (first, None))
        pair._compute, pair._computed = second, None
        return pair

    def _second(self) -> Tensor:
        if self._computed is None:
            self._computed = self._compute()
        return self._computed

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int) and index in (0, -2):
            return super().__getitem__(index)
        return (super().__getitem__(0), self._second())[index]

    def __iter__(self) -> Iterator[Tensor]:
        yield self[0]
        yield self._second()

    def __reduce__(self) -> Any:
        return tuple, (tuple(self),)


def _of_both(name: str) -> Callable[..., Any]:
    return lambda pair, *args: getattr(tuple(pair), name)(*args)


for _name in (
    "__add__", "__contains__", "__eq__", "__ge__", "__gt__", "__hash__", "__le__", "__lt__", "__mul__", "__ne__",
    "__repr__", "__rmul__", "count", "index",
):  # fmt: skip
    setattr(_Pair, _name, _of_both(_name))  # tuple's own look at what it holds


def returned(call: Call, name: str, first: Tensor, second: Callable[[], Tensor] | None = None) -> Any:
    """As the scheduler returns it: a tuple, or its class of outputs."""
    if not call.options["return_dict"]:
        return (first,) if second is None else _Pair(first, second)
    kind = getattr(sys.modules[home_of(type(call.scheduler)).__module__], name)
    if second is None:
        return kind(prev_sample=first)
    rest = next(field for field in inspect.signature(kind).parameters if field != "prev_sample")
    return kind(prev_sample=first, **{rest: second()})


def x0_of(call: Call, made: Made, dtype: torch.dtype | None = None) -> Callable[[], Tensor]:
    """The data predicted, when asked for."""
    sample, output = call.sample, call.output
    versions = [None if tensor.is_inference() else tensor._version for tensor in (sample, output)]

    def compute() -> Tensor:
        if versions != [None if tensor.is_inference() else tensor._version for tensor in (sample, output)]:
            raise RuntimeError(
                "expected sample and model_output as the step was given them when its pred_original_sample is asked "
                "for, which is computed then; they were written to: ask before, or write to a copy"
            )
        step = Step(made.step.p, made.step.q, (X0,), clip=made.step.clip, threshold=made.step.threshold)
        told = Call(call.scheduler, output, sample, {})
        told.threshold = call.threshold
        return told.apply(Made(step, table([step])), dtypes=[dtype or torch.promote_types(sample.dtype, output.dtype)])[
            0
        ]

    return compute


def advance(call: Call) -> None:
    """Draws what the scheduler draws and multiplies by 0, so that the generator goes on from the same state."""
    call.drawn(Made(Step(0.0, 0.0, (Z,)), Tensor()))


Method = Callable[[Any, dict[str, Any]], Any]

METHODS: dict[str, dict[str, Method]] = {}
"""By the names of schedulers and of their methods: what computes the result, of the scheduler and the arguments."""


def methods(method: str, *names: str) -> Callable[[Method], Method]:
    """Registers a function for a method of schedulers."""

    def register(function: Method) -> Method:
        for name in names:
            METHODS.setdefault(name, {})[method] = function
        return function

    return register


Stepping = Callable[[Call, Any], Any]


def steps_of(*names: str, method: str = "step") -> Callable[[Stepping], Stepping]:
    """Registers what makes the results of schedulers' steps, given a call and its timestep."""

    def register(function: Stepping) -> Stepping:
        @methods(method, *names)
        def step(scheduler: Any, options: dict[str, Any]) -> Any:
            output, sample = options.pop("model_output"), options.pop("sample")
            timestep = options.pop("timestep", None)
            if isinstance(output, Tensor) and isinstance(sample, Tensor) and output.dim() == sample.dim() > 0:
                return function(Call(scheduler, output, sample, options), timestep)
            raise Unchanged

        return function

    return register


def home_of(kind: type) -> type:
    """The class of diffusers that a scheduler's methods come from."""
    for base in kind.__mro__:
        if base.__name__ in METHODS and base.__module__.startswith("diffusers."):
            return base
    raise TypeError(f"expected one of {', '.join(METHODS)}, got {kind.__name__}")


def preconditioned(kind: Any, sigma: float, sigma_data: float) -> Predicted:
    """As EDM's schedulers have it, where a v is the negative of Karras' F."""
    model = predicted("edm", ve(sigma), sigma_data)
    if kind == "epsilon":
        return model
    return Predicted(replace(model.x0, g=-model.x0.g), replace(model.eps, g=-model.eps.g))
