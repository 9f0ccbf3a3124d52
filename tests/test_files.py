"""Files are replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pygen import files


def test_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    (tmp_path / ".a.part").write_text("of a process that was killed")
    for data in (b"one", b"", b"two" * 1000):
        files.write(path, data)
        assert path.read_bytes() == data
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_what_fails_leaves_the_old_file_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left on device") as caught:
        files.write(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_links_stay_and_devices_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "a")
    files.write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "a").read_bytes() == b"new"
    with pytest.raises(OSError, match="expected a file to write, got a folder"):
        files.write(tmp_path / "there", b"")
    with pytest.raises(OSError, match="expected a file to write, got a device"):
        files.write(Path(os.devnull), b"")
    with pytest.raises(FileNotFoundError):
        files.write(tmp_path / "nowhere" / "a", b"")
