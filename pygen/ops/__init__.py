"""Public ops. Each is one torch op (`torch.ops.pygen.*`) behind a documented function."""

from .coupling import affine_coupling
from .frechet import polar, trace_sqrt_product
from .gates import concat_elu, gated_activation
from .heads import categorical_nll
from .moments import accumulate_moments
from .random import dequantize

__all__ = [
    "accumulate_moments",
    "affine_coupling",
    "categorical_nll",
    "concat_elu",
    "dequantize",
    "gated_activation",
    "polar",
    "trace_sqrt_product",
]
