"""What ops of diffusion share: checks of tables of coefficients and of the tensors beside them, the stream's noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._lib import FLOATS, names
from .._seed import Source
from ..reference.random import random
from .random import check_stream, drawn, given_ids, place, samples_of

TABLES = (torch.float64, torch.float32)
PIXELS = (*FLOATS, torch.uint8)  # bytes stand for (v - 127.5) / 127.5

Named = tuple[str, Tensor]  # what messages call a tensor, and the tensor

# --- checks -----------------------------------------------------------------------------------------------------------


def check_tensors(
    op: str, like: Named, shape: Sequence[int], dtypes: Sequence[torch.dtype], **tensors: Tensor | None
) -> None:
    """Of tensors by name, as far as given: dtype, device, shape."""
    of, x = like
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype not in dtypes:
            raise TypeError(f"{op}: expected {name} of dtype {names(dtypes)}, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{op}: expected {name} on {x.device} as {of}, got {tensor.device}")
        if tensor.shape != tuple(shape):
            raise ValueError(
                f"{op}: expected {name} of shape {tuple(shape)} for {of} {tuple(x.shape)}, got {tuple(tensor.shape)}"
            )


def check_table(
    op: str,
    like: Named,
    table: Tensor,
    index: Tensor | None,
    row: int,
    columns: int,
    why: str,
    more: bool = False,
) -> None:
    """Of a table with so many columns (or more), and of what says which row counts. why: so many."""
    of, x = like
    if table.dtype not in TABLES:
        raise TypeError(f"{op}: expected table of dtype {names(TABLES)}, got {table.dtype}")
    fits = table.dim() == 2 and (table.shape[1] == columns or (more and table.shape[1] > columns))
    if not fits or table.shape[0] < 1:
        expected = f"[R, {columns}{' or more' if more else ''}] for {why}, R at least 1"
        raise ValueError(f"{op}: expected table of shape {expected}, got {tuple(table.shape)}")
    if index is None:
        if not 0 <= row < table.shape[0]:
            raise ValueError(f"{op}: expected index in [0, {table.shape[0]}), got {row}")
        if table.device != x.device and table.device.type != "cpu":
            raise ValueError(f"{op}: expected table on {x.device} as {of}, or on the CPU, got {table.device}")
        return
    for name, tensor in (("index", index), ("table", table)):
        if tensor.device != x.device:
            raise ValueError(f"{op}: expected {name} on {x.device} as {of}, got {tensor.device}")
    if index.dtype != torch.int64:
        raise TypeError(f"{op}: expected index of torch.int64, got {index.dtype}")
    if index.dim() > 2 or index.shape != x.shape[: index.dim()]:
        raise ValueError(
            f"{op}: expected index of shape (), [B] or [B, L] for {of} {tuple(x.shape)}, got {tuple(index.shape)}"
        )


def check_index(op: str, x: Tensor, table: Tensor, index: Tensor | None) -> None:
    """By its values, where they are at hand."""
    if index is not None and x.device.type == "cpu":
        wrong = index[(index < 0) | (index >= len(table))]
        if len(wrong):
            raise ValueError(f"{op}: expected index in [0, {len(table)}), got {int(wrong[0])}")


def check_draws(
    op: str, like: Named, table: Tensor, index: Tensor | None, ids: Tensor | None, first_sample: int, step: int
) -> None:
    """Of where in the stream noise of a tensor's shape is drawn."""
    of, x = like
    here = torch.empty(0, dtype=torch.int64, device=x.device) if ids is None else ids
    if here.device != x.device:
        raise ValueError(f"{op}: expected sample_ids on {x.device} as {of}, got {here.device}")
    check_stream(op, x.shape, here, first_sample, step, 0)
    last = step + (len(table) - 1 if counts(index) else 0)
    if last >= 1 << 24:
        raise ValueError(f"{op}: expected step + index below 2^24, got up to {last}")


# --- arguments --------------------------------------------------------------------------------------------------------


def row_or_index(op: str, index: Any) -> tuple[int, Tensor | None]:
    """A public function's `index` as the op takes it: a row, or a tensor."""
    if type(index) is int:
        return index, None
    if isinstance(index, Tensor):
        return 0, index
    raise TypeError(f"{op}: expected index as an integer or a tensor, got {index!r}")


def counts(index: Tensor | None) -> bool:
    """Whether the whole batch is at one step, which then tells its noise from that of other steps."""
    return index is None or index.dim() == 0


def stream_of(
    x: Tensor, generator: Source, first_sample: int, sample_ids: Tensor | None, step: int
) -> tuple[Tensor | None, int | None, int, int]:
    """A public function's arguments that say where in the stream: ids, seed, first_sample and step of the op."""
    seed, first_sample, step, _ = place(generator, first_sample, step, 0, 0)
    ids = None
    if sample_ids is not None:
        ids = given_ids(x.shape[0] if x.dim() else 0, x.device, first_sample, sample_ids)
    return ids, seed, first_sample, step


def noise_of(
    x: Tensor, index: Tensor | None, row: int, ids: Tensor | None, seed: int | None, first_sample: int, step: int
) -> Tensor:
    """Normals of x's shape from the stream; where the whole batch has one row of the table, at step + row."""
    here = torch.empty(0, dtype=torch.int64, device=x.device) if ids is None else ids
    step = step + (row if index is None else int(index) if counts(index) else 0)
    samples = samples_of(here, first_sample, len(x))
    return random(samples, x.shape, drawn(seed), step, 0, "normal", torch.float32)
