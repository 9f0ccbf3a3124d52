"""The demo's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

_INK, _FAINT, _MARK, _PAPER = "#222222", "#5c5c5c", "#d1495b", "#ececec"


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
) -> None:
    """Draws grey images [rows, columns, H, W] of levels 0 .. levels - 1, enlarged without smoothing.

    rows, columns: their labels. real: columns that hold data, which are framed and set apart.
    """
    pixels = images.numpy()
    n_rows, n_columns = pixels.shape[:2]
    gap, left = 0.16, [0.0]
    for column in range(1, n_columns):
        left.append(left[-1] + 1 + gap + 0.3 * ((column in real) != (column - 1 in real)))
    width, height = left[-1] + 1, n_rows * (1 + gap) - gap
    figure, ax = _canvas(width, height, title, note, head=1.4 if columns else 1.1)
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
    figure.savefig(path, dpi=100)


def _canvas(width: float, height: float, title: str, note: str, head: float) -> tuple[Figure, Axes]:
    """Axes of width x height cells below a head, in inches, with a title and a note."""
    cell, side = 0.56, 0.6  # inches
    across, down = width * cell + 2 * side, height * cell + head + 0.3
    figure = Figure(figsize=(across, down), facecolor=_PAPER)
    figure.text(side / across, 1 - 0.38 / down, title, fontsize=17, color=_INK, va="center", weight="bold")
    figure.text(side / across, 1 - 0.72 / down, note, fontsize=12, color=_FAINT, va="center")
    ax = figure.add_axes((side / across, 0.3 / down, width * cell / across, height * cell / down))
    ax.set_frame_on(False)
    return figure, ax


def densities(
    path: Path, *, data: Tensor, log_density: Tensor, samples: Tensor, extent: float, title: str, note: str
) -> None:
    """Side by side: data [N, 2], log-density on a grid [G, G] over [-extent, extent]^2, samples [M, 2] of the model."""
    figure = Figure(figsize=(13.2, 5.3), facecolor=_PAPER)
    figure.text(0.02, 0.945, title, fontsize=17, color=_INK, va="center", weight="bold")
    figure.text(0.02, 0.885, note, fontsize=12, color=_FAINT, va="center")
    panels = [figure.add_axes((0.02 + 0.326 * i, 0.03, 0.308, 0.76)) for i in range(3)]
    box = (-extent, extent, -extent, extent)
    panels[1].imshow(log_density.exp().numpy(), cmap="magma", origin="lower", extent=box, interpolation="bilinear")
    for ax, points in ((panels[0], data), (panels[2], samples)):
        x, y = points.T.numpy()
        ax.scatter(x, y, s=2, color="#fb8861", alpha=0.6, linewidths=0)
    for ax, name in zip(panels, ("data", "learned density", "samples of the model"), strict=True):
        ax.set_facecolor("black")
        ax.set(xlim=box[:2], ylim=box[2:], xticks=[], yticks=[], aspect="equal")
        ax.set_title(name, fontsize=13, color=_INK)
    figure.savefig(path, dpi=100)
