"""A training run with its folder: checkpoints, metrics, pictures; continued where it stopped."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from .. import figures, ranks, sampling
from ..data import Dataset
from ..models import Model, checkpoint
from ..progress import Progress
from .batches import read
from .folder import Folder
from .loop import Trainer
from .options import Options

HELD_OUT = 10_000  # samples that held-out bits/dim are of, at most


class Run:
    """Trains a model on data. All processes of a group do the same; rank 0 writes and speaks.

    every: steps between checkpoints, with their held-out bits/dim and pictures of samples.
    pictures: how many, 0 for none; None: the model's `PICTURES`, 2000 of points.
    facts: what `config.json` keeps about the run.
    """

    def __init__(
        self,
        trainer: Trainer[Model],
        folder: Folder,
        held_out: Dataset | None,
        console: Console,
        *,
        title: str,
        every: int,
        facts: Mapping[str, Any],
        pictures: int | None = None,
    ) -> None:
        self.trainer, self.folder, self.held_out, self.console = trainer, folder, held_out, console
        self.title, self.every, self.facts, self.pictures = title, every, facts, pictures
        self.losses: list[Tensor] = []  # since the last report
        self.rows: list[dict[str, Any]] = []  # of the metrics

    # --- from the start, or from where it stopped --------------------------------------------------------------------

    def begin(self) -> None:
        """Initialises the model by data, and writes the first state, so that there is one to resume from."""
        self.trainer.initialize()
        if ranks.rank() == 0:
            self._write_state()

    def resume(self) -> None:
        tensors, header = checkpoint.unpack(self.folder.state)
        self.trainer.restore(tensors, header["trainer"])
        if ranks.rank() == 0:
            self.rows = self.folder.read_metrics(self.trainer.step)
            if self.trainer.step:
                self._write_model()  # perhaps killed between the two

    def describe(self) -> str:
        """What is about to be trained, on what, where."""
        trainer, held_out = self.trainer, self.held_out
        weights = sum(p.numel() for p in trainer.model.parameters())
        data = f"{len(trainer.batches.data):,} samples, {0 if held_out is None else len(held_out):,} held out"
        where = f"{trainer.device}, {torch.get_num_threads()} threads"
        if ranks.world() > 1:
            where = f"{ranks.world()} processes, each {where}"
        start = f"; from step {trainer.step}" if trainer.step else ""
        return f"{self.title}: {weights:,} parameters; {data}; {where}{start}"

    # --- the run -----------------------------------------------------------------------------------------------------

    def train(self) -> bool:
        """Trains to the end or to a signal (Ctrl-C, SIGTERM), and lets go of the folder: whether it was the end."""
        try:
            return self._train()
        finally:
            self.folder.release()

    def _train(self) -> bool:
        trainer, steps = self.trainer, self.trainer.options.steps
        interval = min(50, max(1, steps // 1000))  # between reports: only they wait for a GPU
        progress = Progress(self.console, self.title, steps, "steps", done=trainer.step)
        with progress, _stop_on_signals() as signals:
            figure = ""
            while trainer.step < steps:
                self.losses.append(trainer.advance())
                due = trainer.step % self.every == 0 or trainer.step == steps
                stop = bool(signals) and ranks.world() == 1
                if due or stop or trainer.step % interval == 0:
                    stop = self._report(bool(signals))
                    figure = loss_text([row["loss"] for row in self.rows[-20:] if "loss" in row], trainer.model.NATS)
                progress.advance(1, figure)
                if due:
                    progress.say(self._evaluate())
                if due or stop:
                    self._write()
                if stop:
                    return trainer.step == steps
        return True

    def _report(self, stop: bool) -> bool:
        """Reads the losses since the last report, of all processes; whether any of these was asked to stop."""
        losses = torch.stack(self.losses)
        losses = ranks.total(torch.cat([losses, losses.new_tensor([float(stop)])])) / ranks.world()
        *values, asked = losses.tolist()
        self.losses.clear()
        step, loss = self.trainer.step, math.fsum(values) / len(values)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss or its gradient was not finite between steps {step - len(values)} and {step}: a lower "
                "learning rate (--lr) or a longer warm-up (--warmup) may help"
            )
        rate = self.trainer.options.rate(step - 1)
        bits = {"bits_per_dim": loss / math.log(2)} if self.trainer.model.NATS else {}
        self._add({"step": step, "loss": loss, **bits, "lr": rate})
        return bool(asked > 0)

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if ranks.rank() == 0:
            self.folder.append_metrics(row)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _evaluate(self) -> str:
        """Held-out bits/dim and pictures of the averaged model: what to say of it."""
        trainer = self.trainer
        text = f"step {trainer.step}"
        if self.held_out is not None:
            bits = held_out_bits(trainer.averaged, self.held_out, trainer.device, trainer.options)
            self._add({"step": trainer.step, "held_out_bits_per_dim": bits})
            text += f": {bits:.3f} bits/dim on held-out data"
        if figures.drawable(trainer.averaged.shape, trainer.averaged.levels):
            self._draw_samples()
        if ranks.rank() == 0:
            losses = [row for row in self.rows if "loss" in row]
            unit = "bits_per_dim" if trainer.model.NATS else "loss"
            figures.curve(
                self.folder.curve, title=self.title, steps=[row["step"] for row in losses],
                training=[row[unit] for row in losses], held_out=self._held_out_so_far(), one_unit=trainer.model.NATS,
            )  # fmt: skip
        return text

    def _held_out_so_far(self) -> list[tuple[int, float]]:
        key = "held_out_bits_per_dim"
        return [(row["step"], row[key]) for row in self.rows if key in row]

    def _draw_samples(self) -> None:
        """Always the same seed and labels: the same samples as they become better. Few labels make a row each, where
        there are as many samples."""
        model, columns, n = self.trainer.averaged, 8, self.pictures
        if n is None:
            n = 2000 if len(model.shape) == 1 else model.PICTURES
        if n == 0:
            return
        y = None
        if model.num_classes is not None and model.num_classes <= 16:
            if self.pictures is None and n >= Model.PICTURES:
                n = max(n, columns * model.num_classes)
            each = columns if n >= columns * model.num_classes else 1
            y = torch.arange(n) // each % model.num_classes
        x = sampling.sample(model, n, y, seed=self.trainer.options.seed_of("samples"))
        if x is not None:
            self.folder.samples.mkdir(exist_ok=True)
            path = self.folder.samples / f"step-{self.trainer.step:07}.png"
            if len(model.shape) == 1:
                self._draw_density(path, x)
            else:
                figures.samples(path, x, levels=model.levels, columns=columns)

    def _draw_density(self, path: Path, samples: Tensor) -> None:
        """Points: data, the density of the model, samples of it."""
        batches, model = self.trainer.batches, self.trainer.averaged
        data = read(batches.data, torch.arange(min(len(samples), len(batches.data))))[0]
        low, high = data.amin(0), data.amax(0)
        margin = torch.where(high > low, 0.1 * (high - low), 1)
        low, high = low - margin, high + margin
        box = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
        figures.densities(
            path, data=data, log_density=sampling.log_density(model, box), samples=samples, box=box,
            title=self.title, note=f"After {self.trainer.step} steps.",
        )  # fmt: skip

    def _write(self) -> None:
        """The metrics, then the state that they belong to, then the model."""
        if ranks.rank() == 0:
            self.folder.sync_metrics()
            self._write_state()
            self._write_model()

    def _write_state(self) -> None:
        tensors, values = self.trainer.state()
        self.folder.write_state(tensors, {"run": self.facts, "trainer": values})

    def _write_model(self) -> None:
        step, held_out = self.trainer.step, self._held_out_so_far()
        facts = {"step": step, **self.facts}
        if held_out and held_out[-1][0] == step:
            facts["held_out_bits_per_dim"] = held_out[-1][1]
        self.trainer.averaged.save(self.folder.path, training=facts)


def loss_text(recent: Sequence[float], nats: bool) -> str:
    """What a progress bar says of the last losses; nats: they are in nats per dimension."""
    loss = math.fsum(recent) / len(recent)
    return f"loss {loss:.3f}" + (f"  {loss / math.log(2):.3f} bits/dim" if nats else "")


@torch.no_grad()
def held_out_bits(model: Model, data: Dataset, device: torch.device, options: Options, size: int = 256) -> float:
    """Mean bits/dim of held-out data given its labels; the processes share the batches."""
    count = min(len(data), HELD_OUT)
    sums = torch.zeros(math.ceil(count / size), dtype=torch.float64)
    for i in range(ranks.rank(), len(sums), ranks.world()):
        batch = [part.to(device) for part in read(data, torch.arange(i * size, min((i + 1) * size, count)))]
        given = batch[: 1 if model.num_classes is None else 2]
        sums[i] = model.bits_per_dim(*given, generator=options.seed_of("held out", i)).double().sum()
    return float(ranks.total(sums).sum() / count)  # of each sum all processes but one hold 0: in any number the same


@contextmanager
def _stop_on_signals() -> Iterator[list[int]]:
    """The signals that came: Ctrl-C and SIGTERM wait for the end of the step, but for a second one.

    `torchrun` passes on a Ctrl-C that its processes got already: among several a second one waits too.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if ranks.world() == 1:
            restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        restore()
