"""What Triton kernels of diffusion share: rows of a table of coefficients, and tensors of any storage type."""

import torch
import triton
import triton.language as tl

from . import _math as pm


@triton.jit
def load(tensor, at, inside, ACC: tl.constexpr):
    """In the type of the arithmetic; bytes as (v - 127.5) / 127.5."""
    v = tl.load(tensor + at, inside, 0).to(ACC)
    if tensor.dtype.element_ty == tl.uint8:
        return pm.div(v - 127.5, tl.full(v.shape, 127.5, ACC))
    else:
        return v


@triton.jit
def row_of(index, row, rows, run):
    """Which row of the table a run has, 0 if that is not there, and whether it is."""
    row = row.to(tl.int64)
    if index is not None:
        row = tl.load(index + run)
    there = (row >= 0) & (row < rows)
    return tl.where(there, row, 0), there


@triton.jit
def coefficient(values, table, at, there, COLUMN: tl.constexpr, ACC: tl.constexpr):
    """Of the values, float32, that the host has read, or of the table's row at `at`; NaN if not there."""
    if table is None:
        return values[COLUMN]
    else:
        return tl.where(there, tl.load(table + at + COLUMN).to(ACC), float("nan"))


def runs_of(x, index):
    """How many runs of elements have one row of the table, and how many of a sample's: samples, or their tokens."""
    tokens = index.shape[1] if index is not None and index.dim() == 2 else 1
    return len(x) * tokens, tokens


def rows_for(x, table, index, row, acc):
    """The kernels' arguments that say which row of a table each run has.

    A row that the host knows is read there, without a wait, if the table is; but numbers are passed as float32."""
    values, runs = (0.0,), runs_of(x, index)[0]
    if index is None and table.device.type == "cpu":
        if acc == torch.float32:
            values, table, row = tuple(table[row].tolist()), None, 0
        else:
            table, row = table[row : row + 1].to(x.device, non_blocking=True), 0
    if index is not None:
        index = index.expand(runs) if index.dim() == 0 else index
    return {
        "values": values, "table": None if table is None else table.contiguous(),
        "index": None if index is None else index.contiguous(), "row": row,
        "rows": 1 if table is None else len(table), "columns": 0 if table is None else table.shape[1],
        "run": x.numel() // max(1, runs),
    }  # fmt: skip
