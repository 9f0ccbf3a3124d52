"""From layers to pixel programs (`pygen.program`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..program import ACTIVATIONS, HEAD, PANEL, PIXEL, ROW, Plane, Program, Read, Stage, pack, written_channels
from .masked_conv import MaskedConv2d

Columns = Tensor | slice
Condition = Callable[[Tensor], Tensor]  # the model's condition to [B, N, ...]


class Channels(NamedTuple):
    """Some channels of a plane; size -1: all from `first` on."""

    plane: int
    first: int = 0
    size: int = -1


class Compiled(NamedTuple):
    """A program with its tensors, and what makes its conditions of a model's condition."""

    program: Program
    tensors: list[Tensor]
    conditions: list[Condition]


class _Term(NamedTuple):
    read: Read
    weight: Tensor  # [read.count, columns]


class _Variant(NamedTuple):
    """The rows, or the columns, of an image for which a stage is computed."""

    every: int
    at: int


class ProgramBuilder:
    """Takes down what a model computes, layer by layer, as `pygen.program` describes it.

    shape, levels: of the images. groups: into which the head cuts a pixel's channels. ones: whether the image's plane
    has a channel of ones. Columns of a layer with a channel mask are computed group by group.

    What a layer reads is split by what is known when: rows above the pixel's, and planes that hold nothing else, go
    into a stage for the whole row, the rest into one for the pixel.
    """

    image = 0

    def __init__(self, shape: Sequence[int], levels: int, groups: int, *, ones: bool = False) -> None:
        self.shape, self.levels, self.groups = tuple(shape), levels, groups
        self.planes = [Plane(self.shape[0] + ones)]
        self.stages: list[Stage] = []
        self.tensors: list[Tensor] = []
        self.conditions: list[Condition] = []
        self._whole: set[int] = set()  # planes of which a row is known before its first pixel

    def plane(self, channels: int) -> int:
        """A plane on the image's grid."""
        return self._plane(channels, 1)

    def _plane(self, channels: int, scale: int) -> int:
        self.planes.append(Plane(channels, scale))
        return len(self.planes) - 1

    def pointwise(self, plane: int, activation: str, *, condition: Condition | None = None) -> int:
        """The activation of a plane, to which a condition may be added before."""
        scale, channels = self.planes[plane].scale, self.planes[plane].channels
        whole = plane in self._whole
        groups = 1 if whole else self.groups
        written = written_channels(activation, channels)
        out = self._plane(written, scale)
        if whole:
            self._whole.add(out)
        gated = activation in ("gate", "glu")
        for group in range(groups):
            self.stages.append(
                Stage(
                    out,
                    group * written // groups,
                    channels // groups,
                    start=plane,
                    start_first=group * channels // groups,
                    activation=ACTIVATIONS.index(activation),
                    phase=ROW if whole else PIXEL,
                    group=group,
                    row_every=scale,
                    column_every=scale,
                    **self._added(0, condition, _columns(channels, gated, group, groups)),
                )
            )
        return out

    def conv(
        self,
        *inputs: tuple[MaskedConv2d, int | Sequence[Channels]],
        condition: Condition | None = None,
        residual: int | Channels | None = None,
        out: Channels | None = None,
    ) -> int:
        """activation(sum of layers of planes + condition) + residual, with the activation of the first layer, as a
        plane, or into channels of one. The input channels of a layer are those of a plane, or some of several."""
        first = inputs[0][0]
        outputs = first.weight.shape[2]
        activation = first.options.get("activation")
        written = written_channels(activation, outputs)
        groups = max(layer.options.get("channel_groups", 1) for layer, _ in inputs)
        columns = [_columns(outputs, activation in ("gate", "glu"), group, groups) for group in range(groups)]
        source = inputs[0][1] if isinstance(inputs[0][1], int) else inputs[0][1][0].plane
        scale, variants = _variants(first, self.planes[source].scale)
        target = Channels(self._plane(written, scale)) if out is None else out
        added = Channels(residual) if isinstance(residual, int) else residual
        bias = sum(layer.bias.detach().to(_wide(layer.bias)) for layer, _ in inputs if layer.bias is not None)
        pre = -1
        whole = True
        for rows, row_taps in variants:
            for cols, column_taps in variants:
                terms = [
                    [term for layer, of in inputs for term in self._terms(layer, of, row_taps, column_taps, group, c)]
                    for group, c in enumerate(columns)
                ]
                early = [[t for t in ts if self._early(t.read, rows)] for ts in terms]
                late = [[t for t in ts if not self._early(t.read, rows)] for ts in terms]
                waits = any(late) or (added is not None and added.plane not in self._whole)
                whole &= not waits
                place: dict[str, Any] = {
                    "row_every": rows.every, "row_at": rows.at, "column_every": cols.every, "column_at": cols.at
                }  # fmt: skip
                if waits and any(early):
                    pre = self._plane(outputs, scale) if pre < 0 else pre
                    for group, ts in enumerate(early):
                        shared = self._added(bias, condition, columns[group])
                        at = group * outputs // groups
                        n = outputs // groups
                        self.stages.append(Stage(pre, at, n, phase=ROW, **shared, **place, **self._sum(ts)))
                for group, ts in enumerate(late if waits and any(early) else terms):
                    begun = waits and any(early)
                    shared = {} if begun else self._added(bias, condition, columns[group])
                    at = group * written // groups
                    self.stages.append(
                        Stage(
                            target.plane,
                            target.first + at,
                            outputs // groups,
                            start=pre if begun else -1,
                            start_first=group * outputs // groups if begun else 0,
                            activation=ACTIVATIONS.index(activation),
                            residual=-1 if added is None else added.plane,
                            residual_first=0 if added is None else added.first + at,
                            phase=PIXEL if waits else ROW,
                            group=group if waits else 0,
                            **shared,
                            **place,
                            **self._sum(ts),
                        )
                    )
        if whole:
            self._whole.add(target.plane)
        return target.plane

    def dense(self, weight: Tensor, bias: Tensor, plane: int, out: int, *, group: int) -> None:
        """weight [N, K] times the first K channels of a plane, plus bias, for one group, as the first N of another."""
        outputs, inputs = weight.shape
        self.stages.append(
            Stage(
                out,
                0,
                outputs,
                group=group,
                **self._added(bias.detach().to(_wide(bias)), None, slice(0, outputs)),
                **self._sum([_Term(Read(plane, 0, 0, 0, inputs), _stored(weight).t())]),
            )
        )

    def finish(self, output: int, *, head: str, mixtures: int = 1, layout: str = "openai") -> Compiled:
        """The program, whose head draws from the plane `output`."""
        stages, tensors = _side_by_side(self.stages, self.tensors)
        for i in reversed(range(len(stages))):
            if stages[i].phase == PIXEL and _only_for_head(stages, i):
                stages[i] = replace(stages[i], phase=HEAD)
        channels, height, width = self.shape
        program = Program(
            height, width, channels, self.levels, self.groups, head, mixtures, layout, output, len(tensors),
            len(self.conditions), tuple(self.planes), tuple(stages),
        )  # fmt: skip
        program.check()
        return Compiled(program, tensors, self.conditions)

    def _early(self, read: Read, rows: _Variant) -> bool:
        """Whether what is read is known before the first pixel of a row."""
        scale = self.planes[read.plane].scale
        return read.plane in self._whole or (rows.at // scale + read.dy) * scale < rows.at

    def _sum(self, terms: list[_Term]) -> dict[str, Any]:
        if not terms:
            return {}
        self.tensors.append(pack(torch.cat([term.weight for term in terms])))
        return {"weight": len(self.tensors) - 1, "reads": tuple(term.read for term in terms)}

    def _added(self, bias: Tensor | int, condition: Condition | None, columns: Columns) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if isinstance(bias, Tensor):
            self.tensors.append(bias[columns].contiguous())
            found["bias"] = len(self.tensors) - 1
        if condition is not None:

            def some(given: Tensor) -> Tensor:
                values = condition(given)[:, columns]
                return values.movedim(1, -1).to(_wide(values)).contiguous()

            self.conditions.append(some)
            found["condition"] = len(self.conditions) - 1
        return found

    def _terms(
        self,
        layer: MaskedConv2d,
        of: int | Sequence[Channels],
        row_taps: Callable[[int], int | None],
        column_taps: Callable[[int], int | None],
        group: int,
        columns: Columns,
    ) -> list[_Term]:
        """What a layer reads for some columns, tap by tap."""
        sources = [Channels(of)] if isinstance(of, int) else of
        mask, groups = layer.options.get("channel_mask"), layer.options.get("channel_groups", 1)
        dilation = layer.options.get("dilation", 1)
        if layer.options.get("interleaved"):
            raise NotImplementedError("expected layers with contiguous channel groups, got interleaved ones")
        weight = _stored(layer.weight)
        found = []
        for tap, (dy, dx) in enumerate(layer.taps):
            row, column = row_taps(dilation * dy), column_taps(dilation * dx)
            if row is None or column is None:
                continue
            rest = weight.shape[1]
            if mask is not None and (dy, dx) == (0, 0):
                rest = (group + (mask == "B")) * rest // groups
            begin = 0
            for plane, first, size in sources:
                n = min(self.planes[plane].channels - first if size < 0 else size, rest - begin)
                if n > 0:
                    found.append(_Term(Read(plane, row, column, first, n), weight[tap, begin : begin + n, columns]))
                    begin += n
        return found


def _side_by_side(stages: list[Stage], tensors: list[Tensor]) -> tuple[list[Stage], list[Tensor]]:
    """One stage for two that read the same and write channels that lie side by side: a larger product."""
    found: list[Stage] = []
    joined: list[list[int]] = []  # tensors that are one now, by their new number
    numbers: dict[int, int] = {}

    def number(tensor: int) -> int:
        if tensor >= 0 and tensor not in numbers:
            numbers[tensor] = len(joined)
            joined.append([tensor])
        return numbers.get(tensor, -1)

    for stage in stages:
        last = found[-1] if found else None
        if last is not None and _continues(last, stage):
            for mine, its in ((last.weight, stage.weight), (last.bias, stage.bias)):
                if mine >= 0:
                    joined[mine].append(its)
            found[-1] = replace(last, outputs=last.outputs + stage.outputs)
        else:
            found.append(replace(stage, weight=number(stage.weight), bias=number(stage.bias)))
    return found, [torch.cat([tensors[i] for i in parts]) for parts in joined]


def _continues(a: Stage, b: Stage) -> bool:
    """Whether b is as a, for the outputs behind a's."""
    then = a.outputs
    placed = replace(
        b, first=b.first - then, start_first=b.start_first - then * (b.start >= 0), outputs=then, weight=a.weight,
        bias=a.bias, residual_first=b.residual_first - then * (b.residual >= 0),
    )  # fmt: skip
    plain = ACTIVATIONS[a.activation] in (None, "relu", "elu") and a.condition < 0 and then % PANEL == 0
    return plain and placed == a and a.weight >= 0 and b.weight >= 0 and (a.bias < 0) == (b.bias < 0)


def _only_for_head(stages: list[Stage], i: int) -> bool:
    """Whether what stage i writes is read by later stages of the head alone, in the same pixel and group."""
    plane, group = stages[i].out, stages[i].group
    for k, user in enumerate(stages):
        reads = [read for read in user.reads if read.plane == plane]
        if not reads and plane not in (user.start, user.residual):
            continue
        here = all(read.dy == read.dx == 0 for read in reads)
        if not (k > i and user.phase == HEAD and user.group == group and here):
            return False
    return True


def _stored(weight: Tensor) -> Tensor:
    """As a program keeps it: in float32, float64 or bfloat16."""
    return weight.detach().float() if weight.dtype == torch.float16 else weight.detach()


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _columns(outputs: int, gated: bool, group: int, groups: int) -> Columns:
    """Those of a group; each half has its own in front of a gate."""
    if groups == 1:
        return slice(0, outputs)
    c = torch.arange(outputs).view(2 if gated else 1, groups, -1)
    return c[:, group].flatten()


def _variants(layer: MaskedConv2d, scale: int) -> tuple[int, list[tuple[_Variant, Callable[[int], int | None]]]]:
    """The scale of a layer's outputs, from that of its inputs; and for each kind of row, or column, of theirs, where a
    tap's offset leads, from the inputs' place at the pixel; None: nowhere."""
    stride = layer.options.get("stride", 1)
    if not layer.options.get("transposed", False):
        return scale * stride, [(_Variant(scale * stride, 0), lambda offset: offset)]

    def lead(at: int) -> Callable[[int], int | None]:  # outputs at + n stride: inputs (at + offset) / stride + n
        return lambda offset: None if (at + offset) % stride else (at + offset) // stride

    fine = scale // stride
    return fine, [(_Variant(scale, at * fine), lead(at)) for at in range(stride)]
