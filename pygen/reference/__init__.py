"""Every op in plain PyTorch: readable, float64-capable, differentiable; the truth that kernels are judged by."""

from .coupling import affine_coupling
from .frechet import polar, trace_sqrt_product
from .logistic_mixture import logistic_mixture_nll, logistic_mixture_sample
from .moments import accumulate_moments

__all__ = [
    "accumulate_moments", "affine_coupling", "logistic_mixture_nll", "logistic_mixture_sample", "polar",
    "trace_sqrt_product",
]  # fmt: skip
