"""Public ops. Each is one torch op (`torch.ops.pygen.*`) behind a documented function."""

from .coupling import affine_coupling
from .random import dequantize

__all__ = ["affine_coupling", "dequantize"]
