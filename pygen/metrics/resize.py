"""How the packages that compute FID scale images for the Inception network: one function for each way.

All take floats [N, C, H, W] on any device and return [N, C, *size] in the same dtype; all are differentiable. They
agree where nothing is scaled, and differ visibly where something is: a distance is comparable only with others of the
same resizing (Parmar, Zhang and Zhu, "On aliased resizing and surprising subtleties in GAN evaluation", 2022).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]  # height, width


def bilinear(x: Tensor, size: Size) -> Tensor:
    """As pytorch-fid: pixel i lies at s = (i + 1/2) in / out - 1/2, between floor(s) and its neighbour.

    Without a low-pass filter: shrinking skips pixels. `torch.nn.functional.interpolate`, corners not aligned.
    """
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def bilinear_tf1(x: Tensor, size: Size) -> Tensor:
    """As TensorFlow 1, so TTUR, torch-fidelity and torchmetrics with antialias=False: pixel i lies at s = i in / out.

    The image moves towards its upper left corner, and shrinking skips pixels. s is rounded to float32, as it is there
    (resize_bilinear, half_pixel_centers=False).
    """

    def scaled(x: Tensor, dim: int, out: int) -> Tensor:
        n = x.shape[dim]
        at = torch.arange(out, dtype=torch.float32, device=x.device) * torch.tensor(n / out, dtype=torch.float32)
        low = at.long().clamp_max(n - 1)
        weight = (at - low).to(x.dtype).view([-1 if d == dim else 1 for d in range(4)])
        a, b = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp_max(n - 1))
        return a + (b - a) * weight

    return scaled(scaled(x, 3, size[1]), 2, size[0])


def bilinear_antialias(x: Tensor, size: Size) -> Tensor:
    """As torchmetrics by default, from version 1.8: a triangle over max(1, in / out) pixels on either side."""
    return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)


def bicubic_antialias(x: Tensor, size: Size) -> Tensor:
    """As clean-fid, which uses Pillow on one float channel after the other: Keys' cubic (a = -1/2), widened likewise.

    For pixels of 0 .. 255: what the cubic's negative parts bring beyond is cut off, but nothing is rounded to integers.
    Pillow's weights are float64, and so are these: with float32 weights pixels would be off by 0.006.
    """
    y = F.interpolate(x.double(), size, mode="bicubic", align_corners=False, antialias=True)
    return y.to(x.dtype).clamp(0, 255)
