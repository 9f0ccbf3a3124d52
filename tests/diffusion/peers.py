"""diffusers and k-diffusion, as `make test` installs them, run in float64 on their own float32 tables."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

FOLDER = Path(sys.prefix, "peers")  # where the Makefile puts what tests/peers.txt lists

Network = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def importable() -> Iterator[None]:
    if not (FOLDER / "diffusers").is_dir():
        pytest.skip(f"no diffusers in {FOLDER}")
    with mock.patch.object(sys, "path", [*sys.path, str(FOLDER)]):
        yield


@cache
def module(name: str) -> ModuleType:
    """A module of diffusers' schedulers, scheduling_<name>."""
    with importable():
        return importlib.import_module(f"diffusers.schedulers.scheduling_{name}")


@cache
def scheduler_class(name: str) -> Any:
    with importable():
        kind = getattr(importlib.import_module("diffusers.schedulers"), name)
    if not kind.__module__.startswith("diffusers.schedulers."):
        pytest.skip(f"{name} needs what is not in {FOLDER}")
    return kind


@cache
def k_diffusion() -> Any:
    """k_diffusion.sampling, without what it does not need for samplers that are given their noise."""
    if not (FOLDER / "k_diffusion").is_dir():
        pytest.skip(f"no k_diffusion in {FOLDER}")
    package = ModuleType("k_diffusion")
    package.__path__ = [str(FOLDER / "k_diffusion")]
    absent = ("torchdiffeq", "torchsde", "torchvision", "torchvision.transforms")
    with mock.patch.dict(sys.modules, {"k_diffusion": package, **{name: mock.MagicMock() for name in absent}}):
        return importlib.import_module("k_diffusion.sampling")


class _Double(types.ModuleType):
    """torch, whose float32 is float64."""

    def __getattr__(self, name: str) -> Any:
        return torch.float64 if name == "float32" else getattr(torch, name)


def network(x: Tensor, t: Tensor | float) -> Tensor:
    """Not linear, and different at every time."""
    t = torch.as_tensor(t, dtype=torch.float64).flatten()[0] / 1000
    return 0.7 * torch.sin(x + t) + 0.2 * x + 0.1 * t


def draws(shape: tuple[int, ...], seed: int = 5) -> Iterator[Tensor]:
    """Noise, one tensor after the other."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(shape, generator=generator, dtype=torch.float64)


def upcast(scheduler: Any) -> None:
    """A scheduler's float32 tables, as float64."""
    for name, value in vars(scheduler).items():
        if isinstance(value, Tensor) and value.dtype == torch.float32 and name != "timesteps":
            setattr(scheduler, name, value.double())


@contextmanager
def in_float64(scheduler: Any, noise: Iterator[Tensor]) -> Iterator[None]:
    """Steps do not round to float32, and draw their noise from `noise`."""
    home = sys.modules[type(scheduler).__module__]
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(home, "torch", _Double("torch")))
        if hasattr(home, "randn_tensor"):
            stack.enter_context(mock.patch.object(home, "randn_tensor", side_effect=noise))
        yield


def diffusers_loop(
    scheduler: Any,
    x: Tensor,
    net: Network = network,
    prepare: Callable[[Any], None] = lambda s: None,
    numbers: bool = False,
    **options: Any,
) -> list[Tensor]:
    """The states of a run, the first being x; the scheduler's timesteps are set. numbers: it is told ints."""
    upcast(scheduler)
    prepare(scheduler)
    states = [x]
    with in_float64(scheduler, draws(tuple(x.shape))):
        for t in scheduler.timesteps.tolist() if numbers else scheduler.timesteps:
            fed = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(net(fed, t), t, x, return_dict=False, **options)[0]
            states.append(x)
    return states
