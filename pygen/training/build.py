"""A model for a data set, from its name and settings in words."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any

from ..data import Dataset
from ..models import MODELS, Model

_KINDS = {int: "an integer", float: "a number", bool: "true or false", type(None): "none"}


def build(name: str, data: Dataset, settings: Mapping[str, Any]) -> Model:
    """The model `name` for samples like those of the data.

    settings: arguments of its constructor. Shape, levels and classes are the data's; num_classes=None makes a model
    without labels.
    """
    if name not in MODELS:
        *most, last = MODELS
        raise ValueError(f"expected a model: {', '.join(most)} or {last}; got {name!r}")
    cls = MODELS[name]
    parameters = inspect.signature(cls).parameters
    levels = parameters.get("levels")
    if levels is None or levels.default is not None:  # not one that takes both, with levels=None for real numbers
        takes = "integer levels" if levels else "vectors of real numbers"
        if bool(levels) != (data.levels is not None) or ("features" in parameters and len(data.shape) != 1):
            raise ValueError(f"{name} models {takes}; the data is {data}")
    classes = None if data.classes is None else len(data.classes)
    given = {"shape": data.shape, "levels": data.levels, "features": data.shape[0], "num_classes": classes}
    arguments: dict[str, Any] = {key: value for key, value in given.items() if key in parameters}
    hints = typing.get_type_hints(cls.__init__)
    known = [
        key
        for key, p in parameters.items()
        if p.kind is p.KEYWORD_ONLY and key not in ("context_features", "spatial_context")
    ]
    for key, value in settings.items():
        if key not in known:
            raise ValueError(f"{name} has no setting {key!r}: expected {', '.join(known)}")
        arguments[key] = _checked(key, value, hints[key])
    if arguments["num_classes"] not in (None, classes):
        raise ValueError(f"expected num_classes={classes} or none, as the data has, got {arguments['num_classes']}")
    return cls(**arguments)


def _checked(key: str, value: Any, hint: Any) -> Any:
    """The value, once it is of the type that it should be."""
    if typing.get_origin(hint) is tuple:  # one number or several
        values = value if isinstance(value, list) else [value]
        return tuple(_checked(key, each, typing.get_args(hint)[0]) for each in values)
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(value) in kinds:
        return value
    if type(value) is int and float in kinds:
        return float(value)
    names = " or ".join(_KINDS.get(kind, kind.__name__) for kind in kinds)
    raise ValueError(f"expected {key} as {names}, got {value!r}")
