"""What goes wrong in commands."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import click

# What unusable arguments, files and settings raise. Caught where these are read, not where a bug could raise them.
INPUT = (ValueError, TypeError, IndexError, NotImplementedError)


class Failure(click.ClickException):
    """One sentence for the user, exit code 2."""

    exit_code = 2


@contextmanager
def failing(*kinds: type[Exception]) -> Iterator[None]:
    """Turns errors of these kinds into failures."""
    try:
        yield
    except kinds as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:  # whoever read our output left: click knows
            raise
        raise Failure(_sentence(error)) from error


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return f"{where}: {error.strerror}" if where else error.strerror
    return str(error)
