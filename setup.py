"""Builds pygen: one glue module, one kernel module per ISA tier and, where torch has CUDA, one CUDA module.

What is built is decided once, in `plan`, and recorded with the reasons in `pygen/_build.json`, which `pygen info`
prints. A tool that is absent (torch, compiler, nvcc) costs the modules that need it; a tool that fails is an error.

Environment: PYGEN_BUILD_CPP=0 builds no native module. PYGEN_BUILD_CUDA=0 builds no CUDA module, PYGEN_BUILD_CUDA=1 (or
FORCE_CUDA=1) insists on one. PYGEN_REQUIRE_EXT=1 makes every fallback an error, PYGEN_WERROR=1 every warning.
TORCH_CUDA_ARCH_LIST, CUDA_HOME, MAX_JOBS and CXX mean what they mean to torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from setuptools import Command, Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
FOLDERS = {"pygen.kernels": "kernels", "pygen.benchmarks": "benchmarks"}  # packages that live beside pygen/

# The flags of torch's own tiers (torch/_inductor/cpu_vec_isa.py).
X86_TIERS = {
    "DEFAULT": [],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
    "AVX512": [
        *["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mf16c", "-mprefer-vector-width=512"],
        "-Wno-uninitialized",  # GCC 12's own AVX-512 header
    ],
}
CXX_FLAGS = [
    "-O3",
    "-g0",
    "-fopenmp",  # compiling only: without it at::parallel_for is serial; the link must bind to torch's own runtime
    "-ffp-contract=off",  # the same bits on every tier
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Wno-maybe-uninitialized",  # false alarms in the AVX-512 header of GCC 12
]
NVCC_FLAGS = ["-O3", "--fmad=false"]  # the bits of the CPU's random stream; products call fma

# Without TORCH_CUDA_ARCH_LIST: machine code for each of these that nvcc knows (since the version beside it), and PTX.
CUDA_ARCHS = {"8.0": (11, 0), "9.0": (11, 8), "10.0": (12, 8), "12.0": (12, 8)}


class CudaPlan(NamedTuple):
    """Whether CUDA sources are compiled, for which architectures (in TORCH_CUDA_ARCH_LIST's syntax), and why not."""

    build: bool
    archs: str
    reason: str


def switch(env: Mapping[str, str], name: str) -> str:
    """An environment switch: "0", "1" or "" (not set). Anything else would be silently ignored, so it is an error."""
    value = env.get(name, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"expected {name} to be 0 or 1, got {value!r}")
    return value


def cuda_wish(env: Mapping[str, str]) -> str:
    return switch(env, "PYGEN_BUILD_CUDA") or switch(env, "FORCE_CUDA").replace("0", "")


def cuda_plan(torch_cuda: str | None, nvcc: str | None, env: Mapping[str, str]) -> CudaPlan:
    """Decides from torch's CUDA version, nvcc's version (None: there is none) and the environment, not from a GPU."""
    if cuda_wish(env) == "0":
        return CudaPlan(False, "", "PYGEN_BUILD_CUDA=0")
    if torch_cuda is None:
        return CudaPlan(False, "", "torch is a CPU build" + (f", so nvcc {nvcc} is not used" if nvcc else ""))
    if nvcc is None:
        reason = f"torch has CUDA {torch_cuda}, but there is no nvcc (looked in CUDA_HOME, PATH and /usr/local/cuda)"
        return CudaPlan(False, "", reason)
    if nvcc.split(".")[0] != torch_cuda.split(".")[0]:
        return CudaPlan(False, "", f"torch has CUDA {torch_cuda}, but nvcc is {nvcc}: the major versions must match")
    version = tuple(int(part) for part in nvcc.split("."))
    default = ";".join(arch for arch, since in CUDA_ARCHS.items() if version >= since) + "+PTX"
    return CudaPlan(True, env.get("TORCH_CUDA_ARCH_LIST") or default, "")


def cuda_demanded(torch_cuda: str | None, env: Mapping[str, str]) -> bool:
    """Whether to go without the CUDA module is an error: it was asked for, or torch has CUDA and no fallback may be."""
    fallback = torch_cuda is not None and switch(env, "PYGEN_REQUIRE_EXT") == "1"
    return cuda_wish(env) == "1" or (fallback and cuda_wish(env) != "0")


def version_of(command: list[str]) -> str:
    """What a compiler says on --version. One that is there and fails is broken, not absent."""
    answer = subprocess.run([*command, "--version"], capture_output=True, text=True)
    if answer.returncode != 0 or not answer.stdout:
        raise ValueError(f"{shlex.join(command)} --version failed: {(answer.stderr or answer.stdout).strip()}")
    return answer.stdout


def nvcc_version(cuda_home: str | None) -> str | None:
    """The version, such as "13.0", of the nvcc in cuda_home, on PATH or in /usr/local/cuda; None: there is none."""
    places = [f"{cuda_home}/bin"] if cuda_home else [None, "/usr/local/cuda/bin"]
    nvcc = next(filter(None, (shutil.which("nvcc", path=place) for place in places)), None)
    if nvcc is None:
        return None
    match = re.search(r"release (\d+\.\d+)", version_of([nvcc]))
    if match is None:
        raise ValueError(f"{nvcc} --version names no release")
    return match.group(1)


def compiler_version() -> tuple[str, str]:
    """The C++ compiler's version line, or why there is none: (version, "") or ("", reason)."""
    if sys.platform != "linux":
        return "", f"native kernels are built on Linux only, not on {sys.platform}"
    os.environ.setdefault("CXX", "c++")  # one compiler for torch, which compiles, and for setuptools, which links
    command = shlex.split(os.environ["CXX"])
    if shutil.which(command[0]) is None:
        return "", f"there is no C++ compiler: {command[0]} was not found (install g++, or name one in CXX)"
    version = version_of(command).splitlines()[0]
    if "clang" in version:
        raise ValueError(f"expected g++, got {version}: with clang a second OpenMP runtime joins torch's; set CXX=g++")
    return version, ""


def import_torch() -> tuple[Any, str]:
    """(torch, "") or (None, reason). An isolated build hides the target environment's packages: they are appended."""
    try:
        import torch
    except ImportError:
        user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
        for folder in [*site.getsitepackages(), *user]:
            site.addsitedir(folder)
        try:
            import torch
        except ImportError as error:
            return None, f"torch could not be imported at build time ({error}): install it, then reinstall pygen"
    return torch, ""


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(f"csrc/{pattern}"))


def plan() -> tuple[list[Extension], dict[str, Any]]:
    """The extension modules to build, and the record of what was decided and why; ValueError for an unmet demand."""
    env = os.environ
    record: dict[str, Any] = {"torch": None, "tiers": [], "cuda": False, "reasons": {}}
    torch, reason = import_torch()
    version = ""
    if torch is not None:
        record["torch"] = str(torch.__version__)
    if switch(env, "PYGEN_BUILD_CPP") == "0":
        reason = "PYGEN_BUILD_CPP=0"
    elif torch is not None:
        version, reason = compiler_version()
    if reason:
        if switch(env, "PYGEN_REQUIRE_EXT") == "1":
            raise ValueError(f"{reason} (PYGEN_REQUIRE_EXT=1)")
        record["reasons"] = {"cpu": reason, "cuda": reason}
        return [], record

    from torch.utils import cpp_extension

    werror = switch(env, "PYGEN_WERROR") == "1"
    flags = [*CXX_FLAGS, *(["-Werror"] if werror else [])]
    # System headers, so that our warnings stay ours.
    isystem = [flag for folder in cpp_extension.include_paths() for flag in ("-isystem", folder)]
    common: dict[str, Any] = {"include_dirs": [str(ROOT / "csrc")], "depends": sources("**/*.h")}
    modules = [
        cpp_extension.CppExtension(
            "pygen._C",
            ["csrc/module.cpp", *sources("cpu/*.cpp")],
            extra_compile_args={"cxx": isystem + flags},
            **common,
        )
    ]

    tiers = X86_TIERS if platform.machine() in ("x86_64", "AMD64") else {"DEFAULT": []}  # at::vec's default has NEON
    for tier, isa in tiers.items():
        modules.append(
            cpp_extension.CppExtension(
                f"pygen._K_{tier.lower()}",
                sources("cpu/tier/*.cpp"),
                # The first macro chooses at::vec's code, which is scalar without it; the second names the namespace,
                # so that the linker never merges two tiers.
                define_macros=[(f"CPU_CAPABILITY_{tier}", None), ("CPU_CAPABILITY", tier)],
                extra_compile_args={"cxx": isystem + flags + isa},
                **common,
            )
        )
    reasons = {tier: f"not for {platform.machine()} processors" for tier in X86_TIERS if tier not in tiers}
    record |= {"tiers": list(tiers), "reasons": reasons, "compiler": version, "flags": " ".join(flags)}

    kernels = sources("cuda/*.cu")
    nvcc = nvcc_version(cpp_extension.CUDA_HOME)
    cuda = cuda_plan(torch.version.cuda, nvcc, env)
    if not kernels:
        reasons["cuda"] = cuda.reason or "this version has no CUDA C++ kernels: its GPU kernels are Triton"
    elif cuda.build:
        env["TORCH_CUDA_ARCH_LIST"] = cuda.archs
        isystem = [flag for folder in cpp_extension.include_paths("cuda") for flag in ("-isystem", folder)]
        nvcc_flags = [*NVCC_FLAGS, *(["-Werror=all-warnings"] if werror else [])]
        modules.append(
            # A module of its own: where the CUDA libraries do not load, the CPU kernels still do.
            cpp_extension.CUDAExtension(
                "pygen._C_cuda",
                [*sources("cuda/*.cpp"), *kernels],
                extra_compile_args={"cxx": isystem + flags, "nvcc": nvcc_flags},
                **common,
            )
        )
        record |= {"cuda": True, "nvcc": nvcc, "archs": cuda.archs}
    elif cuda_demanded(torch.version.cuda, env):
        raise ValueError(f"{cuda.reason}, but PYGEN_BUILD_CUDA=1, FORCE_CUDA=1 or PYGEN_REQUIRE_EXT=1 demands CUDA")
    else:
        reasons["cuda"] = cuda.reason
    return modules, record


def discard(package: Path) -> None:
    """Removes what an earlier build left in a package folder: old kernels must not answer for new sources."""
    for old in [*package.glob("_[CK]*.so"), package / "_build.json"]:
        old.unlink(missing_ok=True)


def commands(modules: list[Extension], record: dict[str, Any]) -> dict[str, type[Command]]:
    """setuptools' build commands, with the record written and nothing stale kept."""
    text = json.dumps(record, indent=1)

    class Build(build):
        def run(self) -> None:
            shutil.rmtree(self.build_lib, ignore_errors=True)  # all that lies there goes into the wheel
            super().run()

    class BuildPy(build_py):
        def run(self) -> None:
            package = ROOT / "pygen" if self.editable_mode else Path(self.build_lib) / "pygen"
            discard(package)
            super().run()
            if not modules:
                (package / "_build.json").write_text(text)

    if not modules:
        return {"build": Build, "build_py": BuildPy}

    from torch.utils.cpp_extension import BuildExtension

    class BuildExt(BuildExtension):
        def run(self) -> None:
            package = ROOT / "pygen" if self.inplace else Path(self.build_lib) / "pygen"
            discard(package)
            if self.inplace:
                self.build_temp = str(ROOT / "build" / "inplace")  # kept: the next build compiles what has changed
            # ninja compares commands and our headers; to a new torch or compiler under the old path it is blind.
            toolchain = Path(self.build_temp) / "toolchain.json"
            if not toolchain.exists() or toolchain.read_text() != text:
                shutil.rmtree(self.build_temp, ignore_errors=True)
                toolchain.parent.mkdir(parents=True)
                toolchain.write_text(text)
            super().run()
            (package / "_build.json").write_text(text)

        def build_extension(self, ext: Extension) -> None:
            top = self.build_temp
            self.build_temp = os.path.join(top, ext.name)  # the tiers share their sources: each has its own objects
            try:
                super().build_extension(ext)
            except Exception as error:
                hint = "PYGEN_BUILD_CUDA=0" if ext.name == "pygen._C_cuda" else "PYGEN_BUILD_CPP=0"
                raise SystemExit(f"pygen: {ext.name} failed to build ({error}); {hint} installs without it") from error
            finally:
                self.build_temp = top

    return {"build": Build, "build_py": BuildPy, "build_ext": BuildExt}


def main() -> None:
    try:
        modules, record = plan()
    except ValueError as error:
        raise SystemExit(f"pygen: {error}") from None
    setup(
        packages=[*find_packages(include=["pygen", "pygen.*"]), *FOLDERS],
        package_dir=FOLDERS,
        ext_modules=modules,
        cmdclass=commands(modules, record),
    )


if __name__ == "__main__":
    with contextlib.suppress(ImportError):  # pip called by its path leaves the environment's own ninja off PATH
        import ninja

        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, os.environ.get("PATH", "")])
    main()
