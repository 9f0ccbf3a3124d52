"""Every op in plain PyTorch: readable, float64-capable, differentiable; the truth that kernels are judged by."""

from .causal_sampler import causal_sampler
from .coupling import affine_coupling
from .diffusion_loss import diffusion_loss
from .diffusion_step import diffusion_step
from .frechet import polar, trace_sqrt_product
from .gates import concat_elu, gated_activation
from .heads import bernoulli_nll, categorical_nll
from .logistic_mixture import logistic_mixture_nll, logistic_mixture_sample
from .masked_conv import masked_conv2d
from .moments import accumulate_moments
from .rational_quadratic_spline import rational_quadratic_spline
from .sample_stats import quantile_abs, sample_stats

__all__ = [
    "accumulate_moments",
    "affine_coupling",
    "bernoulli_nll",
    "categorical_nll",
    "causal_sampler",
    "concat_elu",
    "diffusion_loss",
    "diffusion_step",
    "gated_activation",
    "logistic_mixture_nll",
    "logistic_mixture_sample",
    "masked_conv2d",
    "polar",
    "quantile_abs",
    "rational_quadratic_spline",
    "sample_stats",
    "trace_sqrt_product",
]
