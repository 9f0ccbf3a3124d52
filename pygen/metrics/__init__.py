"""Distances between sets of samples, by features: the Frechet distance, its statistics, its use as a loss."""

from .features import ImageFiles, extract_features
from .fid import FrechetSide, compute_fid
from .frechet import FrechetReference, frechet_distance, frechet_distance_from_features, trace_sqrt_product
from .inception import Inception
from .loss import FeatureQueue, frechet_loss
from .moments import StreamingMoments, load_statistics, save_statistics

__all__ = [
    "FeatureQueue",
    "FrechetReference",
    "FrechetSide",
    "ImageFiles",
    "Inception",
    "StreamingMoments",
    "compute_fid",
    "extract_features",
    "frechet_distance",
    "frechet_distance_from_features",
    "frechet_loss",
    "load_statistics",
    "save_statistics",
    "trace_sqrt_product",
]
