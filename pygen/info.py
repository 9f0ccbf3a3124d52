"""What `pygen info` reports: what would run where, why nothing better, and what it was built with."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
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
    "PYGEN_INCEPTION": "path of the weights of FID's Inception network",
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


def describe(folder: Path) -> dict[str, Any]:
    """What a checkpoint holds, and what it says about its training."""
    from . import models
    from .models import checkpoint

    model, config = models.load(folder), checkpoint.read_config(folder)
    weights = folder / config["weights"]
    return {
        "model": config["model"],
        "options": config["config"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "weights": f"{weights} ({weights.stat().st_size / 1e6:.1f} MB)",
        "training": config.get("training"),
    }


def to_json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=1)


def show_model(data: dict[str, Any], console: Console | None = None) -> None:
    """Prints what `describe` found."""
    table = Table(title=data["model"], title_justify="left", show_header=False)
    table.add_row("parameters", f"{data['parameters']:,} ({data['dtype']})")
    table.add_row("weights", escape(data["weights"]))
    table.add_row("options", escape(_pairs(data["options"])))
    training = dict(data["training"] or {})
    if {"step", "options", "data"} <= training.keys():  # as `pygen train` saves it
        done = training.pop("step")
        table.add_row("trained", f"{done} of {training['options']['steps']} steps on {escape(training.pop('data'))}")
        if "held_out_bits_per_dim" in training:
            table.add_row("held-out bits/dim", f"{training.pop('held_out_bits_per_dim'):.4f}")
        table.add_row("training", escape(_pairs(training.pop("options"))))
    elif training:
        table.add_row("training", escape(_pairs(training)))
    (console or Console()).print(table)


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={'none' if value is None else value}" for key, value in values.items())


def show(data: dict[str, Any], console: Console | None = None) -> None:
    """Prints what `collect` found, as tables."""
    console = console or Console()
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
