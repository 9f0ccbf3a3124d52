"""The options of an op as one string, "name=value name=value", of those that differ from their defaults.

A schema stays short, a traced graph readable, and a call passes one argument where torch would convert sixteen, at a
fifth of a microsecond each. csrc/cpu/options.h reads the same form.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, TypeVar, cast

Own = TypeVar("Own", bound="Options")


@dataclass(frozen=True)
class Options:
    """Base of an op's options: fields of type str, bool, int or float, each with a default."""

    def __str__(self) -> str:
        words = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f"{field.name}={int(value) if isinstance(value, bool) else value}")
        return " ".join(words)

    @classmethod
    def parse(cls: type[Own], text: str) -> Own:
        """The inverse of str(); raises ValueError for anything else."""
        return cast(Own, _parse(cast(Any, cls), text))


@lru_cache(maxsize=1024)
def _parse(cls: type[Options], text: str) -> Options:
    kinds: dict[str, Any] = {field.name: type(field.default) for field in fields(cls)}
    values = {}
    for word in text.split():
        name, _, value = word.partition("=")
        if name not in kinds:
            raise ValueError(f"expected options among {', '.join(kinds)}, got {word!r}")
        values[name] = kinds[name](int(value) if kinds[name] is bool else value)
    return cls(**values)
