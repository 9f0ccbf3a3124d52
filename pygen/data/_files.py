"""What readers of files share: errors that name the file, lists of files, splits, threads."""

from __future__ import annotations

import os
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from .dataset import D

T = TypeVar("T")
R = TypeVar("R")

SPLITS = ("train", "test")
_TEST_FOLDERS = ("test", "val", "valid", "validation")
_CHUNK = 1024  # files handed to the threads at once


@contextmanager
def reading(path: str | Path, expected: str) -> Iterator[None]:
    """Whatever a parser raises becomes one ValueError that names the file; an error of opening it does already."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        why = str(error).strip() or ("a truncated file" if isinstance(error, EOFError) else repr(error))
        raise ValueError(f"{path}: expected {expected}, got {why.splitlines()[0][:200]}") from error


@contextmanager
def npz(path: Path, expected: str) -> Iterator[Mapping[str, Any]]:
    """The arrays of an .npz, read when asked for; what needs pickle is an error, as is a file of another kind."""
    with reading(path, expected):
        if not zipfile.is_zipfile(path):
            raise ValueError("a file that is none or truncated")
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays


def existing(path: str | os.PathLike[str]) -> Path:
    name = os.path.expanduser(path)
    if not name or not Path(name).exists():  # Path("") is the current folder
        raise FileNotFoundError(f"{name}: expected a file or a folder, found nothing there")
    return Path(name)


# --- splits ----------------------------------------------------------------------------------------------------------


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"expected split to be 'train' or 'test', got {split!r}")


def no_held_out(held_out: float | None, source: Path) -> None:
    """For a source that has its own test split."""
    if held_out is not None:
        raise ValueError(f"{source}: expected no held_out, for it has a test split of its own, got {held_out!r}")


def part(dataset: D, split: str, held_out: float | None, source: Path) -> D:
    """A split of a source without one: a fixed random fraction `held_out`, by default a tenth, is for testing."""
    n = len(dataset)
    held_out = 0.1 if held_out is None else held_out
    if isinstance(held_out, bool) or not isinstance(held_out, (int, float)) or not 0 <= held_out < 1:
        raise ValueError(f"expected held_out in [0, 1), got {held_out!r}")
    test = max(1, round(n * held_out)) if held_out else 0
    if test >= n or (test == 0 and split == "test"):
        raise ValueError(f"{source}: expected samples for both splits, got {n} and held_out={held_out}")
    order = np.random.RandomState(0).permutation(n)  # RandomState's stream is frozen across versions
    return dataset.subset(torch.from_numpy(np.sort(order[:test] if split == "test" else order[test:])))


def split_folders(folder: Path) -> tuple[Path, Path | None]:
    """The folders of the splits: `train` and `test` (`val`, `valid`, `validation`), or the folder itself and None.

    `train` beside others, none of them for testing, is a class.
    """
    inside = [entry.name for entry in entries(folder) if entry.is_dir()]
    test = next((name for name in _TEST_FOLDERS if name in inside), None)
    if "train" in inside and test is not None:
        return folder / "train", folder / test
    return (folder / "train" if inside == ["train"] else folder), None


# --- lists of files --------------------------------------------------------------------------------------------------


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name, without what is hidden."""
    with os.scandir(folder) as found:
        return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)


def files_in(folder: Path, suffixes: Sequence[str]) -> list[str]:
    """Files with one of the suffixes, in a folder itself, sorted."""
    return [e.path for e in entries(folder) if not e.is_dir() and e.name.lower().endswith(tuple(suffixes))]


def files_below(folder: Path, suffixes: Sequence[str], above: tuple[os.stat_result, ...] = ()) -> list[str]:
    """Files with one of the suffixes, in a folder and the folders below it, sorted; a link back up is not followed."""
    here = folder.stat()
    if any(os.path.samestat(here, folder) for folder in above):
        return []
    found = []
    for entry in entries(folder):
        if entry.is_dir():
            found += files_below(Path(entry.path), suffixes, (*above, here))
        elif entry.name.lower().endswith(tuple(suffixes)):
            found.append(entry.path)
    return found


# --- threads ---------------------------------------------------------------------------------------------------------


def default_workers() -> int:
    return min(8, os.cpu_count() or 1)


def in_threads(function: Callable[[T], R], items: Sequence[T], workers: int) -> list[R]:
    """[function(item) for item in items] on worker threads; raises what the first failing item raised.

    The threads end with the call: a data set stays free to be pickled, copied and forked.
    """
    if workers == 1 or len(items) <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(workers, len(items))) as pool:
        return list(pool.map(function, items))


def ahead(function: Callable[[T], R], items: Iterable[T], workers: int, window: int) -> Iterator[R]:
    """function(item) for each item, in order, by worker threads that are at most `window` items ahead."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > window:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # an error, or the caller has seen enough
            for future in waiting:
                future.cancel()


def check_files(function: Callable[[T], R], items: Sequence[T], workers: int, title: str) -> list[R]:
    """`in_threads` for the thousands of files of a data set, with a progress bar where a terminal watches."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    results: list[R] = []
    hidden = not console.is_terminal or len(items) <= 4 * _CHUNK
    with Progress(console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(title, total=len(items))
        for first in range(0, len(items), _CHUNK):
            results += in_threads(function, items[first : first + _CHUNK], workers)
            progress.update(task, completed=len(results))
    return results
