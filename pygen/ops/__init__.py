"""Public ops. Each is one torch op (`torch.ops.pygen.*`) behind a documented function."""

from .causal_sampler import causal_sampler
from .coupling import affine_coupling
from .diffusion_loss import diffusion_loss
from .diffusion_step import diffusion_step
from .frechet import polar, trace_sqrt_product
from .gates import concat_elu, gated_activation
from .heads import bernoulli_nll, categorical_nll
from .logistic_mixture import logistic_mixture_nll, logistic_mixture_sample
from .made_inverse import made_inverse
from .masked_conv import causal_conv1d, causal_taps, channel_links, masked_conv2d, weight_from_dense, weight_to_dense
from .moments import accumulate_moments
from .random import dequantize
from .rational_quadratic_spline import InputOutsideDomain, rational_quadratic_spline
from .sample_stats import quantile_abs, sample_stats

__all__ = [
    "InputOutsideDomain",
    "accumulate_moments",
    "affine_coupling",
    "bernoulli_nll",
    "categorical_nll",
    "causal_conv1d",
    "causal_sampler",
    "causal_taps",
    "channel_links",
    "concat_elu",
    "dequantize",
    "diffusion_loss",
    "diffusion_step",
    "gated_activation",
    "logistic_mixture_nll",
    "logistic_mixture_sample",
    "made_inverse",
    "masked_conv2d",
    "polar",
    "quantile_abs",
    "rational_quadratic_spline",
    "sample_stats",
    "trace_sqrt_product",
    "weight_from_dense",
    "weight_to_dense",
]
