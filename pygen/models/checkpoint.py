"""Model checkpoints: a folder with `config.json` and the safetensors file of weights that it names.

Weights are named after their content and are there before the `config.json` that names them replaces the old one, so a
folder is one whole checkpoint at every moment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import files
from .._extras import need

if TYPE_CHECKING:
    from .model import Model

FORMAT = 1
CONFIG = "config.json"


def save(model: Model, folder: str | os.PathLike[str], training: Mapping[str, Any] | None = None) -> None:
    """Makes the folder, if need be, and its checkpoint this model. training: facts to keep about its training."""
    folder = Path(folder)
    _weights_named(folder)  # raises for another config.json than ours
    folder.mkdir(parents=True, exist_ok=True)
    data = pack(model.state_dict())
    name = f"weights-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    config = {"format": FORMAT, "model": type(model).__name__, "config": model.config, "weights": name}
    if training is not None:
        config["training"] = dict(training)
    try:
        files.write(folder / name, data)
        files.write(folder / CONFIG, f"{json.dumps(config, indent=1)}\n".encode())
    except BaseException:
        if _weights_named(folder) != name:
            (folder / name).unlink(missing_ok=True)
        raise
    ours = f"weights-{'[0-9a-f]' * 16}.safetensors"
    for pattern in (ours, f".{ours}.part"):  # older ones, and what a kill left
        for weights in folder.glob(pattern):
            if weights.name != name:
                weights.unlink()


def load(
    folder: str | os.PathLike[str], classes: Mapping[str, type[Model]], device: torch.device | str = "cpu"
) -> Model:
    """The model that `save` wrote, of one of `classes` (by the classes' names), in its dtype, in eval mode.

    Raises FileNotFoundError and NotADirectoryError where there is no such folder or no config in it, and ValueError for
    what is no checkpoint, or one of another class.
    """
    folder = Path(folder)
    config = read_config(folder)
    if config["model"] not in classes:
        raise ValueError(f"{folder}: expected a checkpoint of {' or '.join(classes)}, got one of {config['model']}")
    try:
        with torch.device("meta"):
            model = classes[config["model"]](**config["config"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG}: expected a pygen checkpoint's config, got {error}") from error
    while True:
        try:
            tensors, _ = unpack(folder / config["weights"])
            break
        except FileNotFoundError:  # perhaps replaced since the config was read
            if config == (config := read_config(folder)):
                raise ValueError(f"{folder}: expected the weights {config['weights']}, which are not there") from None
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{folder}: expected the weights that {CONFIG} describes, got others: {error}") from error
    return model.to(device).eval()


def _weights_named(folder: Path) -> str | None:
    """The weights of the checkpoint that a folder holds, if it holds one."""
    return str(read_config(folder)["weights"]) if (folder / CONFIG).exists() else None


def read_config(folder: Path) -> dict[str, Any]:
    """What `config.json` says, checked."""
    path = folder / CONFIG
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: expected a pygen checkpoint (a folder with {CONFIG}), got a file")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = "a folder without one" if folder.is_dir() else "nothing there"
        raise FileNotFoundError(f"{folder}: expected a pygen checkpoint (a folder with {CONFIG}), got {what}") from None
    except ValueError as error:
        raise ValueError(f"{path}: expected a pygen checkpoint's config, got no JSON: {error}") from error
    if not isinstance(config, dict) or "format" not in config:
        raise ValueError(f"{path}: expected a pygen checkpoint's config, got another file of that name")
    if config["format"] != FORMAT:
        raise ValueError(
            f"{path}: expected checkpoint format {FORMAT}, got {config['format']}: of another pygen version"
        )
    kinds = {"model": str, "config": dict, "weights": str}
    wrong = [key for key, kind in kinds.items() if not isinstance(config.get(key), kind)]
    if wrong or Path(config["weights"]).name != config["weights"]:
        raise ValueError(
            f"{path}: expected a pygen checkpoint's config, got a wrong {' and '.join(wrong) or 'weights'}"
        )
    return config


# --- safetensors -----------------------------------------------------------------------------------------------------


def pack(tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None = None) -> bytes:
    """A safetensors file of tensors, with a header of what JSON can hold."""
    data: bytes = _safetensors().torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        None if header is None else {"pygen": json.dumps(header)},
    )
    return data


def unpack(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Tensors and header of what `pack` made. Raises FileNotFoundError, and ValueError for a broken file."""
    with _opened(path) as file:
        # Copies: the file's own memory is aligned otherwise than torch's, which can change bits of matrix products.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads((file.metadata() or {}).get("pygen", "null"))


def unpack_header(path: Path) -> Any:
    with _opened(path) as file:
        return json.loads((file.metadata() or {}).get("pygen", "null"))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, "pt") as file:
            yield file
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected a safetensors file of pygen, got {error}") from error


def _safetensors() -> Any:
    need("checkpoints", "train", "safetensors")
    import safetensors.torch

    return safetensors
