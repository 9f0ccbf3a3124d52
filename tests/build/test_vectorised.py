"""The machine code of every tier: kernels use full vectors, and no tier's code can be called from outside of it.

A tier whose macros or flags are wrong compiles, passes every numerical test and is scalar; only its code shows it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pygen import _ext

REGISTERS = {"AVX512": "%zmm", "AVX2": "%ymm"}

# Patterns in demangled names: the functions where a kernel's arithmetic is; rows may be inlined in their block.
KERNELS = [
    "forward_(block|rows)<float",
    "forward_(block|rows)<double",
    "backward_(block|rows)<float",
    "backward_(block|rows)<double",
    r"fill_sample<\(pygen::Distribution\)2>",  # normals
    "gate_(backward_)?rows<.*float>",
    "gate_(backward_)?rows<.*double>",
    "step_elements<.*float>",
    "step_elements<.*double>",
    "block_nll<.*float>",
    "block_nll<.*double>",
    "spline_lanes(_backward)?<.*float>",
    "spline_lanes(_backward)?<.*double>",
    "multiply_tile<float>",
    "multiply_tile<double>",
    "fma_chains<float>",
    "fma_chains<double>",
]
ARITHMETIC = re.compile(r"\tv?(?:add|sub|mul|div|max|min|sqrt|fn?m(?:add|sub)\d*)([ps])[sd]\s+(.*)")

pytestmark = [
    pytest.mark.skipif(not _ext.build["tiers"], reason=f"no native modules: {_ext.reason}"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not on PATH (Debian: apt install binutils)"),
]


def module(name: str) -> Path:
    (path,) = Path(_ext.__file__).parent.glob(f"{name}.*so")
    return path


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def functions(path: Path) -> dict[str, str]:
    """Disassembly of each function, by demangled name."""
    code = output("objdump", "--disassemble", "--demangle", "--no-show-raw-insn", path)
    blocks = (re.match(r"[0-9a-f]+ <(.*)>:\n", block) for block in code.split("\n\n"))
    return {match[1]: match.string for match in blocks if match}


@pytest.mark.parametrize("tier", REGISTERS)
def test_kernels_use_full_vectors(tier: str) -> None:
    if tier not in _ext.build["tiers"]:
        pytest.skip(f"{tier}: {_ext.build['reasons'][tier]}")
    code = functions(module(f"_K_{tier.lower()}"))
    for kernel in KERNELS:
        wide = 0
        for name, body in ((name, body) for name, body in code.items() if re.search(kernel, name)):
            operations = ARITHMETIC.findall(body)
            packed = sum(kind == "p" and REGISTERS[tier] in operands for kind, operands in operations)
            scalar = sum(kind == "s" for kind, _ in operations)
            # Adding up the lanes of an accumulator is scalar: at most 18 operations beside 59 in what was measured.
            assert packed >= 2 * scalar, f"{name} on {tier}: {packed} full vectors, {scalar} scalars"
            wide += packed
        assert wide >= 20, f"{kernel} on {tier}: {wide} operations on full vectors"


@pytest.mark.parametrize(("name", "foreign"), [("_C", "%[yz]mm"), ("_K_default", "%[yz]mm"), ("_K_avx2", "%zmm")])
def test_no_code_of_a_higher_tier(name: str, foreign: str) -> None:
    if name.startswith("_K_") and name[3:].upper() not in _ext.build["tiers"]:
        pytest.skip(f"{name} was not built")
    assert not re.search(foreign, output("objdump", "--disassemble", "--no-show-raw-insn", module(name)))


@pytest.mark.parametrize("tier", _ext.build["tiers"])
def test_a_tier_exports_its_table_alone(tier: str) -> None:
    # A weak torch or std:: function that AVX-512 compiled and exports would serve the whole process.
    name = f"_K_{tier.lower()}"
    exported = output("objdump", "--dynamic-syms", module(name)).splitlines()
    defined = {line.split()[-1] for line in exported if re.search(r"\.(text|data|rodata|bss)\b", line)}
    assert defined - {"__bss_start", "_edata", "_end"} == {f"PyInit_{name}"}
