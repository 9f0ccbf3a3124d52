"""Whose features `pygen fid` compares: Inception's, a classifier's, or those that are given."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .. import data
from ..metrics import classifier
from ..metrics.features import Extractor
from ..metrics.fid import FrechetSide
from ..metrics.inception import TAPS, Inception
from ..models import checkpoint
from ..progress import Progress
from ..sampling import Samples
from .errors import INPUT
from .given import pairs
from .sides import Source, split_of

Labelled = tuple[str, data.Dataset, data.Dataset]  # name, train, test


@dataclass(frozen=True)
class Chosen:
    """An extractor, what its distance is called in a line, and what in JSON beside the distance."""

    extractor: Extractor
    title: str
    key: str = "frechet_distance"
    facts: dict[str, Any] = field(default_factory=dict)


def given() -> Chosen:
    return Chosen(lambda x: x, "FD (given features)", facts={"extractor": "given features"})


def labelled(specs: Sequence[str], sources: Sequence[Source], loading: Sequence[str]) -> Labelled | None:
    """The last source with labels; where there is none, the data with labels that the last model was trained on."""
    both = list(zip(reversed(specs), reversed(sources), strict=True))
    for spec, source in both:
        if isinstance(source, data.Dataset) and source.classes is not None:
            return _splits(split_of(spec)[0], pairs("--load", loading) or {})
    for spec, source in both:
        if isinstance(source, Samples):
            training = checkpoint.read_config(Path(spec).expanduser()).get("training") or {}
            with suppress(OSError, ImportError, LookupError, *INPUT):  # not by `pygen train`, or its data are elsewhere
                found = _splits(training["data"], training["loading"])
                if found[1].classes is not None:
                    return found
    return None


def _splits(name: str, options: dict[str, Any]) -> Labelled:
    train, test = (data.load(name, **{**options, "split": split}) for split in ("train", "test"))
    return name, train, test


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
            hint = "; pygen fid takes it by --weights, and needs none to compare with labelled data"
            raise FileNotFoundError(str(error) if weights else f"{error}{hint}") from None
    for spec, source in zip(specs, sources, strict=True):
        if isinstance(source, FrechetSide) and dims not in (None, source.d):
            raise ValueError(f"{spec}: expected statistics of {dims} features (--dims), got {source.d}")
    if any(isinstance(source, FrechetSide) and source.d not in TAPS for source in sources):  # nothing of Inception's
        return Chosen(extractor, "FD (given statistics)", facts={"extractor": "given statistics"})
    return Chosen(extractor, "FID", "frechet_inception_distance")


def trained(
    specs: Sequence[str],
    found: Labelled | None,
    cache: Path | None,
    no_cache: bool,
    device: torch.device,
    console: Console,
) -> Chosen:
    """A classifier of what `labelled` found. cache: None is the user's, without which it goes on if it has to."""
    if found is None:
        raise ValueError(
            f"expected labels in {' or '.join(dict.fromkeys(specs))}, to train a classifier on, got none: give "
            "--extractor inception and --weights, or --features for samples that are compared as they are"
        )
    name, train, test = found
    folder = None if no_cache else cache or classifier.cache_folder()
    with ExitStack() as stack:
        bars: list[Progress] = []  # one, if anything is to be done

        def advance(count: int, figure: str) -> None:
            if not bars:
                bars.append(stack.enter_context(Progress(console, f"classifier of {name}", classifier.STEPS, "steps")))
            bars[0].advance(count, figure)

        try:
            model, accuracy = classifier.cached_classifier(train, test, folder, advance=advance)
        except OSError as error:
            if cache is not None or no_cache:
                raise
            console.print(f"{folder}: {error.strerror}: the classifier is not kept", markup=False)
            model, accuracy = classifier.cached_classifier(train, test, None, advance=advance)
    kept = "" if bars else ", kept from before"
    right = f"{accuracy:.1%} of {len(test)} held-out samples right"
    console.print(f"classifier trained on {name}{kept}: {right}", markup=False)
    title = f"FD (classifier trained on {name}, {classifier.FEATURES} features)"
    return Chosen(
        model.to(device), title, facts={"extractor": f"classifier trained on {name}", "held_out_accuracy": accuracy}
    )
