"""`pygen info`."""

from __future__ import annotations

from pathlib import Path

import click

from .errors import INPUT, failing


@click.command(
    epilog="""\b
Examples:
  pygen info
  pygen info run          the model in the folder run: options, parameters, training
  pygen info run --json"""
)
@click.argument("checkpoint", required=False, metavar="[CKPT]", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def info(checkpoint: Path | None, as_json: bool) -> None:
    """What would run where, and why nothing better. With CKPT, a folder: what the model in it is."""
    from .. import info as report

    with failing(*INPUT):
        data = report.collect() if checkpoint is None else report.describe(checkpoint)
    if as_json:
        click.echo(report.to_json(data))
    else:
        report.show(data) if checkpoint is None else report.show_model(data)
