"""From images, wherever they are, to features: batch by batch, by one process or several."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import ranks
from .._arguments import check_integer
from .._extras import need
from ..data import Dataset
from ..data._files import ahead, default_workers, existing, files_below, files_in
from ..data._pictures import SUFFIXES, read_rgb
from ..data.dataset import full_range

Extractor = Callable[..., Any]  # Tensor [n, ...] -> Tensor [n, d] or [n, d, h, w]; an nn.Module is one


class ImageFiles:
    """The images in a folder, sorted by name: what pytorch-fid takes, or with `recursive` those in folders below too.

    An image is a file named .bmp, .jpg, .jpeg, .pgm, .png, .ppm, .tif, .tiff or .webp, in letters of any case; other
    files and hidden ones are ignored. Raises FileNotFoundError for no folder, ValueError for one without images.
    """

    def __init__(self, folder: str | os.PathLike[str], *, recursive: bool = False) -> None:
        path = existing(folder)
        if not path.is_dir():
            raise ValueError(f"{path}: expected a folder of images, got a file")
        need("folders of pictures", "train", "PIL")
        self.files = files_below(path, SUFFIXES) if recursive else files_in(path, SUFFIXES)
        if not self.files:
            raise ValueError(f"{path}: expected images ({' '.join(SUFFIXES)}), got none")

    def __len__(self) -> int:
        return len(self.files)


Source = str | os.PathLike[str] | ImageFiles | np.ndarray | Tensor | Dataset | Iterable[Any]


def extract_features(
    source: Source,
    extractor: Extractor,
    *,
    batch_size: int = 50,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Iterator[Tensor]:
    """Features of all samples of a source, in its order: batches float32 [n, d], on the extractor's device.

    source: a folder of images, or `ImageFiles`; an array or tensor [N, ...]; a `pygen.data.Dataset`, whose labels are
    left out and whose levels are stretched to 0 .. 255 (`full_range`); or an iterable of batches: tensors or arrays
    [n, ...], alone or first in a tuple or list. Images, whatever is uint8 with four dimensions, must be [n, C, H, W]
    with C = 3, or 1, which is repeated. Everything else is passed on as it is.

    Files are read as pytorch-fid, torch-fidelity and clean-fid do, so that numbers are comparable: by Pillow's
    convert("RGB"), which repeats grey, looks up palettes, drops transparency, ignores EXIF's orientation and cuts more
    than 8 bits of grey off at 255. `pygen.data.images`, made for training, lays transparency on white and turns
    pictures upright: a data set of the same files has other features where there is either.

    extractor: any module or function of a batch; module parameters say where batches go, and modules are in eval mode
    meanwhile. 4-d outputs are averaged over space. One with the attribute `mixed_sizes` gets a list of images [3, H, W]
    where the files of a batch differ in size (`Inception` has it); for any other, all must have the first one's size.

    batch_size: samples i batch_size .. (i + 1) batch_size - 1 are batch i, always; an iterable has its own batches.
    Several processes (`pygen.ranks`) take batches in turns, and each gets the features of its own.
    workers: threads that decode files, at most a batch ahead of the network; default one a core, up to 8.
    advance: called after each batch with how many samples are new, those of the other processes estimated.

    Raises ValueError, which names the file or the sample, for a broken image, for sizes that differ and for channels;
    and after the last batch, if any, for features that are NaN or infinite, which are counted.
    """
    check_integer("batch_size", batch_size, 1)
    workers = default_workers() if workers is None else workers
    check_integer("workers", workers, 1)
    if isinstance(source, (str, os.PathLike)):
        source = ImageFiles(source)
    if isinstance(source, ImageFiles):
        files = source.files
        return _extract(_of_files(files, batch_size, workers), extractor, advance, len(files), files.__getitem__)
    if isinstance(source, (np.ndarray, Tensor, Dataset)):
        if len(source) == 0:
            raise ValueError("expected samples, got none")
        return _extract(_of_samples(source, batch_size), extractor, advance, len(source), _sample)
    return _extract(_of_batches(source), extractor, advance, None, _sample)


# --- sources: (number of the first sample, samples) for each batch of this process ------------------------------------

Batch = Tensor | list[Tensor]  # a list: of images that are to be stacked if they have one size


def _firsts(n: int, batch_size: int) -> Iterable[int]:
    return range(ranks.rank() * batch_size, n, ranks.world() * batch_size)


def _of_files(files: list[str], batch_size: int, workers: int) -> Iterator[tuple[int, Batch]]:
    def read(i: int) -> Tensor:
        return torch.from_numpy(read_rgb(files[i]))

    batches = [range(first, min(first + batch_size, len(files))) for first in _firsts(len(files), batch_size)]
    images = ahead(read, itertools.chain.from_iterable(batches), workers, batch_size)
    for batch in batches:
        yield batch[0], list(itertools.islice(images, len(batch)))


def _of_samples(source: np.ndarray | Tensor | Dataset, batch_size: int) -> Iterator[tuple[int, Batch]]:
    def read(first: int) -> tuple[int, Batch]:
        last = min(first + batch_size, len(source))
        if not isinstance(source, Dataset):
            return first, _tensor(source[first:last])
        (x, *_) = source.batch(range(first, last))
        return first, x if source.levels is None or x.dim() != 4 else full_range(x, source.levels)

    return ahead(read, _firsts(len(source), batch_size), 1, 1)


def _of_batches(source: Iterable[Any]) -> Iterator[tuple[int, Batch]]:
    first = 0
    for number, batch in enumerate(source):
        x = _tensor(batch[0] if isinstance(batch, (tuple, list)) and batch else batch)
        if x.dim() == 0 or len(x) == 0:
            raise ValueError(f"expected batches [n, ...] of samples, got {list(x.shape)} as number {number}")
        if number % ranks.world() == ranks.rank():
            yield first, x
        first += len(x)
    if first == 0:
        raise ValueError("expected batches of samples, got none")


def _tensor(x: Any) -> Tensor:
    if isinstance(x, np.ndarray):
        return torch.from_numpy(np.array(x, order="C"))  # a copy: a mapped file is read here, and cannot be written to
    if not isinstance(x, Tensor):
        raise TypeError(f"expected a batch of samples as a tensor or an array, got {type(x).__name__}")
    return x


def _sample(i: int) -> str:
    return f"sample {i}"


# --- batches ----------------------------------------------------------------------------------------------------------


def _extract(
    batches: Iterator[tuple[int, Batch]],
    extractor: Extractor,
    advance: Callable[[int], None],
    total: int | None,
    name: Callable[[int], str],
) -> Iterator[Tensor]:
    rows = 0
    d: int | None = None
    standard: tuple[str, torch.Size] | None = None  # the first image of this process, and its shape
    broken: list[tuple[int, Tensor]] = []
    with _evaluating(extractor) as device:
        for first, batch in batches:
            n = len(batch)
            if isinstance(batch, list):
                standard = standard or (name(first), batch[0].shape)
                batch = _stacked(batch, first, name, standard, getattr(extractor, "mixed_sizes", False))
            x = [image.to(device) for image in batch] if isinstance(batch, list) else _images(batch).to(device)
            with torch.no_grad():  # not around the loop: the caller's code runs at each yield
                features = _rows(extractor(x), n)
            d = d or features.shape[1]
            if features.shape[1] != d:
                raise ValueError(f"expected {d} features of each sample, as before, got {features.shape[1]}")
            # Looked at when all is done: on a GPU it would be waited for now.
            broken.append((first, ~features.isfinite().all(1)))
            rows += n
            yield features
            advance(n * ranks.world() if total is None else min(n * ranks.world(), total - first))
    bad = [first + i for first, flags in broken for i in flags.nonzero()[:, 0].tolist()]
    if bad:
        raise ValueError(
            f"expected finite features, got NaN or infinity in {len(bad)} of {rows} rows; first in {name(bad[0])}"
        )


def _stacked(
    images: list[Tensor], first: int, name: Callable[[int], str], standard: tuple[str, torch.Size], mixed: bool
) -> Batch:
    """Images of one size as one tensor [n, C, H, W], of several as they are, if the extractor takes them."""
    for i, image in enumerate(images):
        if not mixed and image.shape != standard[1]:
            raise ValueError(
                f"{name(first + i)}: expected {_by(standard[1])} pixels as in {standard[0]}, got {_by(image.shape)}"
            )
    return torch.stack(images) if all(image.shape == images[0].shape for image in images) else images


def _images(x: Tensor) -> Tensor:
    """A batch, of three channels if it is of images."""
    if x.dtype != torch.uint8 or x.dim() != 4:
        return x
    if x.shape[1] not in (1, 3):
        raise ValueError(f"expected images uint8 [n, C, H, W] of 1 or 3 channels, got {list(x.shape)}")
    return x.expand(-1, 3, -1, -1).contiguous()


def _rows(features: Any, n: int) -> Tensor:
    """What an extractor returned for n samples as float32 [n, d]."""
    if not isinstance(features, Tensor):
        raise TypeError(f"expected the extractor to return one tensor, got {type(features).__name__}")
    if features.dim() == 4:
        features = features.mean((2, 3))
    if features.dim() != 2 or len(features) != n or not features.is_floating_point():
        got = f"{list(features.shape)} {features.dtype}"
        raise ValueError(f"expected the extractor to return floats [{n}, d] or [{n}, d, h, w], got {got}")
    rows: Tensor = features.float()
    return rows


@contextmanager
def _evaluating(extractor: Extractor) -> Iterator[torch.device | None]:
    """Puts a module in eval mode, and as it was afterwards. Gives the device of its parameters, None: it has none."""
    if not isinstance(extractor, nn.Module):
        yield None
        return
    training = [module for module in extractor.modules() if module.training]
    extractor.eval()
    try:
        yield next((p.device for p in itertools.chain(extractor.parameters(), extractor.buffers())), None)
    finally:
        for module in training:
            module.training = True


def _by(shape: torch.Size) -> str:
    return f"{shape[-2]} x {shape[-1]}"
