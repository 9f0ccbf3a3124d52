"""Training: one loop for every model, whose runs depend on their options alone and continue where they were killed."""

from .loop import Trainer
from .options import Options

__all__ = ["Options", "Trainer"]
