"""Pictures, as PNG files: of samples, of densities, of how training went."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from . import files
from .data.dataset import full_range

_HELD_OUT = "held-out data, averaged weights"
_INK, _FAINT, _MARK, _PAPER = "#222222", "#5c5c5c", "#d1495b", "#ececec"


# --- plain ones ------------------------------------------------------------------------------------------------------


def samples(path: Path, x: Tensor, *, levels: int | None, columns: int | None = None) -> None:
    """Draws samples [N, ...]: images of 1 or 3 channels as tiles, points of the plane as points; see `drawable`.

    columns: tiles in a row; None: about as many as rows.
    """
    if x.dim() == 4 and levels is not None:
        _tiles(path, x, levels, columns or math.ceil(math.sqrt(len(x))))
    else:
        figure = Figure(figsize=(6, 6), facecolor=_PAPER, layout="constrained")
        ax = figure.add_subplot(aspect="equal", adjustable="datalim", facecolor="black")
        across, up = x.numpy().T
        ax.scatter(across, up, s=9000 / (len(x) + 1000), color="#fb8861", alpha=0.6, linewidths=0)
        ax.tick_params(colors=_FAINT)
        _save(figure, path)


def drawable(shape: Sequence[int], levels: int | None) -> bool:
    """Whether `samples` can draw samples of this shape."""
    return shape[0] in (1, 3) if len(shape) == 3 and levels is not None else tuple(shape) == (2,)


def _tiles(path: Path, images: Tensor, levels: int, columns: int) -> None:
    """Images [N, C, H, W] row by row, the highest level white, enlarged without smoothing where they are small."""
    n, channels, height, width = images.shape
    rows = math.ceil(n / columns)
    zoom = max(1, min(64 // max(height, width), 2048 // max(columns * width, rows * height)))
    gap = max(1, zoom // 2)
    pixels = full_range(images, levels).numpy()
    pixels = pixels.transpose(0, 2, 3, 1).repeat(zoom, 1).repeat(zoom, 2)  # [N, H zoom, W zoom, C]
    down, across = height * zoom + gap, width * zoom + gap
    sheet = np.full((rows * down + gap, columns * across + gap, channels), 96, np.uint8)
    for i, image in enumerate(pixels):
        top, left = gap + i // columns * down, gap + i % columns * across
        sheet[top : top + height * zoom, left : left + width * zoom] = image
    file = io.BytesIO()
    Image.fromarray(sheet.squeeze(2) if channels == 1 else sheet).save(file, "PNG")
    files.write(path, file.getvalue())


def curve(
    path: Path,
    *,
    title: str,
    steps: Sequence[int],
    training: Sequence[float],
    held_out: Sequence[tuple[int, float]],
    one_unit: bool = True,
) -> None:
    """What is minimised over steps, of the batches, faint and smoothed; and the average's bits/dim of held-out data.

    one_unit: what is minimised are bits/dim too; otherwise it has an axis of its own, on the left.
    """
    figure = Figure(figsize=(8, 4.5), facecolor=_PAPER, layout="constrained")
    ax = figure.add_subplot(facecolor=_PAPER)
    ax.plot(steps, training, color=_FAINT, alpha=0.35, linewidth=1)
    ax.plot(steps, _smooth(training), color=_FAINT, linewidth=2, label="training batches, smoothed")
    ax.grid(color="white", linewidth=1.2)
    axes = [ax]
    if not one_unit and held_out:
        axes.append(ax.twinx())
        axes[1].set_ylabel("bits/dim", color=_MARK)
    if held_out:
        axes[-1].plot(*zip(*held_out, strict=True), "o-", color=_MARK, linewidth=2, label=_HELD_OUT)
        axes[-1].annotate(
            f"{held_out[-1][1]:.3f}", held_out[-1], xytext=(-4, 10), textcoords="offset points", ha="right",
            color=_MARK, fontsize=12, weight="bold",
        )  # fmt: skip
    # The first steps are far off: the scale is that of what follows, down to the lowest value.
    late, bits = training[len(training) // 10 :], [b for _, b in held_out]
    for each, values in zip(axes, [[*late, *bits]] if len(axes) == 1 else [late, bits], strict=True):
        rest = [value for value in values if math.isfinite(value)]
        if rest:
            low, high = min(rest), max(rest)
            each.set_ylim(low - 0.08 * (high - low or 1), high + 0.08 * (high - low or 1))
        each.set_axisbelow(True)
        each.tick_params(length=0, labelcolor=_INK)
        for side in each.spines.values():
            side.set_visible(False)
    ax.set_title(title, loc="left", fontsize=15, color=_INK, weight="bold")
    ax.set_xlabel("step", color=_INK)
    ax.set_ylabel("bits/dim" if one_unit else "loss", color=_INK)
    lines = [line for each in axes for line in each.get_legend_handles_labels()[0]]
    axes[-1].legend(handles=lines, frameon=False, labelcolor=_INK, loc="upper right")
    _save(figure, path)


def _smooth(values: Sequence[float]) -> np.ndarray:
    """Means of values and their neighbours, of a twentieth of all."""
    reach = len(values) // 40
    total = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    means: np.ndarray = (total[high] - total[low]) / (high - low)
    return means


def _save(figure: Figure, path: Path) -> None:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    files.write(path, file.getvalue())


# --- those with a title -----------------------------------------------------------------------------------------------


def image_grid(
    path: Path,
    images: Tensor,
    *,
    levels: int,
    title: str,
    note: str,
    rows: Sequence[str],
    columns: Sequence[str] | None = None,
    real: Sequence[int] = (),
    apart: int | None = None,
    cell: float = 0.56,
) -> None:
    """Draws grey images [rows, columns, H, W] of levels 0 .. levels - 1, enlarged without smoothing.

    rows, columns: their labels. real: columns that hold data, which are framed and set apart. apart: so many columns
    are a group, and groups are set apart. cell: inches of an image.
    """
    pixels = images.numpy()
    n_rows, n_columns = pixels.shape[:2]
    gap, left = 0.16, [0.0]
    for column in range(1, n_columns):
        ends = (column in real) != (column - 1 in real) or (apart is not None and column % apart == 0)
        left.append(left[-1] + 1 + gap + 0.3 * ends)
    width, height = left[-1] + 1, n_rows * (1 + gap) - gap
    side = max(0.6, 0.2 + 0.11 * max(map(len, rows)))  # room for the labels
    figure, ax = _canvas(width, height, title, note, head=1.4 if columns else 1.1, cell=cell, side=side)
    for row in range(n_rows):
        top = row * (1 + gap)
        for column in range(n_columns):
            extent = (left[column], left[column] + 1, top + 1, top)
            ax.imshow(
                pixels[row, column], cmap="gray_r", vmin=0, vmax=levels - 1, interpolation="nearest", extent=extent
            )
            if column in real:
                ax.add_patch(Rectangle((left[column], top), 1, 1, fill=False, edgecolor=_MARK, linewidth=2.5))
    ax.set_xlim(-0.1, width + 0.1)
    ax.set_ylim(height + 0.1, -0.1)
    ax.set_yticks([row * (1 + gap) + 0.5 for row in range(n_rows)], rows)
    ax.set_xticks([x + 0.5 for x in left] if columns else [], columns or [])
    ax.tick_params(length=0, labelsize=13, labelcolor=_INK, labeltop=True, labelbottom=False)
    _save(figure, path)


def _canvas(
    width: float, height: float, title: str, note: str, head: float, cell: float, side: float
) -> tuple[Figure, Axes]:
    """Axes of width x height cells below a head, with a title and a note; all in inches."""
    across, down = width * cell + 2 * side, height * cell + head + 0.3
    figure = Figure(figsize=(across, down), facecolor=_PAPER)
    figure.text(side / across, 1 - 0.38 / down, title, fontsize=17, color=_INK, va="center", weight="bold")
    figure.text(side / across, 1 - 0.72 / down, note, fontsize=12, color=_FAINT, va="center")
    ax = figure.add_axes((side / across, 0.3 / down, width * cell / across, height * cell / down))
    ax.set_frame_on(False)
    return figure, ax


def lines(
    path: Path,
    rows: Mapping[str, Sequence[tuple[float, float]]],
    *,
    across: str,
    up: str,
    level: tuple[str, float],
    title: str,
    note: str,
) -> None:
    """Draws named rows of points as lines, on logarithmic axes, and a level to compare them with."""
    figure = Figure(figsize=(9.2, 5.4), facecolor=_PAPER)
    figure.text(0.1, 0.94, title, fontsize=17, color=_INK, va="center", weight="bold")
    figure.text(0.1, 0.88, note, fontsize=12, color=_FAINT, va="center")
    ax = figure.add_axes((0.1, 0.13, 0.66, 0.7), facecolor=_PAPER)
    ends = []
    for (name, points), colour in zip(rows.items(), (_FAINT, "#00798c", _MARK), strict=True):
        ax.plot(*zip(*points, strict=True), "o-", color=colour, linewidth=2)
        ends.append((points[-1][1], name, colour))
    ax.axhline(level[1], color=_INK, linewidth=1.2, linestyle=":")
    ends.append((level[1], level[0], _INK))
    ax.set(xscale="log", yscale="log")
    marks = sorted({x for points in rows.values() for x, _ in points})
    ax.set_xticks(marks, [f"{x:g}" for x in marks])
    ax.minorticks_off()
    low, high = ax.get_ylim()
    heights = [h for h in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 50, 100) if low <= h <= high]
    ax.set_yticks(heights, [f"{h:g}" for h in heights])
    place = 0.0  # names stand one above the other where their lines end together
    for value, name, colour in sorted(ends):
        place = max(place + 0.05, math.log(value / low) / math.log(high / low))
        ax.text(1.02, place, name, transform=ax.transAxes, color=colour, fontsize=12, va="center")
    ax.set_xlabel(across, color=_INK, fontsize=12)
    ax.set_ylabel(up, color=_INK, fontsize=12)
    ax.grid(color="white", linewidth=1.2)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelcolor=_INK)
    for side in ax.spines.values():
        side.set_visible(False)
    _save(figure, path)


def densities(
    path: Path,
    *,
    data: Tensor,
    log_density: Tensor,
    samples: Tensor,
    box: tuple[float, float, float, float],
    title: str,
    note: str,
) -> None:
    """Side by side: data [N, 2], log-density on a grid [G, G] over a box, samples [M, 2] of the model.

    box: (left, right, bottom, top); the grid's rows go up.
    """
    figure = Figure(figsize=(13.2, 5.3), facecolor=_PAPER)
    figure.text(0.02, 0.945, title, fontsize=17, color=_INK, va="center", weight="bold")
    figure.text(0.02, 0.885, note, fontsize=12, color=_FAINT, va="center")
    panels = [figure.add_axes((0.02 + 0.326 * i, 0.03, 0.308, 0.76)) for i in range(3)]
    panels[1].imshow(
        log_density.exp().numpy(), cmap="magma", origin="lower", extent=box, interpolation="bilinear", aspect="auto"
    )
    for ax, points in ((panels[0], data), (panels[2], samples)):
        x, y = points.T.numpy()
        ax.scatter(x, y, s=2, color="#fb8861", alpha=0.6, linewidths=0)
    for ax, name in zip(panels, ("data", "learned density", "samples of the model"), strict=True):
        ax.set_facecolor("black")
        ax.set(xlim=box[:2], ylim=box[2:], xticks=[], yticks=[])
        ax.set_title(name, fontsize=13, color=_INK)
    _save(figure, path)
