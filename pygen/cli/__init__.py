"""The `pygen` command. Each command has a module of its own, and imports what it needs when it runs."""

from __future__ import annotations

import importlib

import click

from .. import __version__
from .errors import Failure, failing

# Command: the module that holds it.
_COMMANDS = {
    "bench": "pygen.benchmarks.cli",
    "demo": "pygen.cli.demo",
    "fid": "pygen.cli.fid",
    "info": "pygen.cli.info",
    "interpolate": "pygen.cli.interpolate",
    "sample": "pygen.cli.sample",
    "train": "pygen.cli.train",
}


class _Group(click.Group):
    """Finds commands in their modules. What a user can mend is one sentence and exit code 2, no traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        try:
            command: click.Command = getattr(importlib.import_module(_COMMANDS[name]), name)
        except ImportError as error:
            return _unavailable(name, str(error))
        return command

    def invoke(self, ctx: click.Context) -> object:
        with failing(OSError, ImportError):
            return super().invoke(ctx)


def _unavailable(name: str, why: str) -> click.Command:
    """Stands in for a command that cannot be imported: still listed, and says why when called."""

    @click.command(name, short_help=f"Not available: {why}", context_settings={"ignore_unknown_options": True})
    @click.argument("arguments", nargs=-1)
    def command(**_: object) -> None:
        raise Failure(f"pygen {name} is not available: {why}")

    return command


@click.group(cls=_Group)
@click.version_option(__version__)
def main() -> None:
    """Custom kernels for deep generative models in PyTorch."""
