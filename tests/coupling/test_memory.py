"""Kernels read nothing behind a tensor: inputs that end where a page without access begins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pygen import _ext

SCRIPT = """
import ctypes, math, mmap, sys
import torch
from pygen import _ext, ops

libc = ctypes.CDLL(None, use_errno=True)
kept = []

def at_the_end(shape, dtype):
    size = math.prod(shape) * dtype.itemsize
    pages = -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(start + pages * mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
    kept.append(memory)
    x = torch.frombuffer(memory, dtype=dtype, count=math.prod(shape), offset=pages * mmap.PAGESIZE - size)
    return x.reshape(shape)

_ext.use(sys.argv[1])
torch.set_num_threads(1)
for dtype in (torch.float32, torch.bfloat16, torch.float64):
    for shape in [(16, 1), (16, 2), (16, 3), (9, 17), (33, 4), (3, 1, 7), (2, 3, 5, 5), (2, 3, 4, 6), (1, 1, 1, 33)]:
        for part in ("even", "odd", "all"):
            for order in ("st", "ts"):
                for interleaved in (False, True):
                    x = at_the_end(shape, dtype)
                    params = at_the_end((shape[0], 2 * shape[1], *shape[2:]), dtype)
                    ops.affine_coupling(x, params, part=part, order=order, interleaved=interleaved)
    print(dtype)
"""


@pytest.mark.skipif(_ext.tier is None or sys.platform != "linux", reason="no native kernels")
@pytest.mark.parametrize("tier", _ext.build["tiers"] if _ext.tier else [None])
def test_nothing_is_read_behind_a_tensor(tier: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, tier]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, f"exit {done.returncode} after {done.stdout!r}: {done.stderr[-2000:]}"
