"""Several processes at one task, started by `torchrun`; without it, the one process is rank 0 of 1."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")


@contextlib.contextmanager
def group() -> Iterator[None]:
    """Joins the process group that `torchrun` prepared, if it started this process: gloo on CPU, nccl on GPUs."""
    if not distributed.is_torchelastic_launched():
        yield
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    yield
    distributed.barrier()  # nobody leaves while others are still at it
    distributed.destroy_process_group()


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_device(name: str | None) -> torch.device:
    """The device of this process. None: a GPU where there is one. A GPU without a number: each process its own."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"expected a device such as cpu, cuda or cuda:1, got {name!r}") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"expected a device that torch sees, got {name}: it sees no GPU")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index)
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.zeros(1, device=device).item()
    except Exception as error:  # torch knows devices that it was not built for, and each fails in its own way
        raise ValueError(f"expected a device that torch can compute on, got {device}") from error
    return device


def on_first(task: Callable[[], T]) -> T:
    """Does a task on rank 0; every rank gets its result, or the error that it raised."""
    if world() == 1:
        return task()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = task()
        except Exception as error:
            outcome[1] = error
    distributed.broadcast_object_list(outcome, device=torch.device("cpu"))
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def total(value: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all ranks, in its place."""
    if world() > 1:
        distributed.all_reduce(value)
    return value
