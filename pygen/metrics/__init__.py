"""Distances between sets of samples, by features: the Frechet distance, its statistics, its use as a loss."""

from .frechet import FrechetReference, frechet_distance, frechet_distance_from_features, trace_sqrt_product
from .loss import FeatureQueue, frechet_loss
from .moments import StreamingMoments, load_statistics, save_statistics

__all__ = [
    "FeatureQueue",
    "FrechetReference",
    "StreamingMoments",
    "frechet_distance",
    "frechet_distance_from_features",
    "frechet_loss",
    "load_statistics",
    "save_statistics",
    "trace_sqrt_product",
]
