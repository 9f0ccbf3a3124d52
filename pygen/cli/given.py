"""What users give on the command line: settings, data."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..data import Dataset

_WORDS = {"none": None, "true": True, "false": False}


def pairs(option: str, texts: Sequence[str]) -> dict[str, Any] | None:
    """{name: value} of an option's texts, None if there are none.

    Values are numbers, none, true, false, text, or a list of numbers with commas between them.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ValueError(f"expected {option} NAME=VALUE, got {text}")
        found[name.replace("-", "_")] = _value(value)
    return found or None


def _value(text: str) -> int | float | str | bool | list[int] | list[float] | None:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            numbers = [kind(part) for part in text.split(",")]
            return numbers if "," in text else numbers[0]
    return text


def samples(spec: str, loading: Sequence[str], split: str = "test") -> Dataset:
    """The samples of a file or folder, in its order; of a source that has splits of its own, that split."""
    from .. import data

    options = pairs("--load", loading) or {}
    if "spec" in options:
        raise ValueError("expected options of the data's own in --load, got spec")
    if options.keys() & {"split", "held_out"}:
        return data.load(spec, **options)
    try:
        return data.load(spec, held_out=0, **options)
    except ValueError:  # there is nothing to divide, or something else is wrong, which is said now
        return data.load(spec, split=split, **options)
