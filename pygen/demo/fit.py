"""Training within a section."""

from __future__ import annotations

from rich.console import Console

from ..data import Dataset
from ..models.model import M
from ..progress import Progress
from ..training import Options, Trainer
from ..training.run import loss_text


def fit(model: M, data: Dataset, options: Options, console: Console, title: str) -> tuple[M, list[float]]:
    """The averaged model, and the loss of every step."""
    trainer, losses = Trainer(model, data, options), list[float]()
    with Progress(console, title, options.steps, "steps") as progress:
        for _ in range(options.steps):
            losses.append(trainer.advance().item())
            progress.advance(1, loss_text(losses[-20:], model.NATS))
    return trainer.averaged, losses
