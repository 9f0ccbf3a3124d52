"""The Triton kernels without a GPU: their launchers, called with tensors that lie elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pygen._lib import OPS
from tests.harness.backend import Backend
from tests.harness.spec import OpSpec, load

SPECS: list[OpSpec] = [spec for spec in load().values() if OPS[spec.name].cuda == "triton"]

_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


class OnTriton(TorchDispatchMode):
    """Within it, an op whose CUDA kernel is a Triton launcher runs that, for tensors of the given device type that are
    no fakes."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.launched = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
        if func.namespace == "pygen" and all((type(t), t.device.type) == (torch.Tensor, self.device) for t in tensors):
            name = func._schema.name.removeprefix("pygen::")
            if name in OPS and OPS[name].cuda == "triton":
                self.launched += 1
                return func.redispatch(_CUDA, *args, **kwargs)
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Triton(Backend):
    """The Triton launchers on CPU tensors (in Triton's interpreter) or on meta tensors (to compile and not to run)."""

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with OnTriton(self.device) as mode:
            yield
        assert mode.launched, "no op took the way to its Triton launcher"
