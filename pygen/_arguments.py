"""Checks of arguments that the package shares."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable


def check_integer(name: str, value: object, least: int, most: float = math.inf) -> None:
    """Raises TypeError unless value is an int (a bool is none), ValueError unless it is from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected {name} as an integer, got {value!r}")
    if not least <= value <= most:
        bounds = f">= {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"expected {name} {bounds}, got {value}")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raises ValueError unless value is one of the choices."""
    names = list(choices)
    if value not in names:
        raise ValueError(f"expected {name} as one of {', '.join(names)}, got {value!r}")


def check_number(
    name: str,
    value: float,
    least: float,
    most: float = sys.float_info.max,
    *,
    above: bool = False,
    below: bool = False,
) -> None:
    """Raises ValueError unless value is from `least` to `most`, above `least`, below `most`: a finite number by
    default."""
    if not ((least < value if above else least <= value) and (value < most if below else value <= most)):
        end = f" and {'<' if below else '<='} {most:g}" if most < sys.float_info.max else ""
        bounds = f"{'>' if above else '>='} {least:g}{end}"
        raise ValueError(f"expected {name} {bounds}, got {value}")
