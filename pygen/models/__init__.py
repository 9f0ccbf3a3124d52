"""Generative models: a thin layer over `pygen.nn`. All share the protocol of `Model`."""

from __future__ import annotations

import os

import torch

from . import checkpoint
from .autoregressive import Autoregressive
from .bayes import classify, outlier_score
from .ddpm import DDPM
from .flat import IAF, MAF, CompositeFlow, FlatFlow
from .flow import Flow, MultiscaleFlow
from .model import Model
from .pixelcnn import GatedPixelCNN, PixelCNN
from .pixelcnnpp import PixelCNNPlusPlus
from .realnvp import RealNVP, RealNVPFlat
from .spline_flow import SplineFlow, SplineFlowFlat

# The names of models on the command line.
MODELS: dict[str, type[Model]] = {
    "realnvp": RealNVP,
    "realnvp-flat": RealNVPFlat,
    "nsf": SplineFlow,
    "nsf-flat": SplineFlowFlat,
    "maf": MAF,
    "iaf": IAF,
    "pixelcnn": PixelCNN,
    "gated-pixelcnn": GatedPixelCNN,
    "pixelcnn++": PixelCNNPlusPlus,
    "ddpm": DDPM,
}


def load(folder: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Model:
    """Reads a checkpoint of any model in `MODELS`, or of a `CompositeFlow`: see `Model.load`."""
    classes = (*MODELS.values(), CompositeFlow)
    return checkpoint.load(folder, {model.__name__: model for model in classes}, device)


__all__ = [
    "DDPM",
    "IAF",
    "MAF",
    "MODELS",
    "Autoregressive",
    "CompositeFlow",
    "FlatFlow",
    "Flow",
    "GatedPixelCNN",
    "Model",
    "MultiscaleFlow",
    "PixelCNN",
    "PixelCNNPlusPlus",
    "RealNVP",
    "RealNVPFlat",
    "SplineFlow",
    "SplineFlowFlat",
    "classify",
    "load",
    "outlier_score",
]
