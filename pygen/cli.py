"""The `pygen` command. Commands import what they need when they run."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from . import __version__

_ELSEWHERE = {"bench": "pygen.benchmarks.cli"}  # command: the module that holds it


class _Group(click.Group):
    """Also finds the commands that other modules hold, imported when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_ELSEWHERE})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _ELSEWHERE:
            return super().get_command(ctx, name)
        try:
            command: click.Command = getattr(importlib.import_module(_ELSEWHERE[name]), name)
        except ImportError as error:
            return _unavailable(name, str(error))
        return command


def _unavailable(name: str, why: str) -> click.Command:
    """Stands in for a command that cannot be imported: still listed, and says why when called."""

    @click.command(name, short_help=f"Not available: {why}", context_settings={"ignore_unknown_options": True})
    @click.argument("arguments", nargs=-1)
    def command(**_: object) -> None:
        raise click.ClickException(f"pygen {name} is not available: {why}")

    return command


@click.group(cls=_Group)
@click.version_option(__version__)
def main() -> None:
    """Custom kernels for deep generative models in PyTorch."""


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def info(as_json: bool) -> None:
    """What would run where, and why nothing better."""
    from . import info as report

    if as_json:
        click.echo(report.to_json())
    else:
        report.show()


@main.command()
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
@click.option("--bench/--no-bench", default=True, show_default=True, help="Finish with the quick benchmark table.")
@click.pass_context
def demo(ctx: click.Context, names: tuple[str, ...], out: Path, seed: int, steps: int | None, bench: bool) -> None:
    """Train on handwritten digits, draw what was learned. NAME: realnvp; default: all."""
    from . import demo as sections

    unknown = set(names) - set(sections.SECTIONS)
    if unknown:
        raise click.BadParameter(f"expected {', '.join(sections.SECTIONS)}, got {', '.join(sorted(unknown))}", ctx)
    try:
        for name in names or sections.SECTIONS:
            sections.run(name, out=out, seed=seed, steps=steps)
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    if bench:
        command = main.get_command(ctx, "bench")
        assert command is not None
        ctx.invoke(command, quick=True)
