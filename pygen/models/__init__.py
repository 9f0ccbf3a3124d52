"""Generative models: a thin layer over `pygen.nn`. All share the protocol of `Model`."""

from __future__ import annotations

import os

import torch

from . import checkpoint
from .autoregressive import Autoregressive
from .bayes import classify, outlier_score
from .ddpm import DDPM
from .flow import Flow
from .model import Model
from .pixelcnn import GatedPixelCNN, PixelCNN
from .pixelcnnpp import PixelCNNPlusPlus
from .realnvp import RealNVP, RealNVPFlat

# The names of models on the command line.
MODELS: dict[str, type[Model]] = {
    "realnvp": RealNVP,
    "realnvp-flat": RealNVPFlat,
    "pixelcnn": PixelCNN,
    "gated-pixelcnn": GatedPixelCNN,
    "pixelcnn++": PixelCNNPlusPlus,
    "ddpm": DDPM,
}


def load(folder: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Model:
    """Reads a checkpoint of any model in `MODELS`: see `Model.load`."""
    return checkpoint.load(folder, {model.__name__: model for model in MODELS.values()}, device)


__all__ = [
    "DDPM",
    "MODELS",
    "Autoregressive",
    "Flow",
    "GatedPixelCNN",
    "Model",
    "PixelCNN",
    "PixelCNNPlusPlus",
    "RealNVP",
    "RealNVPFlat",
    "classify",
    "load",
    "outlier_score",
]
