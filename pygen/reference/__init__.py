"""Every op in plain PyTorch: readable, float64-capable, differentiable; the truth that kernels are judged by."""

from .coupling import affine_coupling

__all__ = ["affine_coupling"]
