"""CUDA C++ without a GPU: a source that runs kernels on the host (emulation.h), as a library."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
from torch import Tensor

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")

FLAGS = ["-std=c++20", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
FLAGS.append("-U_FORTIFY_SOURCE")  # which takes the jumps between fibers for mistakes


def compiled(source: Path, folder: Path) -> ctypes.CDLL:
    """The library of a source, which is built in a folder."""
    library = folder / "kernel.so"
    include = f"-I{Path(__file__).parents[2] / 'csrc'}"
    subprocess.run(["g++", *FLAGS, "-shared", "-fPIC", include, "-o", str(library), str(source)], check=True)
    return ctypes.CDLL(str(library))


def pointers(tensors: list[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
