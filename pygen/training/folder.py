"""The folder of a run: what lies in it, and that one run at a time writes there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import files
from ..models import checkpoint

FORMAT = 1


class Folder:
    """A run's folder. Of a process group only rank 0 writes there; the others read the state.

    config.json, weights-*.safetensors: the model, with averaged weights (`pygen.models.load`).
    training.safetensors: all that continuing needs. Every state of a run is in one file, replaced as a whole.
    metrics.jsonl: losses and held-out bits/dim, a line for each report.
    curve.png, samples/: pictures.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state, self.metrics = path / "training.safetensors", path / "metrics.jsonl"
        self.curve, self.samples = path / "curve.png", path / "samples"
        self._lock = -1

    def look(self, resume: bool) -> dict[str, Any] | None:
        """What the run there records of itself; None where a new one is to begin."""
        ours = (self.state, self.path / checkpoint.CONFIG, self.metrics, self.curve, self.samples)
        there = [path.name for path in ours if path.exists()]
        if not there:
            return None
        if not resume:
            raise FileExistsError(
                f"{self.path}: expected a new folder, got one with a run ({', '.join(there)}); --resume continues it"
            )
        if not self.state.exists():
            raise FileNotFoundError(f"{self.path}: has no {self.state.name} to resume from, only {', '.join(there)}")
        header = checkpoint.unpack_header(self.state)
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ValueError(f"{self.state}: expected a training state of format {FORMAT}, got another file")
        record: dict[str, Any] = header["run"]
        return record

    def claim(self) -> None:
        """Makes the folder, and locks it as long as this process lives."""
        self.path.mkdir(parents=True, exist_ok=True)
        if os.name != "posix":
            return
        import fcntl

        self._lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(f"{self.path}: another pygen train is at work there") from None

    def release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def write_state(self, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        files.write(self.state, checkpoint.pack(tensors, {"format": FORMAT, **header}))

    def read_metrics(self, step: int) -> list[dict[str, Any]]:
        """The lines up to a step; later ones, and one that a killed process left incomplete, are removed."""
        lines = self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []
        rows = []
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                break
            if row["step"] > step:
                break
            rows.append(row)
        files.write(self.metrics, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
        return rows

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(row)}\n")

    def sync_metrics(self) -> None:
        with open(self.metrics, "a", encoding="utf-8") as file:
            os.fsync(file.fileno())
