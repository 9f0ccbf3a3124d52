"""Public ops. Each is one torch op (`torch.ops.pygen.*`) behind a documented function."""

from .coupling import affine_coupling

__all__ = ["affine_coupling"]
