"""`pygen demo`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    epilog="""\b
Examples:
  pygen demo
  pygen demo realnvp --out pictures --no-bench"""
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="demo",
    show_default=True,
    help="Folder for the PNGs.",
)
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same result.")
@click.option("--steps", type=click.IntRange(min=1), help="Training steps of each model, instead of the section's own.")
@click.option("--bench/--no-bench", default=True, show_default=True, help="Finish with a quick benchmark of some ops.")
@click.pass_context
def demo(ctx: click.Context, names: tuple[str, ...], out: Path, seed: int, steps: int | None, bench: bool) -> None:
    """Train on handwritten digits and on points, draw what was learned.

    NAME: realnvp, nsf, frechet, pixelcnn, ddpm; default: all.
    """
    from .. import demo as sections
    from . import main

    unknown = set(names) - set(sections.SECTIONS)
    if unknown:
        raise click.BadParameter(f"expected {', '.join(sections.SECTIONS)}, got {', '.join(sorted(unknown))}", ctx)
    for name in names or sections.SECTIONS:
        sections.run(name, out=out, seed=seed, steps=steps)
    if bench:
        command = main.get_command(ctx, "bench")
        assert command is not None
        ctx.invoke(command, ops=("coupling", "masked_conv", "gates", "logistic_mixture"), quick=True)
