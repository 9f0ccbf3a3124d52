"""Custom kernels for deep generative models in PyTorch."""

from . import backends, ops, random, reference

__version__ = "0.1.0"
__all__ = ["__version__", "backends", "ops", "random", "reference"]
