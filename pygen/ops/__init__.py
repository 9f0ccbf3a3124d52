"""Public ops. Each is one torch op (`torch.ops.pygen.*`) behind a documented function."""

from .coupling import affine_coupling
from .frechet import polar, trace_sqrt_product
from .logistic_mixture import logistic_mixture_nll, logistic_mixture_sample
from .moments import accumulate_moments
from .random import dequantize

__all__ = [
    "accumulate_moments", "affine_coupling", "dequantize", "logistic_mixture_nll", "logistic_mixture_sample", "polar",
    "trace_sqrt_product",
]  # fmt: skip
