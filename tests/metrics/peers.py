"""The peers' own code, as `make test` installs it, without torchvision, which they import and which is not there."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pygen.metrics.inception import parameters

FOLDER = Path(sys.prefix, "peers")  # where the Makefile puts what tests/peers.txt lists


@cache
def state() -> dict[str, Tensor]:
    """Random parameters of Inception with which activations neither grow nor fade from layer to layer."""
    generator = torch.Generator().manual_seed(0)
    values = {}
    for name, shape in parameters().items():
        x = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            values[name] = x * (2 / shape[1:].numel()) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            values[name] = 0.8 + 0.2 * x.abs()
        else:
            values[name] = 0.05 * x
    return values


@cache
def torch_fidelity_network(*taps: str) -> nn.Module:
    """torch-fidelity's network with the parameters `state()`."""
    with _importable("torch_fidelity"):
        inception = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        return _made(inception, lambda: inception.FeatureExtractorInceptionV3("inception", list(taps)))


@cache
def torchmetrics_network(antialias: bool) -> nn.Module:
    """The network of torchmetrics' FrechetInceptionDistance, all of whose taps but one are torch-fidelity's."""
    pytest.importorskip("torchmetrics.image.fid")  # before the patches: it stays as it is for others
    with _importable("torch_fidelity"), mock.patch("torchmetrics.utilities.imports._TORCH_FIDELITY_AVAILABLE", True):
        fid = _file("torchmetrics.image.fid", Path(importlib.util.find_spec("torchmetrics.image.fid").origin))
        inception = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        return _made(inception, lambda: fid.NoTrainInceptionV3("inception", ["768"], antialias=antialias))


@cache
def pytorch_fid_network(**options: bool) -> nn.Module:
    """pytorch-fid's network, all of its outputs. Where it has torchvision's unchanged blocks, torch-fidelity's."""
    return _made(pytorch_fid().inception, lambda: pytorch_fid().inception.InceptionV3([0, 1, 2, 3], **options).eval())


@cache
def pytorch_fid() -> ModuleType:
    """pytorch-fid: its modules fid_score and inception."""
    with _importable("torch_fidelity", "pytorch_fid"):
        blocks = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")

        def inception_v3(**_: Any) -> nn.Module:
            return _made(blocks, lambda: blocks.FeatureExtractorInceptionV3("inception", ["2048"]))

        vision, models, transforms = (ModuleType(f"torchvision{of}") for of in ("", ".models", ".transforms"))
        vision.__version__, vision.models, vision.transforms = "0.25", models, transforms
        transforms.ToTensor = lambda: lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        models.inception_v3, models.inception = inception_v3, ModuleType("torchvision.models.inception")
        for theirs, name in (("InceptionA",) * 2, ("InceptionC",) * 2, ("InceptionE_1", "InceptionE")):
            setattr(models.inception, name, getattr(blocks, theirs))
        sys.modules.update({module.__name__: module for module in (vision, models, transforms)})
        importlib.import_module("pytorch_fid.fid_score")
        return sys.modules["pytorch_fid"]


@cache
def clean_fid() -> ModuleType:
    """clean-fid's module of resizers."""
    with _importable("cleanfid"):
        return importlib.import_module("cleanfid.resize")


def torch_fidelity_resize() -> Any:
    with _importable("torch_fidelity"):
        module = importlib.import_module("torch_fidelity.interpolate_compat_tensorflow")
        return module.interpolate_bilinear_2d_like_tensorflow1x


def _made(module: ModuleType, make: Any) -> nn.Module:
    """make(), with `state()` where the module of a peer would download weights."""
    with mock.patch.object(module, "load_state_dict_from_url", return_value=state()):
        return make()


def _file(name: str, path: Path) -> ModuleType:
    """A second copy of a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _importable(*packages: str) -> Iterator[None]:
    """Meanwhile, modules of the packages in `FOLDER` can be imported, without what the packages themselves import."""

    def theirs() -> dict[str, ModuleType]:
        return {name: sys.modules[name] for name in sys.modules if name.partition(".")[0] in (*packages, "torchvision")}

    before = theirs()
    for name in before:
        del sys.modules[name]
    try:
        for name in packages:
            if not (FOLDER / name).is_dir():
                pytest.skip(f"{name} is not in {FOLDER}, where `make test` installs it")
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__path__ = [str(FOLDER / name)]
        yield
    finally:
        for name in theirs():
            del sys.modules[name]
        sys.modules.update(before)
