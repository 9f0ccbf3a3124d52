"""Checks that constructors share."""

from __future__ import annotations


def check_integer(name: str, value: object, least: int) -> None:
    """Raises TypeError unless value is an int (a bool is none), ValueError unless it is at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected {name} as an integer, got {value!r}")
    if value < least:
        raise ValueError(f"expected {name} >= {least}, got {value}")
