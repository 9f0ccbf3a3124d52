"""Generative models: a thin layer over `pygen.nn`. All share the protocol of `Model`."""

from .flow import Flow
from .model import Model
from .realnvp import RealNVP, RealNVPFlat

__all__ = ["Flow", "Model", "RealNVP", "RealNVPFlat"]
