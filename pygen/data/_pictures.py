"""One picture: its header, its pixels. All that is asked of Pillow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ._files import reading

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow knows more, one of which runs Ghostscript
_GREY = ("1", "L", "LA")
_COLOUR = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr")
_TURNS = {  # EXIF orientation: what makes the picture upright
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}

Size = tuple[int, int]  # height, width


class Header(NamedTuple):
    size: Size  # when upright
    grey: bool


def read_header(file: str) -> Header:
    """Raises ValueError, naming the file, for what is no picture with 8 bits of grey or colour."""
    with _opened(file) as image:
        size = image.size if _orientation(image) >= 5 else image.size[::-1]
        return Header(size, image.mode in _GREY)


def decode(file: str, channels: int, crop: Size | None, size: Size | None) -> np.ndarray:
    """uint8 [C, H, W]: the picture upright, on white, its central part `crop`, scaled to cover `size` and cut to it."""
    from PIL import Image, ImageOps

    with _opened(file) as opened:
        image: Image.Image = opened
        turn = _TURNS.get(_orientation(image))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if turn is not None:
            image = image.transpose(Image.Transpose[turn])
        if crop is not None:
            left, top = (image.width - crop[1]) // 2, (image.height - crop[0]) // 2
            image = image.crop((left, top, left + crop[1], top + crop[0]))
        image = image.convert("RGB" if channels == 3 else "L")
        if size is not None and size != (image.height, image.width):
            image = ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)
        pixels = np.array(image)  # [H, W] or [H, W, 3]
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_rgb(file: str) -> np.ndarray:
    """uint8 [3, H, W], as metrics' other implementations read a picture: as Pillow's convert("RGB") makes it.

    So transparency is dropped, not laid on white; grey is repeated; a picture is not turned upright; of more than 8
    bits, what is above 255 becomes 255 (colours of 16 bits are read as 8 before that).
    """
    with _opened(file, None) as image:
        pixels = np.array(image.convert("RGB"))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


@contextmanager
def _opened(file: str, modes: Sequence[str] | None = _GREY + _COLOUR) -> Iterator[Image]:
    """modes: the pictures that are accepted; None: all that Pillow reads of these formats."""
    from PIL import Image

    with reading(file, "a picture"), Image.open(file, formats=_FORMATS) as image:
        if modes is not None and image.mode not in modes:
            raise ValueError(f"one of mode {image.mode}, which is not 8 bits of grey or colour")
        yield image


def _orientation(image: Image) -> int:
    """The EXIF orientation, 1 .. 8; 1, upright, where there is none. Before the pixels are loaded."""
    if "exif" not in image.info:
        return 1
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a broken note about a picture that may be whole
        return 1
