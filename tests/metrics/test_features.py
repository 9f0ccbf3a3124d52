"""From folders, arrays, data sets and batches to features."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pygen import ranks
from pygen.data import _files, load
from pygen.metrics import ImageFiles, Inception, extract_features, features

from ..data.files import pixels, write_picture
from . import peers

Image = pytest.importorskip("PIL.Image")


def flat(x: Tensor) -> Tensor:
    return x.flatten(1).float()


def folder(path: Path, n: int = 7, shape: tuple[int, ...] = (4, 5, 3)) -> tuple[Path, Tensor]:
    """Pictures in a folder, and what they hold: uint8 [n, 3, H, W]."""
    arrays = [pixels(*shape, seed=i) for i in range(n)]
    for i, array in enumerate(arrays):
        write_picture(path / f"{i:03}.png", array)
    return path, torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def all_features(source: Any, extractor: Any = flat, **options: Any) -> Tensor:
    return torch.cat(list(extract_features(source, extractor, **options)))


# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_a_folder(tmp_path: Path, batch_size: int, workers: int) -> None:
    path, x = folder(tmp_path)
    batches = list(extract_features(path, flat, batch_size=batch_size, workers=workers))
    assert [len(batch) for batch in batches] == [len(part) for part in x.split(batch_size)]
    assert torch.equal(torch.cat(batches), flat(x))
    assert batches[0].dtype == torch.float32


def test_what_is_an_image(tmp_path: Path) -> None:
    names = ["b.png", "a.PNG", "c.jpeg", "d.bmp", "e.tiff", "f.webp", "g.pgm", "h.ppm", "i.tif", "j.jpg"]
    for name in names:
        write_picture(tmp_path / name, pixels(3, 3) if name == "g.pgm" else pixels(3, 3, 3))
    for name in (".hidden.png", "notes.txt", "features.npy"):
        (tmp_path / name).touch()
    write_picture(tmp_path / "below" / "k.png", pixels(3, 3, 3))
    assert ImageFiles(tmp_path).files == [str(tmp_path / name) for name in sorted(names)]
    assert ImageFiles(tmp_path, recursive=True).files == sorted(
        [*(str(tmp_path / name) for name in names), str(tmp_path / "below" / "k.png")]
    )
    assert len(all_features(ImageFiles(tmp_path, recursive=True))) == len(ImageFiles(tmp_path, recursive=True)) == 11


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_pictures_are_read_as_pillow_converts_them(tmp_path: Path, mode: str) -> None:
    """As the peers do: Image.open(file).convert("RGB"). So alpha is dropped and 16 bits are cut off at 255."""
    path = tmp_path / ("a.png" if mode in ("1", "L", "LA", "P", "RGBA", "I;16") else "a.tif")
    if mode == "I;16":
        image = Image.fromarray(np.arange(0, 600, 50, dtype=np.uint16).reshape(3, 4))
    elif mode in ("LA", "PA", "RGBA"):
        image = Image.fromarray(pixels(3, 4, 4)).convert(mode)
    else:
        image = Image.fromarray(pixels(3, 4, 3)).convert(mode)
    image.save(path, **({"transparency": 0} if mode == "P" else {}))
    with Image.open(path) as image:
        assert image.mode == mode
        expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    seen = []
    all_features(tmp_path, lambda x: seen.append(x) or flat(x))
    assert torch.equal(seen[0][0], expected)
    if mode == "I;16":
        assert expected[0].flatten()[:7].tolist() == [0, 50, 100, 150, 200, 250, 255]


@pytest.mark.peer
def test_pytorch_fid(tmp_path: Path) -> None:
    """Its features of a folder, with the same random weights: what is read, how, in which order."""
    for i, mode in enumerate(("RGB", "L", "P", "RGBA", "LA", "1", "I;16")):
        image = Image.fromarray(pixels(20, 30, 3, seed=i)).convert(mode.partition(";")[0])
        image.convert(mode).save(tmp_path / f"{9 - i}.png")
    score = peers.pytorch_fid().fid_score
    files = sorted(file for suffix in score.IMAGE_EXTENSIONS for file in tmp_path.glob(f"*.{suffix}"))
    assert [Path(file) for file in ImageFiles(tmp_path).files] == files
    theirs = score.get_activations(files, peers.pytorch_fid_network(), batch_size=4, dims=64, num_workers=0)
    ours = all_features(tmp_path, Inception(peers.state(), taps=64), batch_size=4)
    assert np.linalg.norm(ours.numpy() - theirs) <= 1e-5 * np.linalg.norm(theirs - theirs.mean(0))


def test_pictures_are_not_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated
    array = pixels(4, 5, 3)
    write_picture(tmp_path / "a.png", array, exif=exif)
    assert torch.equal(all_features(tmp_path), flat(torch.from_numpy(array).permute(2, 0, 1)[None]))


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_and_tensors(tmp_path: Path, channels: int) -> None:
    x = pixels(7, channels, 4, 5)
    expected = flat(torch.from_numpy(x.repeat(3 // channels, 1)))
    np.save(tmp_path / "x.npy", x)
    for source in (x, torch.from_numpy(x), x[::-1][::-1], np.load(tmp_path / "x.npy", mmap_mode="r")):
        assert torch.equal(all_features(source, batch_size=3), expected)
    assert torch.equal(all_features(x, lambda x: x.view(len(x), -1).float()), expected)


def test_tables_are_passed_on() -> None:
    x = np.random.RandomState(0).randn(9, 3)
    assert torch.equal(all_features(x, lambda x: x, batch_size=4), torch.from_numpy(x).float())


def test_data_sets(tmp_path: Path) -> None:
    digits = pytest.importorskip("sklearn") and load("digits", split="test").subset(range(20))
    (x, _) = digits.batch(range(20))
    expected = flat((x.int() * 255 // 16).to(torch.uint8).repeat(1, 3, 1, 1))
    assert expected.max() == 255
    assert torch.equal(all_features(digits, batch_size=6), expected)
    path, x = folder(tmp_path)
    assert torch.equal(all_features(load(path, held_out=0, labels=False)), flat(x))
    moons = load("moons", size=10)
    assert torch.equal(all_features(moons, lambda x: x), moons.batch(range(10))[0])


def test_batches_in_any_form() -> None:
    x, y = torch.from_numpy(pixels(7, 1, 4, 5)), torch.zeros(7)
    expected = flat(x.repeat(1, 3, 1, 1))
    data = torch.utils.data.TensorDataset(x, y)
    forms = [
        x.split(3),
        iter(x.split(3)),
        (part.numpy() for part in x.split(2)),
        torch.utils.data.DataLoader(data, batch_size=4),
        [(x[:1], y[:1]), (x[1:], y[1:])],
    ]
    for source in forms:
        assert torch.equal(all_features(source), expected)


# --- extractors -------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, dtype=torch.float64)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.conv(x.double()))


def test_a_module(tmp_path: Path) -> None:
    """Maps are averaged over space, nothing is recorded for a gradient, modes are as they were afterwards."""
    path, x = folder(tmp_path)
    net = Net()
    net.conv.eval()
    found = []
    for batch in extract_features(path, net, batch_size=4):
        assert torch.is_grad_enabled()
        assert not batch.requires_grad
        assert not net.drop.training
        found.append(batch)
    assert (net.training, net.conv.training, net.drop.training) == (True, False, True)
    torch.testing.assert_close(torch.cat(found), net.eval()(x).mean((2, 3)).float())


def test_a_module_is_as_it_was_after_a_break() -> None:
    net = Net()
    for _ in extract_features(pixels(9, 3, 4, 4), net, batch_size=2):
        break
    assert net.training


@pytest.mark.parametrize(
    ("extractor", "error", "message"),
    [
        (lambda x: (flat(x),), TypeError, "expected the extractor to return one tensor, got tuple"),
        (lambda x: flat(x)[0], ValueError, r"to return floats \[2, d\] or \[2, d, h, w\], got \[48\] torch.float32"),
        (lambda x: flat(x)[:1], ValueError, r"got \[1, 48\]"),
        (lambda x: x.flatten(1), ValueError, r"got \[2, 48\] torch.uint8"),
        (lambda x: flat(x)[:, : 1 + len(x)], ValueError, "expected 3 features of each sample, as before, got 2"),
    ],
)
def test_other_outputs(extractor: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        all_features(pixels(3, 3, 4, 4), extractor, batch_size=2)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "a.gif").touch()
    message = re.escape(f"{tmp_path}: expected images (.jpg .jpeg .png .bmp .pgm .ppm .tif .tiff .webp), got none")
    with pytest.raises(ValueError, match=f"^{message}$"):
        extract_features(tmp_path, flat)
    with pytest.raises(FileNotFoundError, match="nowhere: expected a file or a folder, found nothing there"):
        extract_features(tmp_path / "nowhere", flat)
    with pytest.raises(ValueError, match=r"a\.gif: expected a folder of images, got a file"):
        extract_features(str(tmp_path / "a.gif"), flat)
    with pytest.raises(ValueError, match="expected samples, got none"):
        extract_features(np.zeros((0, 3, 4, 4), np.uint8), flat)
    with pytest.raises(ValueError, match="expected batches of samples, got none"):
        all_features([])


@pytest.mark.parametrize("content", [b"", b"no picture", "half", "GIF"])
def test_a_broken_image(tmp_path: Path, content: bytes | str) -> None:
    path, _ = folder(tmp_path, shape=(40, 40, 3))
    broken = path / "004.png"
    if content == "half":
        broken.write_bytes(broken.read_bytes()[:2000])
    elif content == "GIF":  # of a format that Pillow knows but the name denies
        Image.fromarray(pixels(4, 5)).save(broken, "GIF")
    else:
        broken.write_bytes(content)
    batches = extract_features(path, flat, batch_size=2)
    assert len(next(batches)) == 2
    with pytest.raises(ValueError, match=f"^{broken}: expected a picture, got "):
        list(batches)


@pytest.mark.parametrize("batch_size", [2, 50])
def test_mixed_sizes(tmp_path: Path, batch_size: int) -> None:
    path, _ = folder(tmp_path)
    write_picture(path / "005.png", pixels(6, 5, 3))
    message = f"^{path}/005.png: expected 4 x 5 pixels as in {path}/000.png, got 6 x 5"
    with pytest.raises(ValueError, match=message):
        all_features(path, batch_size=batch_size)


def test_mixed_sizes_for_who_takes_them(tmp_path: Path) -> None:
    path, _ = folder(tmp_path)
    write_picture(path / "005.png", pixels(6, 5, 3))

    class Mean:
        mixed_sizes = True
        seen: list[type] = []  # noqa: RUF012

        def __call__(self, x: Tensor | list[Tensor]) -> Tensor:
            self.seen.append(type(x))
            return torch.stack([image.float().mean((1, 2)) for image in x])

    assert all_features(path, Mean(), batch_size=3).shape == (7, 3)
    assert Mean.seen == [Tensor, list, Tensor]


@pytest.mark.parametrize("shape", [(2, 2, 4, 4), (2, 4, 4, 3)])
def test_other_channels(shape: tuple[int, ...]) -> None:
    for source in (pixels(*shape), [torch.from_numpy(pixels(*shape))]):
        with pytest.raises(ValueError, match=re.escape(f"uint8 [n, C, H, W] of 1 or 3 channels, got {list(shape)}")):
            all_features(source)


def test_other_batches() -> None:
    for source, got in (([3], "int"), ([("x", 1)], "str"), ([[]], "list")):
        with pytest.raises(TypeError, match=f"expected a batch of samples as a tensor or an array, got {got}"):
            all_features(source)
    for source in ([torch.zeros(())], [torch.zeros(0, 3)]):
        with pytest.raises(ValueError, match=r"expected batches \[n, ...\] of samples, got \[.*\] as number 0"):
            all_features(source)


@pytest.mark.parametrize("name", ["batch_size", "workers"])
def test_other_options(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected {name} >= 1, got 0"):
        extract_features(pixels(2, 3, 4, 4), flat, **{name: 0})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_are_counted(tmp_path: Path, value: float) -> None:
    path, x = folder(tmp_path)

    def extractor(batch: Tensor) -> Tensor:
        rows = flat(batch)
        for i in (2, 3, 6):
            rows[(rows == flat(x)[i]).all(1), 0] = value
        return rows

    message = "^expected finite features, got NaN or infinity in 3 of 7 rows; first in "
    with pytest.raises(ValueError, match=f"{message}{path}/002.png$"):
        all_features(path, extractor, batch_size=3)
    for source in (x, x.split(3)):
        with pytest.raises(ValueError, match=f"{message}sample 2$"):
            all_features(source, extractor, batch_size=3)


# --- threads and processes --------------------------------------------------------------------------------------------


def test_decoding_is_ahead_by_a_batch_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = folder(tmp_path, 20)
    read: list[str] = []
    real = features.read_rgb
    monkeypatch.setattr(features, "read_rgb", lambda file: (read.append(file), real(file))[1])
    before = threading.active_count()
    batches = extract_features(path, flat, batch_size=4, workers=2)
    next(batches)
    deadline = time.monotonic() + 60
    while len(read) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(read) == 8
    batches.close()
    assert threading.active_count() == before


def test_ahead_keeps_the_order_and_passes_errors_on() -> None:
    def slow(i: int) -> int:
        time.sleep(0.01 * (i % 3 == 0))
        if i == 8:
            raise ValueError("eight")
        return i

    results = _files.ahead(slow, range(10), 3, 4)
    assert [next(results) for _ in range(8)] == list(range(8))
    with pytest.raises(ValueError, match="eight"):
        next(results)
    assert list(_files.ahead(slow, [], 3, 4)) == []


@pytest.mark.parametrize("form", ["folder", "array", "data", "batches"])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_processes_take_batches_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int, form: str
) -> None:
    path, x = folder(tmp_path, 11)
    sources = {"folder": path, "array": x, "batches": x.split(3)}
    source = sources[form] if form != "data" else load(path, held_out=0, labels=False)
    monkeypatch.setattr(ranks, "world", lambda: world)
    found: dict[int, Tensor] = {}
    for rank in range(world):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        seen: list[int] = []
        batches = list(extract_features(source, flat, batch_size=3, advance=seen.append))
        found |= {rank + world * i: batch for i, batch in enumerate(batches)}
        if form != "batches":
            assert rank > 0 or sum(seen) == 11
    assert torch.equal(torch.cat([found[i] for i in range(4)]), flat(x))


def test_progress() -> None:
    seen: list[int] = []
    all_features(pixels(7, 3, 4, 4), batch_size=3, advance=seen.append)
    assert seen == [3, 3, 1]


def test_batches_are_computed_when_asked_for() -> None:
    def endless() -> Iterator[Tensor]:
        while True:
            yield torch.zeros(2, 3)

    assert len(next(iter(extract_features(endless(), lambda x: x)))) == 2
