"""No output depends on what its taps do not reach: exact zeros, by gradient and by perturbation, for every tap list."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from pygen.ops import causal_conv1d, causal_taps, masked_conv2d

KERNELS = ((3, 3), (5, 3), (1, 5), (7, 7))
LISTS = [
    pytest.param(
        causal_taps(kernel, kind=kind, order=order, stack=stack),
        order,
        kind,
        stack,
        id=f"{kernel}-{kind}-{order}-{stack}",
    )
    for kernel, kind, order, stack in product(KERNELS, "AB", ("raster", "reversed"), (None, "vertical", "horizontal"))
    if causal_taps(kernel, kind=kind, order=order, stack=stack)
]


def sees(order: str, kind: str, stack: str | None, height: int, width: int) -> Tensor:
    """[H W, H W]: whether an output (row) may depend on an input (column), by its place in the order."""
    place = torch.arange(height * width)
    row, column = place // width, place % width
    if order == "reversed":
        row, column = -row, -column
    dy, dx = row[None] - row[:, None], column[None] - column[:, None]
    if stack == "vertical":
        return dy <= 0 if kind == "B" else dy < 0
    own = (dy == 0) & ((dx <= 0) if kind == "B" else (dx < 0))
    return own if stack == "horizontal" else own | (dy < 0)


@pytest.mark.parametrize(("taps", "order", "kind", "stack"), LISTS)
@pytest.mark.parametrize("activation", [None, "gate"])
def test_by_gradient_and_by_perturbation(taps, order, kind, stack, activation):
    height, width = 5, 6
    x = torch.randn(1, 3, height, width)
    weight = torch.randn(len(taps), 3, 4)
    admitted = sees(order, kind, stack, height, width)

    def function(x: Tensor) -> Tensor:
        return masked_conv2d(x, weight, taps=taps, activation=activation)

    jacobian = torch.autograd.functional.jacobian(function, x).abs().sum((0, 1, 4, 5)).flatten(0, 1).flatten(1)
    assert not jacobian[~admitted].any()
    near = [(dy, dx) for dy, dx in taps if abs(dy) < height and abs(dx) < width]
    assert (jacobian > 0).sum() == sum((height - abs(dy)) * (width - abs(dx)) for dy, dx in near)

    y = function(x)
    for place in range(height * width):
        other = x.clone()
        other[:, :, place // width, place % width] = float("nan")
        changed = function(other).isnan().any(1).flatten()
        assert torch.equal(changed, jacobian[:, place] > 0)
        kept = ~changed.view(height, width)
        assert torch.equal(function(other)[..., kept], y[..., kept])


@pytest.mark.parametrize(("mask", "groups", "interleaved"), list(product("AB", (2, 3), (False, True))))
@pytest.mark.parametrize("activation", [None, "glu"])
def test_channels(mask, groups, interleaved, activation):
    """At the tap (0, 0) alone: group i reaches o iff i < o (A), i <= o (B), also as NaN."""
    channels = 6
    weight = torch.randn(1, channels, 2 * channels if activation else channels)
    group = torch.arange(channels) % groups if interleaved else torch.arange(channels) // (channels // groups)
    for i in range(channels):
        x = torch.randn(1, channels, 2, 3)
        x[:, i] = float("nan")
        y = masked_conv2d(
            x, weight, taps=[(0, 0)], channel_mask=mask, channel_groups=groups, interleaved=interleaved,
            activation=activation,
        )  # fmt: skip
        reached = group[i] < group if mask == "A" else group[i] <= group
        assert torch.equal(y.isnan().all((0, 2, 3)), reached)
        assert torch.equal(y.isnan().any(3).any(2).any(0), reached)


def test_sequences():
    x = torch.randn(2, 3, 20, requires_grad=True)
    weight = torch.randn(2, 3, 4)
    y = causal_conv1d(x, weight, taps=(-1, 0), dilation=4)
    (grad,) = torch.autograd.grad(y[:, :, 10].sum(), x)
    assert grad.abs().sum((0, 1)).nonzero().flatten().tolist() == [6, 10]
    with pytest.raises(ValueError, match="expected taps <= 0"):
        causal_conv1d(x, weight, taps=(0, 1))


def test_two_stacks_have_no_blind_spot():
    """Vertical and horizontal stacks of 3 x 3 kernels see all pixels above and to the left, and nothing else."""
    height, width = 6, 7
    x = torch.randn(1, 1, height, width, requires_grad=True)
    one = torch.ones(1, 1, 1)
    vertical = x
    horizontal = x
    for layer in range(8):
        first = "A" if layer == 0 else "B"
        taps_v, taps_h = causal_taps(3, kind=first, stack="vertical"), causal_taps(3, kind=first, stack="horizontal")
        vertical = masked_conv2d(vertical, torch.ones(len(taps_v), 1, 1), taps=taps_v)
        link = masked_conv2d(vertical, one, taps=[(0, 0)])
        horizontal = masked_conv2d(horizontal, torch.ones(len(taps_h), 1, 1), taps=taps_h, condition=link)
    (grad,) = torch.autograd.grad(horizontal[0, 0, 4, 3], x)
    assert torch.equal(grad[0, 0].flatten() != 0, torch.arange(height * width) < 4 * width + 3)
