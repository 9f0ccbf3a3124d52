"""The training loop of the demo: AdamW, a cosine schedule with warm-up, an average of the weights, a progress bar."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..models.model import M


def fit(
    model: M,
    batch: Callable[[], tuple[Tensor, ...]],
    *,
    steps: int,
    lr: float,
    console: Console,
    title: str,
    show: Callable[[float], str],
    weight_decay: float = 1e-4,
    average: float = 0.98,
) -> tuple[M, list[float]]:
    """Trains and returns the model with averaged weights, in eval mode, and the loss of every step.

    batch: draws the model's arguments; all randomness is torch's global stream, so that a seed decides the result.
    show: what the progress bar says of the loss, which it gets smoothed.
    average: decay of the moving average of the weights.
    """
    averaged = copy.deepcopy(model).requires_grad_(False)
    update_average = get_ema_multi_avg_fn(average)
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * i / steps))
    )
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figure]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    losses: list[float] = []
    model.train()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=steps, figure="")
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(*batch())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0, error_if_nonfinite=True)
            optimizer.step()
            schedule.step()
            update_average(list(averaged.parameters()), weights, 0)
            losses.append(loss.item())
            recent = losses[-20:]
            progress.update(task, advance=1, figure=show(sum(recent) / len(recent)))
    return averaged.requires_grad_().eval(), losses
