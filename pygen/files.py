"""Files that are whole at every moment: written under another name, then put in place."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """Makes `data` the file's content. After a crash at any moment the file is the old one or the new one.

    What fails raises OSError and leaves the old file.
    """
    path = Path(os.path.realpath(path))  # the file that a link names, not the link
    if path.exists() and not path.is_file():
        raise OSError(f"{path}: expected a file to write, got a {'folder' if path.is_dir() else 'device'}")
    part = path.with_name(f".{path.name}.part")  # always the same: what a killed process leaves is overwritten
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:  # of the file that was asked for; and writing names none
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync(path.parent)


def sync(folder: Path) -> None:
    """Makes what was renamed in a folder outlast a power cut; where folders cannot be opened, does nothing."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
