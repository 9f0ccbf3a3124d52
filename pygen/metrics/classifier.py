"""Features without downloaded weights: a small classifier that is trained on the data itself."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import files, ranks
from ..data import Dataset
from ..data.dataset import full_range
from ..models import checkpoint

FEATURES = 64
STEPS, BATCH, RATE = 600, 128, 3e-3
VERSION = 1  # of all that decides the weights but the data: a change of it trains anew

_WIDTHS = (32, 64)


class Classifier(nn.Module):
    """Labels of small images, and what it tells them by: `FEATURES` numbers before the last layer.

    shape: (C, H, W) of the data. classes: number of labels.
    `classifier(x)`: features [N, 64] of uint8 images [N, 3, H, W] of 0 .. 255, what `extract_features` hands over;
    `classifier.logits(features)`: [N, classes].

    Two convolutions of stride 2, a layer of 64 and one of the classes. The features are smooth (GELU), not cut off at
    0, and standardised by the training data, since a Frechet distance takes them as normal and weighs them by scale.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        if len(shape) != 3:
            raise ValueError(f"expected images [C, H, W] to classify, got samples of shape {list(shape)}")
        self.size = shape[1:]
        inputs, layers = 3, []
        height, width = self.size
        for outputs in _WIDTHS:
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GELU()]
            inputs, height, width = outputs, (height + 1) // 2, (width + 1) // 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * height * width, FEATURES), nn.GELU())
        self.head = nn.Linear(FEATURES, classes)
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("std", torch.ones(FEATURES))

    mean: Tensor
    std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.shape[1:] != (3, *self.size):
            expected = " x ".join(map(str, self.size))
            raise ValueError(
                f"expected images uint8 of {expected} pixels, as the classifier was trained on, "
                f"got {images.dtype} {list(images.shape[1:])}"
            )
        return (self._hidden(images) - self.mean) / self.std

    def logits(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features * self.std + self.mean)
        return logits

    def _hidden(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.body(images.float() / 127.5 - 1)
        return hidden


def train_classifier(
    train: Dataset, test: Dataset, *, seed: int = 0, advance: Callable[[int, str], None] = lambda done, figure: None
) -> tuple[Classifier, float]:
    """A classifier of labelled images of integer levels, and its accuracy on those held out.

    600 steps of 128 samples, whatever the size of the data, by AdamW on one CPU thread: a function of the data and the
    seed alone on one machine, for any number of threads and processes.
    advance: called after each step with 1 and the loss.

    Raises ValueError for data without labels or integer levels, and data that are no images.
    """
    _check(train)
    assert train.classes is not None
    generator = torch.Generator().manual_seed(seed)
    with _one_thread(), torch.random.fork_rng(devices=()), torch.enable_grad():
        torch.manual_seed(seed)
        model = Classifier(train.shape, len(train.classes))
        optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(STEPS):
            while len(order) < BATCH:
                order = torch.cat([order, torch.randperm(len(train), generator=generator)])
            x, y = _images(train, order[:BATCH])
            order = order[BATCH:]
            loss = F.cross_entropy(model.head(model._hidden(x)), y, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            advance(1, f"loss {loss.item():.3f}")
    model.requires_grad_(False).eval()
    with _one_thread():
        some = torch.randperm(len(train), generator=generator)[: STEPS * BATCH]
        hidden = torch.cat([model._hidden(_images(train, part)[0]) for part in some.split(1000)])
        model.mean.copy_(hidden.mean(0))
        model.std.copy_(hidden.std(0, correction=0).clamp_min(1e-3))
        right = 0
        for part in torch.arange(len(test)).split(1000):
            x, y = _images(test, part)
            right += int((model.logits(model(x)).argmax(1) == y).sum())
    return model, right / len(test)


def cached_classifier(
    train: Dataset,
    test: Dataset,
    folder: Path | None,
    *,
    seed: int = 0,
    advance: Callable[[int, str], None] = lambda done, figure: None,
) -> tuple[Classifier, float]:
    """`train_classifier`, or what it made earlier of the same data: kept in a folder, by a hash of what decides it.

    folder: None keeps nothing. A file that cannot be read counts as none. Under torch.distributed rank 0 trains, and
    all get the same. Raises OSError where the folder cannot be written to, before any training.
    """
    _check(train)
    assert train.classes is not None

    def make() -> tuple[dict[str, Tensor], float]:
        path = None if folder is None else folder / f"classifier-{_key(train, test, seed)}.safetensors"
        if path is not None and path.exists():
            with contextlib.suppress(ValueError):  # broken
                state, header = checkpoint.unpack(path)
                return state, float(header["accuracy"])
        if path is not None:  # to be written to: known before the work
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(path.parent, os.W_OK):
                raise PermissionError(errno.EACCES, "the folder cannot be written to", str(path.parent))
        model, accuracy = train_classifier(train, test, seed=seed, advance=advance)
        if path is not None:
            files.write(path, checkpoint.pack(model.state_dict(), {"accuracy": accuracy}))
        return dict(model.state_dict()), accuracy

    state, accuracy = ranks.on_first(make)
    model = Classifier(train.shape, len(train.classes))
    model.load_state_dict(state)
    return model.requires_grad_(False).eval(), accuracy


def cache_folder() -> Path:
    """Where the user's programs keep what they can make again: XDG_CACHE_HOME/pygen, by default ~/.cache/pygen."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pygen"


def _check(data: Dataset) -> None:
    if data.classes is None or len(data.classes) < 2:
        raise ValueError(f"expected data with labels to train a classifier on, got {data}")
    if data.levels is None:
        raise ValueError(f"expected images of integer levels to train a classifier on, got {data}")


def _images(data: Dataset, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Images and labels, the images as `extract_features` hands them over."""
    assert data.levels is not None
    x, y = data.batch(indices)
    return full_range(x, data.levels).expand(-1, 3, -1, -1), y


def _key(train: Dataset, test: Dataset, seed: int) -> str:
    """Names the content of the data, and all else that decides the weights."""
    digest = hashlib.sha256(f"{VERSION} {torch.__version__} {seed} {train} {test}".encode())
    for data in (train, test):
        for part in torch.arange(len(data)).split(4096):
            for tensor in data.batch(part):
                digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums over several threads are in another order, and training makes a great difference of a small one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
