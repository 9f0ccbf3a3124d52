"""Copies of the tree to build in, and environments of their own to install into."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
TINY = Path(__file__).parent / "tiny"
FOLDERS = (".ci", "benchmarks", "csrc", "kernels", "pygen", "tests")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "Makefile", "LICENSE", ".clang-format", "*.md")
SWITCHES = ("PYGEN_", "FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "ATEN_CPU_CAPABILITY", "CXX", "PYTHONPATH", "PYTHONWARN")

# What a fresh process finds: everything that `pygen info` would say of the native modules.
STATE = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", RuntimeWarning)
    import pygen
from pygen import _ext
print(json.dumps({
    "file": pygen.__file__, "tier": _ext.tier, "tiers": _ext.tiers(), "reason": _ext.reason, "build": _ext.build,
    "cuda": _ext.has_cuda, "cuda_reason": _ext.cuda_reason,
    "warnings": [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)],
}))
"""


def copy_tree(to: Path) -> Path:
    """The sources as a checkout has them, without what was built."""
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "_build.json")
    for folder in FOLDERS:
        shutil.copytree(PROJECT / folder, to / folder, ignore=ignore)
    for path in (path for name in FILES for path in PROJECT.glob(name)):
        shutil.copy2(path, to)
    return to


def tiny_tree(to: Path) -> Path:
    """The same with CPU modules that hold no kernels: they build in seconds, by the same setup.py."""
    copy_tree(to)
    shutil.rmtree(to / "csrc" / "cpu")
    shutil.copytree(TINY, to / "csrc" / "cpu")
    return to


class Environment:
    """A virtual environment that sees the running one's packages, torch and pip among them, but not its pygen."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.python = root / "bin" / "python"
        venv.EnvBuilder(symlinks=True).create(root)
        self.site = Path(self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
        # A .pth file adds folders, but not the site hooks inside of them, such as that of an editable pygen.
        folders = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
        (self.site / "running.pth").write_text("\n".join(folders))

    @property
    def package(self) -> Path:
        return self.site / "pygen"

    def run(
        self, *args: object, check: bool = True, cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs this environment's python, outside of the checkout, with no switch set but those in env."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(SWITCHES)}
        command = [str(self.python), *map(str, args)]
        env = kept | {"OMP_NUM_THREADS": "1"} | env
        done = subprocess.run(command, cwd=cwd or self.root, env=env, capture_output=True, text=True)
        if check:
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def install(self, *args: object, isolated: bool = False, check: bool = True, **env: str) -> str:
        """`pip install`, without dependencies, of what args name; returns all that pip said."""
        isolation = [] if isolated else ["--no-build-isolation"]
        how = ["-m", "pip", "install", "-v", "--no-deps", "--ignore-installed", *isolation]
        done = self.run(*how, *args, check=check, **env)
        assert check or done.returncode != 0, "expected the installation to fail"
        return done.stdout + done.stderr

    def state(self, **env: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.run("-c", STATE, **env).stdout)
        return state


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_tree(tmp_path / "tree")


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")
