"""CUDA C++ without a GPU and without a CUDA build of torch: every kernel and its glue compile, and no kernel spills."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

from .conftest import PROJECT

KERNELS = sorted([*PROJECT.glob("csrc/cuda/*.cu"), *PROJECT.glob("tests/cuda/*.cu")])
GLUE = sorted([*PROJECT.glob("csrc/cuda/*.cpp"), *PROJECT.glob("tests/cuda/*.cpp")])
ARCHS = ["sm_80", "sm_90a"]

# Stack frame and spills in bytes that a kernel may have: (part of its mangled name, arch) -> bytes, with the reason.
ALLOWED: dict[tuple[str, str], int] = {}

nvcc = shutil.which("nvcc")
pytestmark = pytest.mark.skipif(nvcc is None, reason="nvcc is not on PATH: CUDA C++ is not compiled")


def compile_cuda(source: Path, *flags: str, to: Path) -> str:
    command = [str(nvcc), "-O3", "--fmad=false", f"-I{PROJECT / 'csrc'}", "-c", "-o", str(to), *flags, str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def memory_use(source: Path, arch: str, to: Path) -> dict[str, int]:
    """Bytes of stack frame and spills of each kernel of a file, by mangled name, as ptxas reports them."""
    target = f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}"
    report = compile_cuda(source, "-std=c++17", target, "-Xptxas", "-v", "-Werror", "all-warnings", to=to)
    use = re.findall(
        r"Function properties for (\w+)\n\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        report,
    )
    entries = re.findall(r"Compiling entry function '(\w+)'", report)
    assert entries
    assert set(entries) <= {name for name, *_ in use}, report
    return {name: sum(map(int, numbers)) for name, *numbers in use}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_kernels_keep_to_registers(source: Path, arch: str, tmp_path: Path) -> None:
    for kernel, size in memory_use(source, arch, tmp_path / "kernel.o").items():
        allowed = max((n for (name, on), n in ALLOWED.items() if name in kernel and on == arch), default=0)
        assert size <= allowed, f"{kernel} on {arch}: {size} bytes of stack frame and spills, allowed {allowed}"


def test_the_random_stream_fuses_nothing(tmp_path: Path) -> None:
    """What gives the CPU's bits: no fused multiply-add, no approximation."""
    compile_cuda(PROJECT / "tests/cuda/philox.cu", "-std=c++17", "-ptx", to=tmp_path / "philox.ptx")
    code = (tmp_path / "philox.ptx").read_text()
    assert "mul.rn.f32" in code or "mul.f32" in code
    assert not re.search(r"\bfma\.|\.approx|\.ftz", code)


def test_a_stack_frame_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "bad.cu"
    source.write_text(
        "__global__ void bad(const int* at, float* out) {\n"
        "  float local[64];\n"
        "  for (int i = 0; i < 64; ++i) local[at[i]] = i;\n"
        "  out[threadIdx.x] = local[at[threadIdx.x]];\n"
        "}\n"
    )
    (size,) = memory_use(source, "sm_80", tmp_path / "bad.o").values()
    assert size >= 256


@pytest.mark.parametrize("source", GLUE, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_glue_compiles(source: Path, tmp_path: Path) -> None:
    # The one header of c10/cuda that a CPU build of torch does not bring.
    stub = tmp_path / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"
    stub.parent.mkdir(parents=True)
    stub.write_text("#define C10_CUDA_BUILD_SHARED_LIBS\n")
    folders = [*include_paths(), str(tmp_path), sysconfig.get_path("include")]
    system = [flag for folder in folders for flag in ("-isystem", folder)]
    strict = "-fopenmp,-fvisibility=hidden,-Wall,-Wextra,-Werror"
    compile_cuda(source, "-std=c++20", *system, "-Xcompiler", strict, to=tmp_path / "glue.o")
