"""What `pygen info` reports: what would run where, why nothing better, and what it was built with."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import __version__, _ext, backends
from ._lib import OPS

# Hardware on which this version's kernels have passed their tests.
VERIFIED_ON = (
    ("C++, AVX-512", "x86-64", "verified"),
    ("C++, AVX2+FMA", "x86-64", "verified"),
    ("C++, baseline", "x86-64", "verified"),
    ("C++, NEON", "aarch64", "not yet"),
    ("Triton", "NVIDIA GPU", "not yet: interpreted and compiled ahead of time only"),
)

SWITCHES = {
    "PYGEN_BACKEND": "reference or native, for every op; native raises where there is none",
    "PYGEN_REQUIRE_EXT": "1: no fallback, neither when building nor at import",
    "PYGEN_BUILD_CPP": "0: build no native module",
    "PYGEN_BUILD_CUDA": "0 or 1: build no CUDA module, or insist on one",
    "FORCE_CUDA": "1: insist on a CUDA module, as PYGEN_BUILD_CUDA=1 does",
    "PYGEN_WERROR": "1: compiler warnings are errors",
    "ATEN_CPU_CAPABILITY": "default, avx2 or avx512: the best tier to use",
    "CXX": "the C++ compiler of the build",
    "CUDA_HOME": "the CUDA toolkit of the build",
    "MAX_JOBS": "how many compilers the build runs at once",
    "TORCH_CUDA_ARCH_LIST": "the GPU architectures of the build",
    "TRITON_INTERPRET": "1: Triton kernels run in its interpreter",
    "OMP_NUM_THREADS": "threads of CPU kernels",
    "OMP_WAIT_POLICY": "passive: idle threads sleep, which a shared machine needs",
}


def collect() -> dict[str, Any]:
    """Everything, in types that JSON has."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = None
    choices = [backends.explain(op, device) for op in OPS for device in ("cpu", "cuda")]
    return {
        "versions": {
            "pygen": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torch's CUDA": torch.version.cuda,
            "triton": triton,
            "compiler of the build": _ext.build.get("compiler"),
            "nvcc of the build": _ext.build.get("nvcc"),
        },
        "host": {
            "machine": f"{platform.system()} {platform.machine()}",
            "cpu capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "tiers": {
            "built": _ext.build["tiers"],
            "runnable": _ext.tiers(),
            "in use": _ext.tier,
            "why none better": _ext.reason,
        },
        "ops": [
            {"op": c.op, "device": c.device, "runs": c.implementation, "reasons": list(c.reasons)} for c in choices
        ],
        "verified on": [dict(zip(("kernels", "hardware", "state"), row, strict=True)) for row in VERIFIED_ON],
        "switches": {name: os.environ[name] for name in SWITCHES if name in os.environ},
    }


def to_json() -> str:
    return json.dumps(collect(), indent=1)


def show(console: Console | None = None) -> None:
    """Prints the report as tables."""
    console = console or Console()
    data = collect()
    for title in ("versions", "host", "tiers"):
        table = Table(title=title.capitalize(), title_justify="left", show_header=False)
        for name, value in data[title].items():
            text = ", ".join(value) if isinstance(value, list) else value
            table.add_row(name, escape(str("none" if text in (None, "") else text)))
        console.print(table)

    table = Table(title="Ops", title_justify="left")
    for column in ("op", "device", "runs", "why nothing better"):
        table.add_column(column, overflow="fold")
    for row in data["ops"]:
        absent = ["no GPU here"] if row["device"] == "cuda" and not data["host"]["gpus"] else []
        table.add_row(row["op"], row["device"], row["runs"], escape("; ".join(row["reasons"] + absent)))
    console.print(table)

    table = Table("kernels", "hardware", "state", title="Verified on", title_justify="left")
    for row in data["verified on"]:
        table.add_row(*row.values())
    console.print(table)

    table = Table("switch", "value", "meaning", title="Environment switches in force", title_justify="left")
    for name, value in data["switches"].items():
        table.add_row(name, escape(value), SWITCHES[name])
    console.print(table if data["switches"] else "Environment switches in force: none")
