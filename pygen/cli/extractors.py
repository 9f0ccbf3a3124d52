"""Whose features `pygen fid` compares: Inception's, a classifier's, or those that are given."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .. import data
from ..metrics import classifier
from ..metrics.features import Extractor
from ..metrics.fid import FrechetSide
from ..metrics.inception import Inception
from ..progress import Progress
from .given import pairs
from .sides import Source, split_of


@dataclass(frozen=True)
class Chosen:
    """An extractor, what its distance is called in a line, and what in JSON beside the distance."""

    extractor: Extractor
    title: str
    key: str = "frechet_distance"
    facts: dict[str, Any] = field(default_factory=dict)


def given() -> Chosen:
    return Chosen(lambda x: x, "FD (given features)", facts={"extractor": "given features"})


def automatic(sources: Sequence[Source]) -> str:
    """A classifier where labelled data meets other data or a model's samples; Inception for files and statistics."""
    labelled = any(isinstance(source, data.Dataset) and source.classes for source in sources)
    return "classifier" if labelled and all(isinstance(source, data.Dataset) for source in sources) else "inception"


def inception(
    specs: Sequence[str],
    sources: Sequence[Source],
    weights: str | None,
    dims: int | None,
    resize: str,
    device: torch.device,
) -> Chosen:
    """dims: None takes 2048, and whatever statistics have where no network is asked."""
    extractor: Extractor = Inception
    if not all(isinstance(source, FrechetSide) for source in sources):
        dims = dims or 2048
        try:
            extractor = Inception(weights, taps=dims, resize=resize).to(device)
        except FileNotFoundError as error:
            raise FileNotFoundError(str(error) if weights else f"{error}; pygen fid takes it by --weights") from None
    for spec, source in zip(specs, sources, strict=True):
        if isinstance(source, FrechetSide) and dims not in (None, source.d):
            raise ValueError(f"{spec}: expected statistics of {dims} features (--dims), got {source.d}")
    return Chosen(extractor, "FID", "frechet_inception_distance")


def trained(
    specs: Sequence[str],
    sources: Sequence[Source],
    loading: Sequence[str],
    cache: Path | None,
    device: torch.device,
    console: Console,
) -> Chosen:
    """A classifier of the last source that has labels, trained on its training split. cache: None keeps nothing."""
    name, train, test = _labelled(specs, sources, loading)
    with ExitStack() as stack:
        bars: list[Progress] = []  # one, if anything is to be done

        def advance(count: int, figure: str) -> None:
            if not bars:
                bars.append(stack.enter_context(Progress(console, f"classifier of {name}", classifier.STEPS, "steps")))
            bars[0].advance(count, figure)

        model, accuracy = classifier.cached_classifier(train, test, cache, advance=advance)
    console.print(f"classifier trained on {name}: {accuracy:.1%} of {len(test)} held-out samples right", markup=False)
    title = f"FD (classifier trained on {name}, {classifier.FEATURES} features)"
    return Chosen(
        model.to(device), title, facts={"extractor": f"classifier trained on {name}", "held_out_accuracy": accuracy}
    )


def _labelled(
    specs: Sequence[str], sources: Sequence[Source], loading: Sequence[str]
) -> tuple[str, data.Dataset, data.Dataset]:
    """The name and both splits of the last source with labels."""
    for spec, source in zip(reversed(specs), reversed(sources), strict=True):
        if isinstance(source, data.Dataset) and source.classes is not None:
            name, _ = split_of(spec)
            options = pairs("--load", loading) or {}
            train, test = (data.load(name, **{**options, "split": split}) for split in ("train", "test"))
            return name, train, test
    raise ValueError(
        f"expected labels in {' or '.join(dict.fromkeys(specs))}, to train a classifier on, got none: give "
        "--extractor inception and --weights, or --features for samples that are compared as they are"
    )
