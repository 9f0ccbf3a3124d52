"""Data that needs no download."""

from .digits import Split, digits
from .toy import TOYS, toy

__all__ = ["TOYS", "Split", "digits", "toy"]
