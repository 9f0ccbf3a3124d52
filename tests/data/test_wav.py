"""Recordings."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from pygen.data import load, mu_law, mu_law_inverse

from .files import riff, write_wav

EXTENSIBLE = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 8000, 24000, 3, 24, 22, 24, 4) + bytes.fromhex(
    "0100000000001000800000aa00389b71"
)


def ramp(bits: int, n: int = 40) -> np.ndarray:
    """From the least integer of `bits` bits to the greatest."""
    return np.linspace(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, n).round().astype(np.int64)


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_pcm(tmp_path: Path, bits: int) -> None:
    data = load(write_wav(tmp_path / "a.wav", ramp(bits), bits), window=8, held_out=0)
    assert repr(data) == "Recordings(5 x [1, 8], continuous)"
    assert data.sample_rate == 8000
    (x,) = data.batch([3, 0, 4, 1, 2])
    assert x.dtype == torch.float32
    expected = torch.from_numpy(ramp(bits) / 2.0 ** (bits - 1)).float().reshape(5, 1, 8)
    assert torch.equal(x, expected[[3, 0, 4, 1, 2]])
    assert x.min() == -1


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.stack([ramp(16), 2 * ramp(15)], 1)
    data = load(write_wav(tmp_path / "a.wav", stereo, 16), window=40, held_out=0)
    assert torch.equal(data[0][0][0], torch.from_numpy(stereo.mean(1) / 2**15).float())


def test_extensible_floats_and_other_chunks(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    samples = np.array([-1, -0.5, 0, 0.25], "<f4")
    path.write_bytes(riff(struct.pack("<HHIIHH", 3, 1, 8000, 32000, 4, 32), samples.tobytes(), (b"LIST", b"odd")))
    data = load(path, window=2, held_out=0)
    assert torch.equal(data.batch([0, 1])[0].flatten(), torch.from_numpy(samples))
    path.write_bytes(riff(EXTENSIBLE, bytes.fromhex("000080 000000 ffff7f")))
    assert load(path, window=3, held_out=0)[0][0].tolist() == [[-1, 0, 1 - 2**-23]]


def test_windows_of_a_folder(tmp_path: Path) -> None:
    """Sorted; the rest of a file and files shorter than a window are left out."""
    for name, n in (("b.wav", 11), ("a/z.WAV", 5), ("a/short.wav", 4), (".hidden.wav", 50), ("c.txt", 3)):
        write_wav(tmp_path / name, 100 * len(name) + np.arange(n), 16)
    data = load(tmp_path, window=5, held_out=0)
    assert (data.batch([0, 1, 2])[0][:, 0, 0] * 2**15).tolist() == [700, 500, 505]
    assert len(load(tmp_path, window=5, held_out=0.4, split="test")) == 1


def test_folders_of_splits(tmp_path: Path) -> None:
    write_wav(tmp_path / "train" / "a.wav", np.arange(10), 16)
    write_wav(tmp_path / "test" / "b.wav", np.arange(5), 16)
    assert (len(load(tmp_path, window=5)), len(load(tmp_path, window=5, split="test"))) == (2, 1)
    with pytest.raises(ValueError, match="expected no held_out, for it has a test split of its own"):
        load(tmp_path, window=5, held_out=0.2)


def test_mu_law_levels(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", ramp(16), 16)
    data = load(path, window=8, held_out=0, mu_law=True)
    assert data.levels == 256
    levels = data.batch(range(5))[0]
    assert levels.dtype == torch.uint8
    assert torch.equal(levels, mu_law(load(path, window=8, held_out=0).batch(range(5))[0]))
    assert (levels.min(), levels.max()) == (0, 255)
    assert load(path, window=8, mu_law=True, levels=16).levels == 16


def test_mu_law_and_back() -> None:
    assert mu_law(torch.tensor([-9.0, -1, -0.01, 0, 0.01, 1, 9])).tolist() == [0, 0, 98, 128, 157, 255, 255]
    for levels in (2, 17, 256, 65536):
        every = torch.arange(levels)
        assert torch.equal(mu_law(mu_law_inverse(every, levels), levels).long(), every)
    x = torch.linspace(-1, 1, 1001)
    assert (mu_law_inverse(mu_law(x)) - x).abs().max() < 0.022  # the steps at full scale
    assert (mu_law_inverse(mu_law(x / 100)) - x / 100).abs().max() < 5e-4


PCM16 = struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got 0 bytes"),
        (b"RIFX" + bytes(4) + b"WAVE", "got one that begins with b'RIFX"),
        (b"RIFF" + bytes(4) + b"AVI ", "got one that begins with b'RIFF"),
        (riff(PCM16, bytes(40))[:60], "got 16 of 40 bytes of samples"),
        (riff(PCM16, b"")[:36], "got a truncated file, without samples"),
        (riff(PCM16[:14], bytes(40)), "got a format of 14 bytes"),
        (riff(struct.pack("<HHIIHH", 6, 1, 8000, 8000, 1, 8), bytes(40)), "got format 6 of 8 bits, neither PCM of 8"),
        (riff(struct.pack("<HHIIHH", 1, 1, 8000, 8000, 1, 12), bytes(40)), "got format 1 of 12 bits, neither PCM of 8"),
        (riff(struct.pack("<HHIIHH", 1, 0, 8000, 8000, 1, 16), bytes(40)), "got 0 channels at 8000 samples a second"),
        (riff(PCM16, bytes(40)).replace(b"fmt ", b"junk"), "got samples before their format"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: expected a recording (.wav), {message}")):
        load(path, window=8)


def test_other_errors(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", ramp(16), 16)
    with pytest.raises(ValueError, match=r"a.wav: expected recordings of at least 41 samples \(window=\), got 40"):
        load(path, window=41)
    with pytest.raises(ValueError, match="expected window >= 1, got 0"):
        load(path, window=0)
    write_wav(tmp_path / "b.wav", ramp(16), 16, rate=16000)
    with pytest.raises(ValueError, match=r"b.wav: expected 8000 samples a second as in .*a.wav, got 16000"):
        load(tmp_path, window=8)
    (tmp_path / "b.wav").write_bytes(riff(struct.pack("<HHIIHH", 3, 1, 8000, 32000, 4, 32), b"\0\0\xc0\x7f" * 8))
    data = load(tmp_path / "b.wav", window=8, held_out=0)
    with pytest.raises(ValueError, match=r"b.wav: expected finite numbers, got NaN or infinity"):
        data[0]
    (tmp_path / "b.wav").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b.wav: expected a recording \(.wav\), got a truncated file"):
        data[0]
