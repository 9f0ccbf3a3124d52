"""The implementations that this host can run: each tier of the CPU kernels, the reference, a GPU where there is one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pygen import _ext, backends


@dataclass(frozen=True)
class Backend:
    """name: a tier, "fallback" (the op through the dispatcher, without kernels), "reference" or "cuda"."""

    name: str
    device: str = "cpu"

    def __str__(self) -> str:
        return self.name

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Within it, calls run this implementation."""
        tier = _ext.tier
        if self.name in _ext.TIER_NAMES:
            _ext.use(self.name)
        try:
            with backends.use("reference" if self.name == "reference" else None):
                yield
        finally:
            if tier is not None:
                _ext.use(tier)


TIERS = [Backend(name) for name in _ext.tiers()]
REFERENCE = Backend("reference")
CUDA = [Backend("cuda", "cuda")] if torch.cuda.is_available() else []

NATIVE = [*TIERS, *CUDA]
OPS = [*(TIERS or [Backend("fallback")]), *CUDA]  # best first; these run the op itself, with its own gradient
ALL = [*OPS, REFERENCE]
