"""How a run begins: from what was asked, or from what its folder records."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .. import data, ranks
from .build import build
from .folder import Folder
from .loop import Trainer
from .options import Options
from .run import Run


@dataclasses.dataclass(frozen=True)
class Request:
    """What somebody asks for. None, and options that are not there: the run's own if resumed, else the default.

    model, settings: a name in `pygen.models.MODELS`, and arguments of its constructor.
    data, loading: what `pygen.data.load` takes, and options of it.
    options: fields of `Options`.
    every: steps between checkpoints; by default a tenth of all, at most 1000.
    pictures: samples drawn at each of them; see `Run`.
    """

    model: str
    data: str
    settings: Mapping[str, Any] | None = None
    loading: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    every: int | None = None
    pictures: int | None = None


def start(
    request: Request, path: Path, *, resume: bool = False, device: str | None = None, console: Console | None = None
) -> Run:
    """A run that is ready to `train` in the folder `path`. Raises before anything is written where that cannot be.

    resume: continue the run in that folder, if there is one. What changes its result cannot be asked for anew.
    """
    folder = Folder(path)
    record = ranks.on_first(lambda: folder.look(resume))
    resumed = record is not None
    loading = dict(request.loading or {}) if record is None else record["loading"]
    if taken := {"spec", "split"} & set(loading):
        raise ValueError(f"expected options of the data's own in --load, got {' and '.join(sorted(taken))}")
    train = data.load(request.data, **loading)
    held_out = None if loading.get("held_out") == 0 else data.load(request.data, split="test", **loading)
    if held_out is not None:
        kinds = [(part.shape, part.levels, part.classes) for part in (train, held_out)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{request.data}: expected held-out samples like those to train on, got {held_out} beside {train}"
            )
    if record is None:
        options = Options(**request.options)
        record = {
            "model": request.model, "settings": dict(request.settings or {}), "data": request.data, "loading": loading,
            "samples": len(train), "processes": ranks.world(), "options": dataclasses.asdict(options),
            "every": min(1000, math.ceil(options.steps / 10)),
        }  # fmt: skip
    else:
        _check(path, request, record, len(train))
        options = Options(**record["options"] | request.options)
    facts = record | {"options": dataclasses.asdict(options), "every": request.every or record["every"]}

    torch.manual_seed(options.seed_of("weights"))
    model = build(request.model, train, record["settings"])
    trainer = Trainer(model, train, options, device=ranks.local_device(device))
    ranks.on_first(folder.claim)
    if ranks.on_first(lambda: folder.look(resume)) != (record if resumed else None):
        folder.release()
        raise FileExistsError(f"{path}: another pygen train was at work there; try again")
    title = f"{type(model).__name__}, {request.data}"
    run = Run(
        trainer, folder, held_out, console or Console(), title=title, every=facts["every"], facts=facts,
        pictures=request.pictures,
    )  # fmt: skip
    run.resume() if resumed else run.begin()
    return run


def _check(path: Path, request: Request, record: Mapping[str, Any], samples: int) -> None:
    """Raises ValueError where the result would not be that of the recorded run."""
    known: Mapping[str, Any] = record["options"]
    pairs = [
        ("MODEL", request.model, record["model"]),
        ("--data", request.data, record["data"]),
        ("--set", request.settings, record["settings"]),
        ("--load", request.loading, record["loading"]),
        ("the number of samples", samples, record["samples"]),
        ("the number of processes", ranks.world(), record["processes"]),
        *((f"--{name.replace('_', '-')}", value, known[name]) for name, value in request.options.items()),
    ]
    changed = [
        f"{name} {_text(asked)}, not {_text(had)}"
        for name, asked, had in pairs
        # At a constant learning rate more steps change nothing of those before.
        if asked is not None
        and asked != had
        and not (name == "--steps" and known["schedule"] == "constant" and request.options["steps"] > known["steps"])
    ]
    if changed:
        raise ValueError(
            f"{path}: a run is resumed with the options that it was started with; got {'; '.join(changed)}"
        )


def _text(value: object) -> str:
    return " ".join(f"{k}={v}" for k, v in value.items()) or "nothing" if isinstance(value, Mapping) else str(value)
