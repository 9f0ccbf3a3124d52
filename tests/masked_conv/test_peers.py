"""What users write today: masked kernels in F.conv2d, OpenAI's shifts, and conversions of their layouts."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pygen.ops import causal_conv1d, causal_taps, masked_conv2d, weight_from_dense, weight_to_dense

F64 = torch.float64


def channel_mask(channels_out: int, channels_in: int, mask: str | None, groups: int, interleaved: bool) -> Tensor:
    if mask is None:
        return torch.ones(channels_out, channels_in, dtype=torch.bool)

    def group(n: int) -> Tensor:
        return torch.arange(n) % groups if interleaved else torch.arange(n) // (n // groups)

    o, i = group(channels_out)[:, None], group(channels_in)[None]
    return i < o if mask == "A" else i <= o


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("mask", "groups", "interleaved"), [(None, 3, False), *product("AB", (2, 3), (False, True))])
@pytest.mark.parametrize(("kernel", "kind"), list(product((3, 5, (3, 7)), "AB")))
@pytest.mark.parametrize(
    ("stride", "dilation", "order"), [(1, 1, "raster"), (2, 1, "reversed"), (1, 2, "reversed"), (3, 2, "raster")]
)
@pytest.mark.parametrize("stack", [None, "vertical", "horizontal"])
def test_masked_kernels(kernel, kind, mask, groups, interleaved, stride, dilation, order, stack, layout):
    """F.conv2d(x, w * mask): values, and gradients on live taps."""
    taps = causal_taps(kernel, kind=kind, order=order, stack=stack)
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    dense = torch.randn(12, 6, height, width, dtype=F64, requires_grad=True)
    live = weight_to_dense(torch.ones(len(taps), 6, 12, dtype=F64), taps, (height, width))
    live[:, :, height // 2, width // 2] *= channel_mask(12, 6, mask, groups, interleaved)
    x = torch.randn(2, 6, 8, 9, dtype=F64).to(memory_format=layout).requires_grad_()
    padding = (dilation * (height // 2), dilation * (width // 2))
    expected = F.conv2d(x, dense * live, stride=stride, dilation=dilation, padding=padding)

    weight = weight_from_dense(dense.detach(), taps).requires_grad_()
    y = masked_conv2d(
        x, weight, taps=taps, channel_mask=mask, channel_groups=groups, interleaved=interleaved, stride=stride,
        dilation=dilation,
    )  # fmt: skip
    torch.testing.assert_close(y, expected)
    upstream = torch.randn_like(y)
    grads = torch.autograd.grad(y, (x, weight), upstream)
    wanted = torch.autograd.grad(expected, (x, dense), upstream)
    torch.testing.assert_close(grads[0], wanted[0])
    torch.testing.assert_close(weight_to_dense(grads[1], taps, (height, width)), wanted[1])


# --- OpenAI's PixelCNN++ (nn.py): pad or crop, then an ordinary convolution -------------------------------------------


def taps_of(kernel: tuple[int, int], kind: str) -> list[tuple[int, int]]:
    """Rows above and the own one; columns centred ("down") or up to the own one ("down-right")."""
    height, width = kernel
    columns = range(-(width // 2), width - width // 2) if kind == "down" else range(1 - width, 1)
    return [(dy, dx) for dy in range(1 - height, 1) for dx in columns]


@pytest.mark.parametrize(
    ("kernel", "kind"), [((2, 3), "down"), ((2, 2), "down-right"), ((1, 3), "down"), ((2, 1), "down-right")]
)
@pytest.mark.parametrize("stride", [1, 2])
def test_shifted_convolutions(kernel, kind, stride):
    """down_shifted_conv2d pads (kh - 1, 0) rows and (kw - 1) // 2 columns at both sides, down_right_shifted_conv2d
    (kh - 1, 0) and (kw - 1, 0)."""
    height, width = kernel
    x, dense = torch.randn(2, 4, 8, 6, dtype=F64), torch.randn(5, 4, *kernel, dtype=F64)
    sides = ((width - 1) // 2,) * 2 if kind == "down" else (width - 1, 0)
    expected = F.conv2d(F.pad(x, (*sides, height - 1, 0)), dense, stride=stride)
    taps = taps_of(kernel, kind)
    weight = weight_from_dense(dense, taps, centre=(height - 1, width // 2 if kind == "down" else width - 1))
    torch.testing.assert_close(masked_conv2d(x, weight, taps=taps, stride=stride), expected)


@pytest.mark.parametrize(("kernel", "kind"), [((2, 3), "down"), ((2, 2), "down-right")])
def test_shifted_transposed_convolutions(kernel, kind):
    """down_shifted_deconv2d crops kh - 1 rows at the end and (kw - 1) / 2 columns at both sides of a VALID transposed
    convolution of stride 2, down_right_shifted_deconv2d kh - 1 and kw - 1 at the end."""
    height, width = kernel
    x, dense = torch.randn(2, 4, 5, 3, dtype=F64), torch.randn(4, 5, *kernel, dtype=F64)
    full = F.conv_transpose2d(x, dense, stride=2, output_padding=1)
    left = (width - 1) // 2 if kind == "down" else 0
    expected = full[:, :, :10, left : left + 6]
    taps = [(-ky, left - kx) for ky in range(height) for kx in range(width)]  # out = 2 in + k - left
    weight = dense.permute(2, 3, 0, 1).flatten(0, 1).contiguous()
    torch.testing.assert_close(masked_conv2d(x, weight, taps=taps, stride=2, transposed=True), expected)
    cut = masked_conv2d(x, weight, taps=taps, stride=2, transposed=True, output_size=(9, 5))
    torch.testing.assert_close(cut, expected[:, :, :9, :5])


def test_shifts_are_taps():
    x, weight = torch.randn(2, 3, 4, 5), torch.eye(3)[None]
    down = masked_conv2d(x, weight, taps=[(-1, 0)])
    right = masked_conv2d(x, weight, taps=[(0, -1)])
    assert torch.equal(down, F.pad(x, (0, 0, 1, 0))[:, :, :-1])
    assert torch.equal(right, F.pad(x, (1, 0))[..., :-1])


# --- sequences, codes, conversions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dilation", [1, 4])
def test_sequences(dilation):
    x, dense = torch.randn(2, 4, 30, dtype=F64), torch.randn(6, 4, 3, dtype=F64)
    expected = F.conv1d(F.pad(x, (2 * dilation, 0)), dense, dilation=dilation)
    y = causal_conv1d(x, dense.permute(2, 1, 0), taps=(-2, -1, 0), dilation=dilation)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_codes_are_one_hot(dtype):
    codes, taps = torch.randint(9, (2, 7, 6)), causal_taps(3, kind="A")
    weight = torch.randn(len(taps), 9, 4, dtype=F64, requires_grad=True)
    one_hot = F.one_hot(codes, 9).movedim(-1, 1).to(F64)
    y = masked_conv2d(codes.to(dtype), weight, taps=taps, activation="relu")
    expected = masked_conv2d(one_hot, weight, taps=taps, activation="relu")
    torch.testing.assert_close(y, expected)
    upstream = torch.randn_like(y)
    (grad,), (wanted,) = (torch.autograd.grad(t, weight, upstream) for t in (y, expected))
    torch.testing.assert_close(grad, wanted)
    sequence = causal_conv1d(codes[:, 0].to(dtype), weight.detach()[:1], taps=(-1,))
    assert torch.equal(sequence[:, :, 1:], weight.detach()[0][codes[:, 0, :-1]].mT)


def test_dense_layout():
    taps = causal_taps((5, 3))
    dense = torch.randn(4, 3, 5, 3)
    weight = weight_from_dense(dense, taps)
    back = weight_to_dense(weight, taps, (5, 3))
    assert torch.equal(weight_from_dense(back, taps), weight)
    dead = torch.ones(5, 3, dtype=torch.bool)
    for dy, dx in taps:
        dead[2 + dy, 1 + dx] = False
    assert not back[:, :, dead].any()
    assert torch.equal(back[:, :, ~dead], dense[:, :, ~dead])
    with pytest.raises(ValueError, match="expected taps within"):
        weight_from_dense(dense, [(0, 2)])


def test_tap_lists():
    assert [len(causal_taps(k, kind=kind)) for k, kind in product((3, 5, 7), "AB")] == [4, 5, 12, 13, 24, 25]
    assert causal_taps((4, 3), stack="horizontal") == ((0, -1), (0, 0))
    assert causal_taps(3, kind="A", order="reversed") == ((1, 1), (1, 0), (1, -1), (0, 1))
    for bad, words in (
        ({"kernel": 4}, "odd kernel"),
        ({"kernel": (2, 3)}, "odd kernel"),
        ({"kernel": (3, 2), "stack": "horizontal"}, "odd kernel"),
        ({"kernel": 0}, "kernel >= 1"),
        ({"kernel": 3, "kind": "C"}, "'C'"),
        ({"kernel": 3, "order": "random"}, "'random'"),
        ({"kernel": 3, "stack": "diagonal"}, "'diagonal'"),
    ):
        with pytest.raises(ValueError, match=words):
            causal_taps(**bad)
