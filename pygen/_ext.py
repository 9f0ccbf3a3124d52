"""Loads the native modules: the CPU kernels of the best ISA tier this host supports, and CUDA. Keeps every reason."""

from __future__ import annotations

import importlib
import json
import os
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

# Best first. What torch.backends.cpu.get_cpu_capability() may say (it honours ATEN_CPU_CAPABILITY), and how we show it.
TIER_NAMES = {"AVX512": "AVX-512", "AVX2": "AVX2+FMA", "DEFAULT": "baseline"}

tier: str | None = None  # the tier in use
reason: str | None = None  # why no better one is
build: dict[str, Any] = {"torch": None, "tiers": [], "cuda": False, "reasons": {}}  # what setup.py recorded
has_cuda = False
cuda_reason = ""  # why there are no CUDA C++ kernels
_glue: ModuleType | None = None


def tiers() -> list[str]:
    """The tiers that were built and that this host runs, best first."""
    if _glue is None:
        return []
    names = list(TIER_NAMES)
    best = names.index(_capability())
    return [t for t in names[best:] if t in build["tiers"]]


def use(name: str) -> None:
    """Switches this process to another tier."""
    global tier
    if _glue is None or name not in tiers():
        raise ValueError(f"expected a tier in {tiers()}, got {name!r}")
    _glue.use(importlib.import_module(f"._K_{name.lower()}", __package__).table)
    tier = name


def quick(op: Any) -> Any:
    """The op (an overload of torch.ops) as a function of all its arguments by position, a microsecond cheaper a call.

    Not for code that torch.compile traces."""
    return op if _glue is None else _glue.quick(op._schema.name, op)


def report_to(progress: Any) -> None:
    """Has long native calls of this thread call progress(rows done, rows) now and then; None: no more."""
    if _glue is not None:
        _glue.report_to(progress)


def _capability() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    return capability if capability in TIER_NAMES else "DEFAULT"


def _load() -> None:
    global tier, reason, build, _glue
    try:
        build = json.loads((Path(__file__).parent / "_build.json").read_text())
    except FileNotFoundError:
        reason = "there is no build record beside the package (a source tree that was never installed?)"
        return
    reasons = build["reasons"]
    if not build["tiers"]:
        reason = reasons.get("cpu", "nothing was compiled")
        return
    if build["torch"] != torch.__version__:
        reason = f"built for torch {build['torch']}, running torch {torch.__version__}: reinstall pygen"
        return
    names = list(TIER_NAMES)
    for name in names[names.index(_capability()) :]:
        if name not in build["tiers"]:
            reason = f"{TIER_NAMES[name]}: {reasons.get(name, 'was not built')}"
            continue
        try:
            kernels = importlib.import_module(f"._K_{name.lower()}", __package__)  # before _C, which registers them
            glue = importlib.import_module("._C", __package__)
        except ImportError as error:
            reason = f"{TIER_NAMES[name]}: {error}"
            continue
        glue.use(kernels.table)
        _glue, tier = glue, name
        if reason is None and name != names[0] and "ATEN_CPU_CAPABILITY" in os.environ:
            reason = f"ATEN_CPU_CAPABILITY={os.environ['ATEN_CPU_CAPABILITY']}"
        return


def _load_cuda() -> None:
    """After `_load`: a module of its own, so that CUDA libraries that do not load cost the CUDA kernels alone."""
    global has_cuda, cuda_reason
    if tier is None:
        cuda_reason = build["reasons"].get("cuda") or str(reason)
    elif not build["cuda"]:
        cuda_reason = build["reasons"].get("cuda", "was not built")
    else:
        try:
            importlib.import_module("._C_cuda", __package__)
        except ImportError as error:
            cuda_reason = str(error)
        else:
            has_cuda = True


_load()
_load_cuda()
_missing = ""
if tier is None:
    _missing = f"CPU ops run the plain PyTorch reference: {reason}"
elif build["cuda"] and not has_cuda:
    _missing = f"the CUDA C++ kernels do not load: {cuda_reason}"
_required = os.environ.get("PYGEN_REQUIRE_EXT", "0")
if _required not in ("", "0", "1"):
    raise ImportError(f"pygen: expected PYGEN_REQUIRE_EXT to be 0 or 1, got {_required!r}")
if _missing:
    if _required == "1":
        raise ImportError(f"pygen: {_missing} (PYGEN_REQUIRE_EXT=1)")
    warnings.warn(f"pygen: {_missing}", RuntimeWarning, stacklevel=2)
