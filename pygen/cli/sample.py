"""`pygen sample`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .._extras import need
from .errors import INPUT, failing
from .given import samples

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Dataset
    from ..models import Model

MOST = 10**9  # samples, whose labels and then the samples themselves have to fit into memory


@click.command(
    epilog="""\b
Examples:
  pygen sample run -n 64 --out samples.png
  pygen sample run -n 50000 --seed 1 --out samples.npz
  pygen sample run -n 16 --class 3 --temperature 0.8 --out threes.png
  pygen sample run -n 16 --top-p 0.95 --out likely.png
  pygen sample run -n 64 --sampler dpmpp-2m --steps 20 --guidance 3 --out samples.png
  pygen sample run -n 64 --complete images.npz --known mask.png --out completed.png
  torchrun --nproc-per-node 2 -m pygen sample run -n 50000 --out samples.npz"""
)
@click.argument("checkpoint", metavar="CKPT", type=click.Path(path_type=Path))
@click.option("-n", "count", type=click.IntRange(1, MOST), default=64, show_default=True, help="How many samples.")
@click.option("--class", "label", type=int, metavar="K", help="Label of all samples; by default labels are drawn.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Below 1: likelier, less varied.")
@click.option("--top-k", type=click.IntRange(0), metavar="K", help="Draw from the K likeliest levels only.")
@click.option("--top-p", type=float, metavar="P", help="Draw from the likeliest levels that make up P only.")
@click.option("--sampler", metavar="NAME", help="Of diffusion models: ddim, heun, ...  [default: dpmpp-2m]")
@click.option("--steps", type=click.IntRange(1), help="Of that sampler.  [default: 20; to complete: 50]")
@click.option("--guidance", type=float, metavar="S", help="Above 1: more like its label, less varied.  [default: 1]")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed: the same samples.")
@click.option("--complete", "images", metavar="SPEC", help="Data to complete, as for pygen train; the first ones.")
@click.option("--load", "loading", multiple=True, metavar="NAME=VALUE", help="An option of that data; repeatable.")
@click.option("--known", type=click.Path(path_type=Path), help="What to keep: white in a .png, nonzero in an .npy.")
@click.option("--out", type=click.Path(path_type=Path), default="samples.png", show_default=True, help=".png or .npz.")
@click.option("--device", metavar="D", help="cpu, cuda, cuda:N.  [default: a GPU if there is one]")
def sample(
    checkpoint: Path,
    count: int,
    label: int | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    sampler: str | None,
    steps: int | None,
    guidance: float | None,
    seed: int,
    images: str | None,
    loading: tuple[str, ...],
    known: Path | None,
    out: Path,
    device: str | None,
) -> None:
    """Draw samples from the model in the folder CKPT: a PNG of images (or points), or an .npz of anything.

    Sample i depends on the model, the seed, i and the label alone: with a larger -n, or with several processes
    (torchrun), the first samples are the same, to the bit with the same number of threads in each process.
    """
    import torch
    from rich.console import Console

    from .. import models, ranks, sampling
    from ..progress import Progress
    from . import outputs

    with ranks.group():
        console = Console(quiet=ranks.rank() > 0)
        with failing(*INPUT):
            model = models.load(checkpoint, device=ranks.local_device(device))
            outputs.check(out, model)
            y = None
            if label is not None:
                if model.num_classes is None:
                    raise ValueError("expected no --class: the model has no labels")
                if not 0 <= label < model.num_classes:
                    raise ValueError(f"expected labels in [0, {model.num_classes}), got {label}")
                y = torch.full((count,), label, device=next(model.parameters()).device)
            elif model.num_classes is not None:
                y = model.draw_labels(count, generator=seed)
            model.condition.check(count, y, None)
            filters = {name: value for name, value in (("top_k", top_k), ("top_p", top_p)) if value is not None}
            if filters and not isinstance(model, models.Autoregressive):
                raise ValueError("expected no --top-k and --top-p: the model draws no levels")
            diffusion: dict[str, Any] = {
                name: value
                for name, value in (("sampler", sampler), ("steps", steps), ("guidance", guidance))
                if value is not None
            }
            if diffusion and not isinstance(model, models.DDPM):
                raise ValueError(f"expected no --{next(iter(diffusion))}: the model is no diffusion model")
            if sampler is not None and images is not None:
                raise ValueError("expected no --sampler with --complete: diffusion models complete by RePaint")
            if (images is None) != (known is None):
                raise ValueError("expected --complete and --known together: images, and what is known of them")
            if loading and images is None:
                raise ValueError("expected --load together with --complete, whose option it is")
            given = None if images is None or known is None else _to_complete(model, images, loading, known)
            if given is not None and label is None and model.num_classes is not None:
                _, *labels = given[0].batch(torch.arange(min(count, len(given[0]))))
                if labels and len(given[0].classes or ()) == model.num_classes:  # those of the images
                    y = labels[0][torch.arange(count) % len(labels[0])].to(next(model.parameters()).device)

        def draw(first: int, number: int, **options: Any) -> Tensor:
            labels = None if y is None else y[first : first + number]
            options |= {"generator": seed, "first_sample": first, "temperature": temperature, **filters}
            if given is None:
                return model.sample(number, labels, **options, **diffusion)
            data, mask = given
            (x, *_) = data.batch(torch.arange(first, first + number) % len(data))
            return model.complete(x.to(mask.device), mask, labels, **options, **diffusion)

        with failing(*INPUT), Progress(console, f"{type(model).__name__}, {checkpoint}", count, "samples") as progress:
            x = sampling.in_batches(model, count, draw, progress.advance)
        if x is not None:
            outputs.write(out, model, x, y)
            console.print(f"wrote {out}", highlight=False, markup=False, soft_wrap=True)


def _to_complete(model: Model, spec: str, loading: Sequence[str], mask: Path) -> tuple[Dataset, Tensor]:
    """The data to complete, and what is known of each: a mask of a sample's shape, or of all channels alike."""
    images = samples(spec, loading)
    if images.shape != model.shape or images.levels != model.levels:
        raise ValueError(
            f"{spec}: expected samples as the model's, {list(model.shape)}, levels {model.levels}; got {images}"
        )
    return images, _mask(mask, model.shape).to(next(model.parameters()).device)


def _mask(path: Path, shape: tuple[int, ...]) -> Tensor:
    import torch

    from ..data._pictures import decode
    from ..data.arrays import read_npy

    if path.suffix == ".npy":
        mask = read_npy(path)
    elif path.suffix == ".png":
        need("a mask from a picture", "train", "PIL")
        mask = decode(str(path), 1, None, None)[0] > 127
    else:
        raise ValueError(f"{path}: expected a mask as .npy or .png")
    if mask.shape not in (shape, shape[1:]):
        raise ValueError(f"{path}: expected a mask of shape {shape[1:]} or {shape}, got {mask.shape}")
    if mask.dtype.kind not in "biuf":
        raise ValueError(f"{path}: expected a mask of numbers or truth values, got {mask.dtype}")
    return torch.from_numpy(mask != 0)
