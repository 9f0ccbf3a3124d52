"""What is special to heads: memory, values that a GPU does not look at, likelihoods that sum to one, far tails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

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


# --- bernoulli_nll ----------------------------------------------------------------------------------------------------


def test_two_probabilities_sum_to_one() -> None:
    h, weight, bias = torch.randn(9, 5), torch.randn(3, 5), torch.randn(3)
    p = [ops.bernoulli_nll(h, weight, bias, torch.full((9, 3), bit)).neg().exp() for bit in (0, 1)]
    torch.testing.assert_close(p[0] + p[1], torch.ones(9, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_far_tails(dtype: torch.dtype) -> None:
    """Both losses and both gradients, where z - log sigmoid(z) and 1 - sigmoid(z) are 0 to rounding."""
    z = torch.tensor([[20.0], [40.0], [80.0]], dtype=dtype)
    small = z.neg().exp()
    for bit, sign in ((1, 1), (0, -1)):
        leaf = (sign * z).requires_grad_()
        nll = ops.bernoulli_nll(leaf, torch.ones(1, 1, dtype=dtype), None, torch.full((3, 1), bit))
        nll.sum().backward()
        torch.testing.assert_close(nll, small, rtol=1e-6, atol=0)
        torch.testing.assert_close(leaf.grad, -sign * small, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_the_reference_has_second_derivatives(bias: bool) -> None:
    """Where the logit is 0 too, at which neither the larger of z and 0 nor |z| has a derivative."""
    h, weight = torch.randn(3, 2).double(), torch.randn(2, 2).double()
    h[0] = 0
    leaves = [t.requires_grad_() for t in (h, weight, *([torch.randn(2).double()] if bias else []))]
    target = torch.tensor([[0, 1], [1, 0], [1, 1]])

    def nll(h: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return reference.bernoulli_nll(h, weight, bias, target)

    assert torch.autograd.gradcheck(nll, leaves)
    assert torch.autograd.gradgradcheck(nll, leaves)


def test_what_is_no_bit_is_nan_where_nobody_looks() -> None:
    nll = reference.bernoulli_nll(torch.randn(4, 3), torch.randn(1, 3), None, torch.tensor([[0], [1], [2], [-1]]))
    assert nll.isnan().flatten().tolist() == [False, False, True, True]
