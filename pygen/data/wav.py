"""Recordings (.wav), cut into windows."""

from __future__ import annotations

import math
import os
import struct
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._arguments import check_integer
from ..nn import denormalize, normalize
from ._files import check_files, check_split, existing, files_below, no_held_out, part, reading, split_folders
from .dataset import Dataset, check_finite

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_FORMATS = {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32)}


def wav(
    path: str | os.PathLike[str],
    *,
    split: str = "train",
    held_out: float | None = None,
    window: int = 16_384,
    mu_law: bool = False,
) -> Recordings:
    """Windows [1, T] of recordings: float32, in [-1, 1] but for files of floats; or mu-law levels.

    path: a file, or a folder with files below it, or with the folders of the splits, train and test (or val, valid,
    validation). PCM of 8, 16, 24 or 32 bits or float32; all of one sampling rate. Channels are averaged.
    held_out: the fraction of the windows for split="test" where there is no such folder; default 0.1.
    window: T, in samples. Windows follow each other without overlap; what remains at a file's end is left out.
    mu_law: 256 levels as WaveNet has them (`pygen.data.mu_law`).
    """
    check_split(split)
    path = existing(path)
    check_integer("window", window, 1)
    train, test = (path, None) if path.is_file() else split_folders(path)
    if test is not None:
        no_held_out(held_out, path)
    source = test if test is not None and split == "test" else train
    files = [str(path)] if path.is_file() else files_below(source, [".wav"])
    if not files:
        raise ValueError(f"{source}: expected recordings (.wav), got none")
    tracks = check_files(read_header, files, 1, "Reading the headers of recordings")
    for track in tracks:
        if track.rate != tracks[0].rate:
            raise ValueError(f"{track.file}: expected {tracks[0].rate} samples a second as in {tracks[0].file}, "
                             f"got {track.rate}")  # fmt: skip
    dataset = Recordings(tracks, window, 256 if mu_law else None)
    if len(dataset) == 0:
        longest = max(track.frames for track in tracks)
        raise ValueError(f"{source}: expected recordings of at least {window} samples (window=), got {longest}")
    return dataset if test is not None else part(dataset, split, held_out, path)


class Track(NamedTuple):
    """Where the samples of a file lie, and how."""

    file: str
    offset: int  # bytes before them
    frames: int
    channels: int
    bits: int
    is_float: bool
    rate: int  # samples a second


class Recordings(Dataset):
    """Windows [1, T] of tracks. sample_rate: samples a second."""

    def __init__(self, tracks: list[Track], window: int, levels: int | None) -> None:
        counts = np.array([track.frames // window for track in tracks])
        super().__init__(int(counts.sum()), (1, window), levels)
        self.sample_rate = tracks[0].rate
        self._tracks, self._window, self._mu_law = tracks, window, levels
        self._ends = counts.cumsum()

    def _read(self, indices: Tensor) -> tuple[Tensor, ...]:
        x = torch.empty((len(indices), *self.shape))
        which = np.searchsorted(self._ends, indices.numpy(), side="right")
        for row, (i, index) in enumerate(zip(which.tolist(), indices.tolist(), strict=True)):
            first = index - int(self._ends[i - 1] if i else 0)
            x[row] = torch.from_numpy(read_samples(self._tracks[i], first * self._window, self._window))
        check_finite(x, lambda row: self._tracks[which[row]].file)
        return (x if self._mu_law is None else mu_law(x, self._mu_law),)


def mu_law(x: Tensor, levels: int = 256) -> Tensor:
    """Samples in [-1, 1], clamped, as mu-law levels; mu = levels - 1 (ITU-T G.711; van den Oord et al. 2016, 2.2).

    f(x) = sign(x) log(1 + mu |x|) / log(1 + mu), spread over 0 .. mu and rounded.
    """
    mu = levels - 1
    x = x.clamp(-1, 1)
    companded = x.sign() * torch.log1p(mu * x.abs()) / math.log1p(mu)
    return denormalize(companded, levels)


def mu_law_inverse(level: Tensor, levels: int = 256) -> Tensor:
    """The sample in [-1, 1], float32, of a mu-law level."""
    mu = levels - 1
    companded = normalize(level, levels)
    return companded.sign() * torch.expm1(companded.abs() * math.log1p(mu)) / mu


# --- files -----------------------------------------------------------------------------------------------------------


def read_header(path: str) -> Track:
    """Finds the samples in a RIFF file.

    The standard library's `wave` knows no floats, before Python 3.12 not WAVE_FORMAT_EXTENSIBLE, which 24 bits come in,
    and takes no notice of missing samples.
    """
    with reading(path, "a recording (.wav)"), open(path, "rb") as file:
        riff = file.read(12)
        if riff[:4] != b"RIFF" or riff[8:] != b"WAVE":
            raise ValueError(f"one that begins with {riff!r}" if len(riff) == 12 else f"{len(riff)} bytes")
        layout = None
        while True:
            name, size = struct.unpack("<4sI", _exactly(file, 8))
            if name == b"fmt ":
                layout = _format(_exactly(file, min(size, 40)))
                file.seek(size - min(size, 40) + size % 2, 1)
            elif name == b"data":
                break
            else:
                file.seek(size + size % 2, 1)
        if layout is None:
            raise ValueError("samples before their format")
        offset = file.tell()
        have = file.seek(0, 2) - offset
        if have < size:
            raise ValueError(f"{have} of {size} bytes of samples")
        is_float, channels, rate, bits = layout
        return Track(path, offset, size // (channels * bits // 8), channels, bits, is_float, rate)


def _exactly(file: BinaryIO, size: int) -> bytes:
    content = file.read(size)
    if len(content) < size:
        raise ValueError("a truncated file, without samples")
    return content


def _format(chunk: bytes) -> tuple[bool, int, int, int]:
    """Whether floats, channels, rate, bits."""
    if len(chunk) < 16:
        raise ValueError(f"a format of {len(chunk)} bytes")
    code, channels, rate, _, _, bits = struct.unpack("<HHIIHH", chunk[:16])
    if code == _EXTENSIBLE and len(chunk) == 40:
        code = struct.unpack("<H", chunk[24:26])[0]
    if (code, bits) not in _FORMATS:
        raise ValueError(f"format {code} of {bits} bits, neither PCM of 8, 16, 24 or 32 nor float of 32")
    if channels == 0 or rate == 0:
        raise ValueError(f"{channels} channels at {rate} samples a second")
    return code == _FLOAT, channels, rate, bits


def read_samples(track: Track, first: int, count: int) -> np.ndarray:
    """Frames [first, first + count) as float32 in [-1, 1], the channels averaged."""
    width = track.bits // 8
    with reading(track.file, "a recording (.wav)"), open(track.file, "rb") as file:
        file.seek(track.offset + first * track.channels * width)
        content = np.frombuffer(_exactly(file, count * track.channels * width), np.uint8)
    if track.is_float:
        x = content.view("<f4").astype(np.float64)
    elif width == 1:
        x = (content - 128.0) / 128
    else:
        wide = np.zeros((count * track.channels, 4), np.uint8)
        wide[:, 4 - width :] = content.reshape(-1, width)  # the high bytes of 32 bits
        x = wide.view("<i4")[:, 0] / 2.0**31
    mean: np.ndarray = x.reshape(count, track.channels).mean(1)
    return mean.astype(np.float32)
