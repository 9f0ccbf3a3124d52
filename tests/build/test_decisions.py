"""What setup.py decides to build, row by row of its table; nothing is compiled here."""

from __future__ import annotations

import importlib.util
import stat
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import PROJECT


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pygen_setup", PROJECT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("torch_cuda", "nvcc", "env", "archs"),
    [
        ("13.0", "13.0", {}, "8.0;9.0;10.0;12.0+PTX"),
        ("13.0", "13.2", {}, "8.0;9.0;10.0;12.0+PTX"),
        ("12.6", "12.4", {}, "8.0;9.0+PTX"),
        ("12.6", "12.6", {"PYGEN_BUILD_CUDA": "1"}, "8.0;9.0+PTX"),
        ("12.6", "12.6", {"FORCE_CUDA": "1"}, "8.0;9.0+PTX"),
        ("12.6", "12.6", {"FORCE_CUDA": "0"}, "8.0;9.0+PTX"),
        ("12.6", "12.6", {"TORCH_CUDA_ARCH_LIST": "7.5 8.6"}, "7.5 8.6"),
    ],
)
def test_cuda_is_built(build: ModuleType, torch_cuda: str, nvcc: str, env: dict[str, str], archs: str) -> None:
    assert build.cuda_plan(torch_cuda, nvcc, env) == (True, archs, "")


@pytest.mark.parametrize(
    ("torch_cuda", "nvcc", "env", "reason"),
    [
        (None, None, {}, "torch is a CPU build"),
        (None, "13.0", {}, "torch is a CPU build, so nvcc 13.0 is not used"),
        (None, "13.0", {"FORCE_CUDA": "1"}, "torch is a CPU build, so nvcc 13.0 is not used"),
        ("13.0", None, {}, "torch has CUDA 13.0, but there is no nvcc"),
        ("13.0", "12.8", {}, "torch has CUDA 13.0, but nvcc is 12.8: the major versions must match"),
        ("13.0", "13.0", {"PYGEN_BUILD_CUDA": "0"}, "PYGEN_BUILD_CUDA=0"),
        ("13.0", "13.0", {"PYGEN_BUILD_CUDA": "0", "FORCE_CUDA": "1"}, "PYGEN_BUILD_CUDA=0"),
    ],
)
def test_cuda_is_left_out_for_a_reason(
    build: ModuleType, torch_cuda: str | None, nvcc: str | None, env: dict[str, str], reason: str
) -> None:
    built, archs, why = build.cuda_plan(torch_cuda, nvcc, env)
    assert not built
    assert not archs
    assert why.startswith(reason)


@pytest.mark.parametrize(
    ("torch_cuda", "env", "demanded"),
    [
        ("13.0", {}, False),
        ("13.0", {"FORCE_CUDA": "1"}, True),
        (None, {"PYGEN_BUILD_CUDA": "1"}, True),
        ("13.0", {"PYGEN_REQUIRE_EXT": "1"}, True),
        ("13.0", {"PYGEN_REQUIRE_EXT": "1", "PYGEN_BUILD_CUDA": "0"}, False),  # a choice, not a fallback
        (None, {"PYGEN_REQUIRE_EXT": "1"}, False),  # a CPU build of torch falls back from nothing
    ],
)
def test_cuda_is_demanded(build: ModuleType, torch_cuda: str | None, env: dict[str, str], demanded: bool) -> None:
    assert build.cuda_demanded(torch_cuda, env) is demanded


@pytest.mark.parametrize("name", ["PYGEN_BUILD_CUDA", "FORCE_CUDA"])
def test_a_switch_is_0_or_1(build: ModuleType, name: str) -> None:
    with pytest.raises(ValueError, match=f"expected {name} to be 0 or 1, got 'yes'"):
        build.cuda_plan("13.0", "13.0", {name: "yes"})


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_compiler_answers(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{program(tmp_path / 'g++', 'echo g++ 99.1; echo more')} -m64")
    assert build.compiler_version() == ("g++ 99.1", "")


def test_an_absent_compiler_is_a_reason(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "g++"))
    version, reason = build.compiler_version()
    assert version == ""
    assert reason.startswith("there is no C++ compiler: ")
    monkeypatch.setattr("sys.platform", "win32")
    assert build.compiler_version() == ("", "native kernels are built on Linux only, not on win32")


@pytest.mark.parametrize(
    ("script", "message"), [("echo broken >&2; exit 1", "failed: broken"), ("echo clang version 19", "got clang")]
)
def test_a_broken_compiler_is_an_error(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    monkeypatch.setenv("CXX", str(program(tmp_path / "g++", script)))
    with pytest.raises(ValueError, match=message):
        build.compiler_version()


def test_nvcc_is_looked_for(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = "echo Cuda compilation tools, release 12.9, V12.9.41"
    program(tmp_path / "toolkit" / "bin" / "nvcc", says)
    monkeypatch.setenv("PATH", str(program(tmp_path / "path" / "nvcc", says.replace("12.9", "13.1")).parent))
    assert build.nvcc_version(str(tmp_path / "toolkit")) == "12.9"
    assert build.nvcc_version(None) == "13.1"
    assert build.nvcc_version(str(tmp_path / "nowhere")) is None  # torch would call the one in its CUDA_HOME
    program(tmp_path / "toolkit" / "bin" / "nvcc", "exit 3")
    with pytest.raises(ValueError, match="nvcc --version failed"):
        build.nvcc_version(str(tmp_path / "toolkit"))
