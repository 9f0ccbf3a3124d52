"""What is special to categorical_nll: memory, levels that a GPU does not look at, a likelihood that sums to one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pygen import _ext, ops, reference


@pytest.mark.parametrize("order", ["channel", "level"])
def test_probabilities_sum_to_one(order: str) -> None:
    h, weight = torch.randn(1, 5).expand(12, 5), torch.randn(2 * 12, 5)
    levels = torch.arange(12)[:, None].expand(12, 2)
    nll = ops.categorical_nll(h, weight, None, levels, order=order)
    torch.testing.assert_close(nll.neg().exp().sum(0), torch.ones(2))


SCRIPT = """
import resource, sys
import torch
import torch.nn.functional as F
from pygen import ops

torch.set_num_threads(1)
h, weight = torch.randn(16, 16, 64, 64, requires_grad=True), torch.randn(768, 16, requires_grad=True)
target = torch.randint(256, (16, 3, 64, 64))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

ops.categorical_nll(h[:1], weight, None, target[:1]).sum().backward()
before = peak()
ops.categorical_nll(h, weight, None, target).sum().backward()
print(1024 * (peak() - before))
"""


@pytest.mark.skipif(_ext.tier is None or sys.platform != "linux", reason="no native kernels")
def test_no_logits_in_memory(tmp_path: Path) -> None:
    """Forward and backward raise the peak of memory by less than a fifth of the logits alone."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=True)
    assert int(done.stdout) < 16 * 768 * 64 * 64 * 4 / 5


def test_levels_out_of_range_are_nan_where_nobody_looks() -> None:
    target = torch.tensor([[0], [3], [-1]])
    nll = reference.categorical_nll(torch.randn(3, 4), torch.randn(3, 4), None, target)
    assert nll.isnan().flatten().tolist() == [False, True, True]
