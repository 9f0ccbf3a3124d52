"""`pygen train`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from .._extras import need
from ..training.options import PRECISIONS, SCHEDULES, Options
from .errors import INPUT, failing
from .given import pairs


def _default(name: str) -> str:
    return f"  [default: {getattr(Options, name)}]"


@click.command(
    epilog="""\b
Examples:
  pygen train realnvp --data digits --out run --steps 500
  pygen train realnvp --data digits --out run --resume      after Ctrl-C, a crash or a kill
  pygen train realnvp --data photos/ --load size=32 --out run --set hidden=96 --set scales=3
  pygen train gated-pixelcnn --data digits --out run --set layers=4 --set dilations=1,2
  pygen train ddpm --data digits --out run --set prediction=v_prediction --set weighting=min_snr
  pygen train realnvp-flat --data moons --out run --schedule constant --lr 1e-3
  pygen train nsf-flat --data table.npy --out run --set coupling=autoregressive --set bins=16
  pygen train maf --data digits --out run --set layers=8 --set hidden=256
  torchrun --nproc-per-node 2 -m pygen train realnvp --data digits --out run"""
)
@click.argument("model")
@click.option("--data", required=True, metavar="SPEC", help="Data: digits, a toy's name, a file or a folder.")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Continue the run in DIR to the same bits; begin one where there is none.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of the model; repeatable.")
@click.option("--load", "loading", multiple=True, metavar="NAME=VALUE", help="An option of the data; repeatable.")
@click.option("--steps", type=int, help="Training steps." + _default("steps"))
@click.option("--batch-size", type=int, help="Samples a step, of all processes." + _default("batch_size"))
@click.option("--lr", type=float, help="Highest learning rate." + _default("lr"))
@click.option("--schedule", type=click.Choice(SCHEDULES), help="Learning rate." + _default("schedule"))
@click.option("--warmup", type=int, help="Steps in which the learning rate rises.  [default: a tenth]")
@click.option("--clip", type=float, help="Largest norm of the gradient." + _default("clip"))
@click.option("--weight-decay", type=float, help="AdamW's." + _default("weight_decay"))
@click.option("--ema", type=float, help="Decay of the average of the weights." + _default("ema"))
@click.option("--precision", type=click.Choice(PRECISIONS), help="Of matrix products." + _default("precision"))
@click.option("--seed", type=int, help="Of weights, data order, dropout and noise." + _default("seed"))
@click.option("--every", type=int, help="Steps between checkpoints.  [default: a tenth, at most 1000]")
@click.option("--pictures", type=int, help="Samples drawn at a checkpoint; 0: none.  [default: 64, or 16 by pixels]")
@click.option("--device", metavar="D", help="cpu, cuda, cuda:N.  [default: a GPU if there is one]")
@click.pass_context
def train(
    ctx: click.Context,
    /,
    model: str,
    data: str,
    out: Path,
    resume: bool,
    settings: tuple[str, ...],
    loading: tuple[str, ...],
    every: int | None,
    pictures: int | None,
    device: str | None,
    **options: float | str | None,
) -> None:
    """Train MODEL and save it: realnvp, nsf (a spline flow), pixelcnn, gated-pixelcnn, pixelcnn++, ddpm of images;
    realnvp-flat of vectors; maf, iaf, nsf-flat of vectors or of images.

    DIR gets the model (config.json, weights-*.safetensors: for pygen sample and pygen.models.load), metrics.jsonl,
    curve.png, samples/, and training.safetensors, with which --resume goes on after any interruption.
    """
    from rich.console import Console

    from .. import ranks

    need("pygen train", "train", "safetensors", "matplotlib", "PIL")
    from ..training.batches import DataError
    from ..training.start import Request, start

    with ranks.group():
        console = Console(quiet=ranks.rank() > 0, soft_wrap=True)
        with failing(*INPUT, DataError):
            if every is not None and every < 1:
                raise ValueError(f"expected --every >= 1, got {every}")
            given = {name: value for name, value in options.items() if value is not None}
            if pictures is not None and pictures < 0:
                raise ValueError(f"expected --pictures >= 0, got {pictures}")
            request = Request(model, data, pairs("--set", settings), pairs("--load", loading), given, every, pictures)
            run = start(request, out, resume=resume, device=device, console=console)
        console.print(run.describe(), highlight=False, markup=False)
        with failing(FloatingPointError, DataError):
            done = run.train()
        if done:
            said = f"{out} holds the model: pygen sample {shlex.quote(str(out))} -n 64 --out samples.png"
        else:
            command = shlex.join(["train", model, "--data", data, "--out", str(out), "--resume"])
            program = "pygen" if ranks.world() == 1 else "torchrun [as before] -m pygen"
            said = f"Stopped and saved after {run.trainer.step} steps; go on with: {program} {command}"
        console.print(said, highlight=False, markup=False)
    if not done:
        ctx.exit(130)
