"""Layers of models: thin modules over `pygen.ops`.

A flow layer is called as `layer(x, logdet, condition, inverse=False) -> (y, logdet)`. The log-determinant [B] runs
through the layers (None starts at zero); condition is [B, F] or None.
"""

from .autoregressive import MaskedAutoregressive
from .chain import Chain, Inverse
from .condition import Condition
from .coupling import AffineCoupling, SplineCoupling
from .dequantize import Logit, dequantize, quantize
from .heads import CausalHead, MixtureHead
from .linear import LULinear, Permutation, Standardize
from .made import MADE
from .masked_conv import MaskedConv2d, NormalizedConv2d, initializing
from .nets import ResidualMLP, ResidualNet
from .normalize import denormalize, normalize
from .program import Channels, Compiled, ProgramBuilder
from .squeeze import Squeeze
from .transforms import Affine, Spline
from .unet import UNet

__all__ = [
    "MADE",
    "Affine",
    "AffineCoupling",
    "CausalHead",
    "Chain",
    "Channels",
    "Compiled",
    "Condition",
    "Inverse",
    "LULinear",
    "Logit",
    "MaskedAutoregressive",
    "MaskedConv2d",
    "MixtureHead",
    "NormalizedConv2d",
    "Permutation",
    "ProgramBuilder",
    "ResidualMLP",
    "ResidualNet",
    "Spline",
    "SplineCoupling",
    "Squeeze",
    "Standardize",
    "UNet",
    "denormalize",
    "dequantize",
    "initializing",
    "normalize",
    "quantize",
]
