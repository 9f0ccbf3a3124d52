"""Resizing for Inception, against the peers' code and the formulas."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pygen.metrics import resize

from . import peers

SIZES = [(32, 32), (299, 299), (17, 640), (401, 350), (1, 1), (3, 2)]
ALL = [resize.bilinear, resize.bilinear_tf1, resize.bilinear_antialias, resize.bicubic_antialias]


def pixels(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=generator).float()


@pytest.mark.peer
@pytest.mark.parametrize("size", SIZES)
def test_torch_fidelity(size: tuple[int, int]) -> None:
    x = pixels(*size)
    theirs = peers.torch_fidelity_resize()(x, size=(299, 299), align_corners=False)
    assert torch.equal(resize.bilinear_tf1(x, (299, 299)), theirs)


@pytest.mark.peer
@pytest.mark.parametrize("size", SIZES)
def test_clean_fid(size: tuple[int, int]) -> None:
    x = pixels(*size)
    theirs = [peers.clean_fid().build_resizer("clean")(np.uint8(image.permute(1, 2, 0))) for image in x]
    ours = resize.bicubic_antialias(x, (299, 299)).permute(0, 2, 3, 1)
    # measured: 2.3e-5, a unit in the last place of what Pillow rounds to float32 between its two directions
    torch.testing.assert_close(ours, torch.from_numpy(np.stack(theirs)), rtol=0, atol=5e-5)


def rows(weights: Callable[[int], np.ndarray], out: int) -> Tensor:
    """A matrix [out, n] of weights, whose rows add up to 1."""
    matrix = np.stack([weights(i) for i in range(out)])
    return torch.from_numpy(matrix / matrix.sum(1, keepdims=True))


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("size", [(7, 5), (4, 23), (9, 9), (1, 30)])
def test_formulas(size: tuple[int, int], function: Callable[[Tensor, resize.Size], Tensor]) -> None:
    """A product with two matrices, whose weights the docstrings tell."""
    out = (9, 6)

    def triangle(t: np.ndarray) -> np.ndarray:
        return np.maximum(1 - np.abs(t), 0)

    def cubic(t: np.ndarray) -> np.ndarray:  # Keys, "Cubic convolution interpolation", 1981, eq. 15: a = -1/2
        t = np.abs(t)
        return np.where(t < 1, 1.5 * t**3 - 2.5 * t**2 + 1, np.where(t < 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0))

    def matrix(n: int, m: int) -> Tensor:
        ratio, pixel = n / m, np.arange(n)
        if function is resize.bilinear_tf1:
            return rows(lambda i: triangle(np.clip(i * ratio, 0, n - 1) - pixel), m)
        if function is resize.bilinear:
            return rows(lambda i: triangle(np.clip((i + 0.5) * ratio - 0.5, 0, n - 1) - pixel), m)
        kernel = triangle if function is resize.bilinear_antialias else cubic
        return rows(lambda i: kernel((pixel + 0.5 - (i + 0.5) * ratio) / max(ratio, 1)), m)

    x = pixels(*size).double()
    down, across = (matrix(n, m) for n, m in zip(size, out, strict=True))
    # measured: 1.2e-4 for bilinear_tf1, whose positions are float32, 3e-13 for the others
    atol = 5e-4 if function is resize.bilinear_tf1 else 1e-11
    torch.testing.assert_close(function(x, out), (down @ x @ across.mT).clamp(0, 255), rtol=0, atol=atol)


@pytest.mark.parametrize("function", ALL)
def test_same_size_is_the_same(function: Callable[[Tensor, resize.Size], Tensor]) -> None:
    x = pixels(13, 11)
    assert torch.equal(function(x, (13, 11)), x)


@pytest.mark.parametrize("function", ALL)
def test_gradient(function: Callable[[Tensor, resize.Size], Tensor]) -> None:
    x = (pixels(5, 4)[:1, :1].double() * 0.5 + 60).requires_grad_()  # far from where clean-fid cuts
    assert torch.autograd.gradcheck(lambda x: function(x, (4, 7)), x)
