"""Layers of models: thin modules over `pygen.ops`.

A flow layer is called as `layer(x, logdet, condition, inverse=False) -> (y, logdet)`. The log-determinant [B] runs
through the layers (None starts at zero); condition is [B, F] or None.
"""

from .chain import Chain
from .condition import Condition
from .coupling import AffineCoupling
from .dequantize import Logit, dequantize, quantize
from .heads import CausalHead, MixtureHead
from .masked_conv import MaskedConv2d, NormalizedConv2d, initializing
from .nets import ResidualNet
from .normalize import denormalize, normalize
from .program import Channels, Compiled, ProgramBuilder
from .squeeze import Squeeze
from .unet import UNet

__all__ = [
    "AffineCoupling",
    "CausalHead",
    "Chain",
    "Channels",
    "Compiled",
    "Condition",
    "Logit",
    "MaskedConv2d",
    "MixtureHead",
    "NormalizedConv2d",
    "ProgramBuilder",
    "ResidualNet",
    "Squeeze",
    "UNet",
    "denormalize",
    "dequantize",
    "initializing",
    "normalize",
    "quantize",
]
