"""`pygen fid`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..metrics.inception import RESIZES
from .errors import INPUT, failing

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from ..metrics.features import Extractor
    from ..metrics.fid import FrechetSide
    from .extractors import Chosen
    from .sides import Source

RESIZE = "pytorch-fid"


@click.command(
    epilog="""\b
Examples:
  pygen fid photos/ samples/ --weights pt_inception-2015-12-05-6726825d.pth
  pygen fid --save-stats photos/ photos.npz
  pygen fid samples/ photos.npz --json
  pygen fid run digits               a model that pygen train made, and its data
  pygen fid run other                two models
  pygen fid digits:test digits       two splits of the data
  pygen fid a.npy b.npy --features
  torchrun --nproc-per-node 2 -m pygen fid run digits"""
)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--batch-size", type=click.IntRange(1), default=50, show_default=True, help="Images at once.")
@click.option("--num-workers", type=click.IntRange(1), help="Threads that read images.  [default: one a core, up to 8]")
@click.option("--device", metavar="D", help="cpu, cuda, cuda:N.  [default: a GPU if there is one]")
@click.option("--dims", type=click.Choice(("64", "192", "768", "2048")), help="Inception's layer.  [default: 2048]")
@click.option("--save-stats", is_flag=True, help="Write statistics of A to the file B, an .npz, and stop.")
@click.option(
    "--extractor",
    type=click.Choice(("auto", "inception", "classifier")),
    default="auto",
    help="Whose features; auto: a classifier's for models and labelled data, else Inception's.",
)
@click.option("--weights", metavar="PATH", help="Inception's: a file that pytorch-fid or torch-fidelity downloads.")
@click.option(
    "--resize",
    type=click.Choice(tuple(RESIZES)),
    default=RESIZE,
    show_default=True,
    help="Whose way to scale images for Inception.",
)
@click.option("--features", is_flag=True, help="A and B hold features: .npy, .npz, tables, points.")
@click.option("--samples", type=click.IntRange(2), default=10_000, show_default=True, help="To draw from a model.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of these samples.")
@click.option("--load", "loading", multiple=True, metavar="NAME=VALUE", help="An option of the data; repeatable.")
@click.option("--cache", type=click.Path(path_type=Path), help="Where classifiers are kept.  [default: ~/.cache/pygen]")
@click.option("--no-cache", is_flag=True, help="Train the classifier anew and keep nothing.")
@click.option(
    "--accurate", is_flag=True, help="Always sum singular values: slower; default: only where rounding asks for it."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, with torch-fidelity's key.")
def fid(
    a: str,
    b: str,
    batch_size: int,
    num_workers: int | None,
    device: str | None,
    dims: str | None,
    save_stats: bool,
    extractor: str,
    weights: str | None,
    resize: str,
    features: bool,
    samples: int,
    seed: int,
    loading: tuple[str, ...],
    cache: Path | None,
    no_cache: bool,
    accurate: bool,
    as_json: bool,
) -> None:
    """Print the Frechet distance between A and B.

    Each is a folder of images; statistics, as pytorch-fid writes them (.npz with mu and sigma); the folder of a model
    that pygen train made; or data, as pygen train takes it, of which :test or :train takes one split.

    The distance is FID, `FID:  12.3`, if the features are Inception's, whose weights nothing here downloads. Where a
    model or data meets labelled data, or a model trained on such data, auto takes a classifier instead, trained on the
    training split of that data in seconds and kept. Its distance is not FID and not called so; only distances by a
    classifier of the same data compare with each other.
    """
    from rich.console import Console

    from .. import ranks
    from ..data import Dataset
    from ..metrics.moments import save_statistics
    from . import extractors, outputs
    from .sides import ROWS, Reading, open_side

    with ranks.group():
        # Without emoji: rich takes "digits:train: 5" for a train.
        console = Console(stderr=True, quiet=ranks.rank() > 0, soft_wrap=True, highlight=False, emoji=False)
        with failing(*INPUT):
            ours = weights is not None or dims is not None or resize != RESIZE
            kind = _kind(features, extractor, ours, save_stats)
            if cache is not None and no_cache:
                raise ValueError("expected --cache or --no-cache, got both")
            if save_stats:
                if as_json or accurate:
                    raise ValueError("expected --save-stats without --json and --accurate: it prints no distance")
                if Path(b).suffix != ".npz":
                    raise ValueError(f"{b}: expected a name that ends in .npz, for statistics")
                outputs.check_place(Path(b))
            specs = [a] if save_stats else [a, b]
            where = ranks.local_device(device)
            how = Reading(kind, loading, samples, seed, where)
            sources = [open_side(spec, how) for spec in specs]
            found = None
            if kind == "classifier" or (kind == "auto" and all(isinstance(source, Dataset) for source in sources)):
                found = extractors.labelled(specs, sources, loading)
            if kind == "auto":
                kind = "classifier" if found else "inception"
            _check_used(kind, sources)
            if kind == "features":
                chosen = extractors.given()
            elif kind == "inception":
                chosen = extractors.inception(specs, sources, weights, int(dims) if dims else None, resize, where)
            else:
                chosen = extractors.trained(specs, found, cache, no_cache, where, console)

        with failing(ValueError):  # about samples, which are read now
            options = {
                "batch_size": max(batch_size, ROWS) if kind == "features" else batch_size,
                "workers": num_workers,
            }
            sides = [
                _side(spec, source, chosen.extractor, where, options, console)
                for spec, source in zip(specs, sources, strict=True)
            ]
            if save_stats:
                mu, sigma = sides[0].statistics()
                ranks.on_first(lambda: save_statistics(b, mu, sigma, count=sides[0].count))
                console.print(f"wrote {b}", markup=False)
                return
            one, two = sides
            if one.d != two.d:
                raise ValueError(f"expected one number of features, got {one.d} in {a} and {two.d} in {b}")
            distance = one.distance(two, accurate=accurate)
        if ranks.rank() == 0:
            click.echo(_result(chosen, distance, one.d) if as_json else f"{chosen.title}:  {distance}")


def _kind(features: bool, extractor: str, inception: bool, save_stats: bool) -> str:
    """Of extractor, by the options alone; auto: by what A and B are. inception: whether an option of it was given."""
    if features:
        if extractor != "auto" or inception:
            raise ValueError("expected --features without --extractor, --weights, --dims and --resize")
        return "features"
    if extractor == "classifier":
        if inception:
            raise ValueError("expected --weights, --dims and --resize without --extractor classifier, for Inception")
        if save_stats:
            raise ValueError("expected --save-stats without --extractor classifier, to which no other file compares")
    return "inception" if inception or save_stats else extractor


def _check_used(kind: str, sources: Sequence[Source]) -> None:
    """Raises ValueError for options about what is not there."""
    from ..data import Dataset
    from ..metrics.fid import FrechetSide
    from ..sampling import Samples

    network = kind == "inception" and not all(isinstance(source, FrechetSide) for source in sources)
    drawn = [isinstance(source, Samples) for source in sources]
    loaded = [isinstance(source, Dataset) and not isinstance(source, Samples) for source in sources]
    beside = {
        "loading": (any(loaded), "data, whose option it is"),
        **dict.fromkeys(("samples", "seed"), (any(drawn), "a model to draw from")),
        **dict.fromkeys(("weights", "resize"), (network, "images, for Inception")),
        **dict.fromkeys(("cache", "no_cache"), (kind == "classifier", "data that a classifier is trained on")),
    }
    context = click.get_current_context()
    for option in context.command.params:
        used, what = beside.get(str(option.name), (True, ""))
        if not used and context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE:
            raise ValueError(f"expected {option.opts[0]} together with {what}")


def _side(
    spec: str,
    source: Source,
    extractor: Extractor,
    device: torch.device,
    options: dict[str, Any],
    console: Console,
) -> FrechetSide:
    """The features of a source, with a bar, and what is to be said about their number."""
    from ..metrics.features import extract_features
    from ..metrics.fid import FrechetSide
    from ..progress import Progress
    from ..sampling import Samples, batch_of

    if isinstance(source, FrechetSide):
        side = source
    else:
        if isinstance(source, Samples):  # drawn in whole batches
            chunk = batch_of(source.model)
            options = {**options, "batch_size": -(-options["batch_size"] // chunk) * chunk}
        with Progress(console, spec, len(source), "samples") as progress:
            try:
                batches = extract_features(source, extractor, **options, advance=progress.advance)
                side = FrechetSide.from_features(batches, device=device)
            except ValueError as error:
                named = not str(error).startswith("expected ")  # by the file or folder in front of it
                raise ValueError(str(error) if named else f"{spec}: {error}") from error
    if side.count is not None and side.count < 2:
        raise ValueError(f"{spec}: expected at least 2 samples, got {side.count}")
    if side.count is not None and side.count <= side.d:
        few = f"{spec}: {side.count} samples of {side.d} features: with so few the distance is mostly bias and noise"
        console.print(few, markup=False)
    return side


def _result(chosen: Chosen, distance: float, d: int) -> str:
    return json.dumps({chosen.key: distance, **chosen.facts, **({"features": d} if chosen.facts else {})})
