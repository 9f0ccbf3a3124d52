"""Pixel programs: what a model computes for one pixel after the other, as a short list of stages.

An autoregressive model compiles itself into a program (`pygen.nn.ProgramBuilder`), and `pygen.ops.causal_sampler` runs
any: adding a model adds no kernel. A program is data, `encode` and `decode` its one serial form; weights are tensors
beside it.

*Planes* hold what is kept of a feature map: channels at every place of a grid that is `scale` times coarser than the
image. Plane 0 is the image, its levels spread over [-1, 1]; channels beyond the image's are 1. Outside its grid a plane
is 0; a place that no stage writes holds anything, so a reader must not look there.

*Stages* fill planes, in order. A stage of the columns n of a place is::

    pre = bias + condition + start + sum over reads of x[read] W[read]          # [outputs]
    out = activation(pre) + residual

and has a phase. Before the first pixel of a row, its stages of the phase ROW are computed for the whole row: they
depend on the rows above alone. Then, pixel by pixel, and in a pixel for each group of channels that is drawn together,
those of the phase PIXEL, and those of the phase HEAD, which nobody needs where nothing is drawn. (Of pixels that are
known the stages of all groups may be computed in the order of the program, each for many pixels at once.) What the rows
above contribute to the stages of a pixel has been summed by ROW stages, where a stage starts.

A stage of a coarse or strided grid is computed for the image's rows r = row_at modulo row_every only, likewise columns.
At the image's place (r, c) a plane's place is (r // scale, c // scale), to which reads add (dy, dx), dy <= 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROW, PIXEL, HEAD = range(3)
ACTIVATIONS = (None, "relu", "elu", "gate", "glu", "concat_elu")
HEADS = ("categorical", "mixture")
LAYOUTS = ("openai", "flax", "tfp")  # of a mixture's parameters
PANEL = 32  # columns of a weight that lie together
_VERSION = 1
_LARGEST = 1 << 31
_MOST_KEPT = 1 << 33


@dataclass(frozen=True)
class Plane:
    channels: int
    scale: int = 1


@dataclass(frozen=True)
class Read:
    """`count` channels from `first` on of a plane, (dy, dx) from the place of a stage."""

    plane: int
    dy: int
    dx: int
    first: int
    count: int


@dataclass(frozen=True)
class Stage:
    """One stage; see the module. Planes and tensors by their index, -1 for none.

    out, first: the plane and the first of the channels that are written.
    outputs: columns of pre; gates make half as many channels of them, concat_elu twice as many.
    weight, bias: among the program's tensors, the weight [K, outputs] of the reads in order, packed by `pack`.
    condition: among the conditions, [B, outputs], or [B, H', W', outputs] on the grid of `out`.
    start, start_first, residual, residual_first: planes on the grid of `out`, and their first channel.
    """

    out: int
    first: int
    outputs: int
    weight: int = -1
    bias: int = -1
    condition: int = -1
    start: int = -1
    start_first: int = 0
    activation: int = 0
    residual: int = -1
    residual_first: int = 0
    phase: int = PIXEL
    group: int = 0
    row_every: int = 1
    row_at: int = 0
    column_every: int = 1
    column_at: int = 0
    reads: tuple[Read, ...] = ()

    @property
    def written(self) -> int:
        """Channels that are written."""
        return written_channels(ACTIVATIONS[self.activation], self.outputs)

    @property
    def depth(self) -> int:
        return sum(read.count for read in self.reads)


def written_channels(activation: str | None, outputs: int) -> int:
    """Channels that an activation makes of so many."""
    if activation in ("gate", "glu"):
        return outputs // 2
    return 2 * outputs if activation == "concat_elu" else outputs


@dataclass(frozen=True)
class Program:
    """Stages and planes for images of one size, and the head that draws from the plane `output`.

    groups: of channels that are drawn one after the other: all in one, or each its own.
    tensors, conditions: how many of each the stages refer to.
    head: "categorical": the output's channels are the logits of the group's levels. "mixture": of all channels, the
        parameters of a discretised logistic mixture of so many components, in the layout of
        `pygen.ops.logistic_mixture_nll`.
    """

    height: int
    width: int
    channels: int
    levels: int
    groups: int
    head: str
    mixtures: int
    layout: str
    output: int
    tensors: int
    conditions: int
    planes: tuple[Plane, ...]
    stages: tuple[Stage, ...] = field(repr=False)

    @property
    def autoregressive(self) -> bool:
        """Whether a mixture's channels depend on those before."""
        return self.channels > 1

    @property
    def draws(self) -> int:
        """Numbers of the random stream that a pixel takes."""
        return self.channels + (self.head == "mixture")

    def grid(self, plane: int) -> tuple[int, int]:
        scale = self.planes[plane].scale
        return -(-self.height // scale), -(-self.width // scale)

    def encode(self) -> Tensor:
        """The program as integers, int64, on the CPU whatever the default device."""
        words = [
            _VERSION, self.height, self.width, self.channels, self.levels, self.groups, HEADS.index(self.head),
            self.mixtures, LAYOUTS.index(self.layout), self.output, self.tensors, self.conditions, len(self.planes),
            len(self.stages),
        ]  # fmt: skip
        for plane in self.planes:
            words += vars(plane).values()
        for stage in self.stages:
            words += [getattr(stage, f.name) for f in _STAGE_FIELDS]
            words.append(len(stage.reads))
            for read in stage.reads:
                words += vars(read).values()
        return torch.tensor(words, device="cpu")

    @classmethod
    def decode(cls, words: Tensor) -> Program:
        """The inverse of `encode`; raises ValueError for anything that is no program."""
        if words.dtype != torch.int64 or words.dim() != 1:
            raise ValueError(f"expected a program as int64 of one dimension, got {words.dtype} {tuple(words.shape)}")
        rest = iter(words.tolist())

        def take(n: int) -> list[int]:
            return [next(rest) for _ in range(n)]

        try:
            version, *numbers, planes, stages = take(14)
            if version != _VERSION:
                raise ValueError(f"expected a program of version {_VERSION}, got {version}")
            height, width, channels, levels, groups, head, mixtures, layout, output, tensors, conditions = numbers
            if not (0 <= head < len(HEADS) and 0 <= layout < len(LAYOUTS)):
                raise ValueError(f"expected a known head and layout, got {head} and {layout}")
            kept = tuple(Plane(*take(2)) for _ in range(planes))
            found = []
            for _ in range(stages):
                *values, reads = take(len(_STAGE_FIELDS) + 1)
                named = {f.name: value for f, value in zip(_STAGE_FIELDS, values, strict=True)}
                found.append(Stage(**named, reads=tuple(Read(*take(5)) for _ in range(reads))))
        except (StopIteration, RuntimeError):  # the latter within a generator
            raise ValueError(f"expected a whole program, got its first {len(words)} numbers") from None
        if next(rest, None) is not None:
            raise ValueError("expected one program, got numbers behind its end")
        program = cls(
            height, width, channels, levels, groups, HEADS[head], mixtures, LAYOUTS[layout], output, tensors,
            conditions, kept, tuple(found),
        )  # fmt: skip
        program.check()
        return program

    def check(self) -> None:
        """Raises ValueError for a program that cannot be run, or that would look at what is not known yet."""
        sizes = {"height": self.height, "width": self.width, "channels": self.channels, "mixtures": self.mixtures}
        for name, value in sizes.items():
            _expect(value >= 1, name, ">= 1", value)
        _expect(2 <= self.levels <= 1 << 16, "levels", "in [2, 65536]", self.levels)
        _expect(self.groups in (1, self.channels), "groups", f"1 or {self.channels}", self.groups)
        _expect(self.head == "mixture" or self.groups == self.channels, "groups", self.channels, self.groups)
        _expect(self.head == "categorical" or self.groups == 1, "groups", 1, self.groups)
        _expect(len(self.planes) > 0 and self.planes[0].scale == 1, "plane 0", "of scale 1", self.planes[:1])
        for plane in self.planes:
            _expect(plane.channels >= 1 and plane.scale >= 1, "planes", "of some channels and scale >= 1", plane)
        _expect(self.planes[0].channels >= self.channels, "channels of plane 0", f">= {self.channels}", self.planes[0])
        _expect(0 < self.output < len(self.planes), "output", f"in [1, {len(self.planes)})", self.output)
        wanted, output = self._head_channels(), self.planes[self.output]
        _expect(output == Plane(wanted), "the output plane", f"{wanted} channels of scale 1", output)
        numbers = [getattr(stage, f.name) for stage in self.stages for f in _STAGE_FIELDS]
        numbers += [value for stage in self.stages for read in stage.reads for value in vars(read).values()]
        for value in (*numbers, *(n for plane in self.planes for n in vars(plane).values()), *sizes.values()):
            _expect(-_LARGEST < value < _LARGEST, "every number", "within 2^31", value)
        _expect(self.channels <= 4096, "channels", "at most 4096", self.channels)
        for i, stage in enumerate(self.stages):
            self._check_stage(f"stage {i}", stage)
        writers: list[list[int]] = [[] for _ in self.planes]
        for i, stage in enumerate(self.stages):
            writers[stage.out].append(i)
        for i, stage in enumerate(self.stages):
            for what, read in self._accesses(stage):
                fits = read.dy <= 0 and self._known(i, read, writers[read.plane])
                _expect(fits, f"{what} of stage {i}", "of what is known by then", read)
        kept = self._kept()
        _expect(kept <= _MOST_KEPT, "planes", f"of at most {_MOST_KEPT} numbers of an image", kept)

    @staticmethod
    def _accesses(stage: Stage) -> list[tuple[str, Read]]:
        found = [("a read", read) for read in stage.reads]
        if stage.start >= 0:
            found.append(("start", Read(stage.start, 0, 0, stage.start_first, stage.outputs)))
        if stage.residual >= 0:
            found.append(("residual", Read(stage.residual, 0, 0, stage.residual_first, stage.written)))
        return found

    def _known(self, index: int, read: Read, writers: list[int]) -> bool:
        """Whether what a stage reads is there by then: rows above are; else the image's earlier columns and, of the
        pixel, the channels before its group's, and what earlier stages wrote there. What stages of the head write is
        for later ones of the same pixel and group only. csrc/common/pixel_program.h has the same."""
        stage, scale = self.stages[index], self.planes[read.plane].scale
        above = (stage.row_at // scale + read.dy) * scale < stage.row_at
        column = (stage.column_at // scale + read.dx) * scale
        if read.plane == 0:
            here = read.first + read.count <= stage.group or read.first >= self.channels
            drawn = column < stage.column_at or (column == stage.column_at and here)
            return above or (stage.phase != ROW and drawn)
        for i in writers:
            writer = self.stages[i]
            if writer.first >= read.first + read.count or read.first >= writer.first + writer.written:
                continue
            if writer.phase == HEAD:
                here = read.dy == read.dx == 0 and writer.group == stage.group
                if not here or stage.phase != HEAD or i >= index:
                    return False
            if above:
                continue
            if i >= index:
                return False
            before = column < stage.column_at or (column == stage.column_at and writer.group <= stage.group)
            if writer.phase != ROW and (stage.phase == ROW or not before):
                return False
        return True

    def _kept(self) -> int:
        """Numbers that are kept of an image: rows of every plane, and columns beside it, as far as reads reach."""
        rows, beside = [1] * len(self.planes), [[0, 0] for _ in self.planes]
        for stage in self.stages:
            for read in stage.reads:
                height, width = self.grid(read.plane)
                rows[read.plane] = max(rows[read.plane], 1 + min(-read.dy, height))
                sides = beside[read.plane]
                sides[read.dx > 0] = max(sides[read.dx > 0], min(abs(read.dx), width))
        widths = [self.grid(p)[1] + sum(sides) for p, sides in enumerate(beside)]
        return sum(n * width * plane.channels for n, width, plane in zip(rows, widths, self.planes, strict=True))

    def _head_channels(self) -> int:
        if self.head == "categorical":
            return self.levels
        pairs = self.channels * (self.channels - 1) // 2
        return self.mixtures * (1 + 2 * self.channels + pairs)

    def _check_stage(self, name: str, stage: Stage) -> None:
        _expect(0 < stage.out < len(self.planes), f"out of {name}", f"in [1, {len(self.planes)})", stage.out)
        _expect(0 <= stage.activation < len(ACTIVATIONS), f"activation of {name}", "known", stage.activation)
        gated = ACTIVATIONS[stage.activation] in ("gate", "glu")
        fits = stage.outputs >= 1 and not (gated and stage.outputs % 2)
        _expect(fits, f"outputs of {name}", "at least one, and even for a gate", stage.outputs)
        _expect(stage.phase in (ROW, PIXEL, HEAD), f"phase of {name}", "0, 1 or 2", stage.phase)
        _expect(0 <= stage.group < self.groups, f"group of {name}", f"in [0, {self.groups})", stage.group)
        out = self.planes[stage.out]
        parts = (
            ("out", stage.out, stage.first, stage.written),
            ("start", stage.start, stage.start_first, stage.outputs),
            ("residual", stage.residual, stage.residual_first, stage.written),
        )
        for what, plane, first, count in parts:
            if plane == -1 and what != "out":
                continue
            _expect(0 <= plane < len(self.planes), f"{what} of {name}", f"in [0, {len(self.planes)})", plane)
            found = self.planes[plane]
            _expect(found.scale == out.scale, f"{what} of {name}", f"on the grid of plane {stage.out}", found)
            fits = first >= 0 and first + count <= found.channels
            _expect(fits, f"channels of {what} of {name}", f"within {found.channels}", (first, first + count))
        for what, index, end in (("weight", stage.weight, self.tensors), ("bias", stage.bias, self.tensors),
                                 ("condition", stage.condition, self.conditions)):  # fmt: skip
            _expect(-1 <= index < end, f"{what} of {name}", f"in [-1, {end})", index)
        _expect(
            (stage.weight >= 0) == bool(stage.reads), f"reads of {name}", "with a weight and only then", stage.reads
        )
        for every, at in ((stage.row_every, stage.row_at), (stage.column_every, stage.column_at)):
            fits = 0 <= at < every and every % out.scale == 0 and at % out.scale == 0
            _expect(fits, f"rows and columns of {name}", f"on a grid of scale {out.scale}", (every, at))
        for read in stage.reads:
            _expect(0 <= read.plane < len(self.planes), f"a read of {name}", f"in [0, {len(self.planes)})", read.plane)
            plane_ = self.planes[read.plane]
            fits = read.first >= 0 and read.count >= 1 and read.first + read.count <= plane_.channels
            _expect(fits, f"a read of {name}", f"within {plane_.channels} channels", read)
            aligned = stage.row_every % plane_.scale == 0 and stage.column_every % plane_.scale == 0
            _expect(aligned, f"a read of {name}", f"rows and columns of scale {plane_.scale}", read)

    def check_tensors(self, tensors: Sequence[Tensor], conditions: Sequence[Tensor], batch: int) -> None:
        """Raises ValueError or TypeError unless these are what the stages take."""
        _expect(len(tensors) == self.tensors, "the number of tensors", self.tensors, len(tensors))
        _expect(len(conditions) == self.conditions, "the number of conditions", self.conditions, len(conditions))
        wanted: dict[int, tuple[int, ...]] = {}
        given: dict[int, tuple[tuple[int, ...], ...]] = {}
        for stage in self.stages:
            if stage.weight >= 0:
                wanted[stage.weight] = (-(-stage.outputs // PANEL), stage.depth, PANEL)
            if stage.bias >= 0:
                wanted[stage.bias] = (stage.outputs,)
            if stage.condition >= 0:
                given[stage.condition] = (
                    (batch, stage.outputs), (batch, *self.grid(stage.out), stage.outputs)
                )  # fmt: skip
        for i, tensor in enumerate(tensors):
            _expect(i in wanted and tuple(tensor.shape) == wanted[i], f"tensor {i}", wanted.get(i), tuple(tensor.shape))
        for i, tensor in enumerate(conditions):
            shapes = given.get(i, ())
            _expect(tuple(tensor.shape) in shapes, f"condition {i}", " or ".join(map(str, shapes)), tuple(tensor.shape))


_STAGE_FIELDS = tuple(f for f in fields(Stage) if f.name != "reads")


def _expect(fine: bool, name: str, expected: Any, given: Any) -> None:
    if not fine:
        raise ValueError(f"expected {name} {expected}, got {given}")


def pack(weight: Tensor) -> Tensor:
    """A weight [K, N] as panels of columns [ceil(N / 32), K, 32], the last one filled up with zeros."""
    beyond = -weight.shape[1] % PANEL
    whole = F.pad(weight, (0, beyond)) if beyond else weight
    panels: Tensor = whole.unflatten(1, (-1, PANEL)).transpose(0, 1)
    return panels.contiguous()


def unpack(panels: Tensor, outputs: int) -> Tensor:
    """The inverse of `pack`."""
    columns: Tensor = panels.transpose(0, 1).flatten(1)[:, :outputs]
    return columns
