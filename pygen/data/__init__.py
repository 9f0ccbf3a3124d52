"""Data sets: what scikit-learn and mathematics bring, and files in the usual formats. Nothing is downloaded."""

from .arrays import arrays
from .cifar import cifar
from .dataset import Dataset
from .digits import Split, digits
from .idx import idx
from .images import images
from .load import load
from .toy import TOYS, Toy, toy
from .wav import mu_law, mu_law_inverse, wav

__all__ = [
    "TOYS",
    "Dataset",
    "Split",
    "Toy",
    "arrays",
    "cifar",
    "digits",
    "idx",
    "images",
    "load",
    "mu_law",
    "mu_law_inverse",
    "toy",
    "wav",
]
