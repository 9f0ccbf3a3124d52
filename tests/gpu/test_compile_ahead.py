"""Every Triton kernel, compiled ahead of time for several GPUs without one: it compiles, spills nothing, approximates
nothing.

The launchers get meta tensors, so kernels are specialised as in a real call; the compiler runs, the launch does not.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")
import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.driver import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

import pygen.kernels  # noqa: E402
import pygen.kernels.diffusion_loss  # noqa: E402
import pygen.kernels.diffusion_step  # noqa: E402
import pygen.kernels.sample_stats  # noqa: E402
from pygen._lib import OPS  # noqa: E402
from pygen.ops.diffusion_step import StepOptions  # noqa: E402
from tests.contract.params import few  # noqa: E402
from tests.gpu.on_triton import SPECS, Triton  # noqa: E402
from tests.harness.calls import backward, build, run, trainable, upstream_gradients  # noqa: E402
from tests.harness.combine import pairwise  # noqa: E402

ARCHS = (80, 90, 100)
LAYOUTS = ("contiguous", "channels_last", "sliced")

# Bytes of stack and local memory that a kernel may use: (kernel, arch) -> bytes, with the reason.
ALLOWED: dict[tuple[str, int], int] = {
    # float64, 64 x 64: ptxas stops at 128 registers, with which two programs fit a multiprocessor
    ("_polar_small", 80): 8,
    ("_polar_small", 100): 40,
    # 16-bit storage: two registers of a thread
    ("_nll", 80): 8,
    ("_nll", 100): 8,
    # ptxas stops at a number of registers (128, 168) with which several programs fit a multiprocessor
    **{(kernel, arch): 32 for kernel in ("_convolve", "_weight_gradient") for arch in ARCHS},
}

# Ops, or samples of them, that are matrix products of torch alone.
LIBRARY = {"trace_sqrt_product", "polar-large"}

# What tl.exp, `/`, tl.sqrt and fast functions compile to. libdevice's own functions also contain `ex2.approx.ftz` and
# `rcp.approx.ftz`, behind a range reduction and before a correction; tl.exp2 cannot be told from those.
APPROXIMATE = r"ex2\.approx\.f32|div\.full\S*|div\.approx\S*|lg2\.approx\S*|r?sqrt\.approx\S*|tanh\.approx\S*"

CASES = [
    pytest.param(spec, *row.values(), id="-".join(map(str, (spec, row["sample"].name, *list(row.values())[1:]))))
    for spec in SPECS
    if not spec.skips  # a backward op, which its forward one calls
    for row in pairwise(sample=[*few(spec), *spec.threaded()], dtypes=spec.dtypes, arch=ARCHS, layout=LAYOUTS)
]


class StandIn:
    """Answers for the driver of a GPU that is not there."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # Triton keeps what it compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture(scope="module", autouse=True)
def _fresh_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Launches become compilations; what was compiled is noted here."""
    kernels: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernels.append(run(self, *args, grid=grid, warmup=True, **kwargs))
        return kernels[-1]

    monkeypatch.setattr(JITFunction, "run", compile_only)
    return kernels


def memory_use(kernel: Any, tmp_path: Path) -> int:
    """Bytes of stack (where spills go) and local memory of a thread."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    report = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    ((stack, local),) = re.findall(r"STACK:(\d+).*LOCAL:(\d+)", report)
    return int(stack) + int(local)


def approximations(kernel: Any) -> list[str]:
    return re.findall(APPROXIMATE, kernel.asm["ptx"])


def judge(kernels: list[Any], arch: int, tmp_path: Path) -> None:
    for kernel in kernels:
        name = kernel.metadata.name
        used, allowed = memory_use(kernel, tmp_path), ALLOWED.get((name, arch), 0)
        assert used <= allowed, f"{name}: {used} bytes of stack and local memory, allowed {allowed}"
        assert not approximations(kernel), f"{name}: {set(approximations(kernel))} in its PTX"


@pytest.mark.parametrize(("spec", "sample", "dtypes", "arch", "layout"), CASES)
def test_compiles(spec, sample, dtypes, arch, layout, compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_active", StandIn(arch))
    with Triton("triton", "meta").active():
        call = trainable(spec, build(spec, sample, dtypes, layout, "meta"))
        outputs = run(spec, spec.function, call)
        if spec.order:
            backward(outputs, upstream_gradients(outputs, "contiguous"), call)
    assert bool(compiled) != bool({str(spec), f"{spec}-{sample}"} & LIBRARY), f"{len(compiled)} kernels were launched"
    judge(compiled, arch, tmp_path)


@pytest.mark.parametrize("arch", ARCHS)
def test_compiles_for_more_than_2_31_elements(arch, compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_active", StandIn(arch))
    x, params = (torch.empty(3, 4, 2**15, 2**14 + 1, device="meta", requires_grad=True) for _ in range(2))
    with Triton("triton", "meta").active():
        y, logdet = pygen.ops.affine_coupling(x, params, squash="tanh")
        torch.autograd.grad(y.sum() + logdet.sum(), [x, params])
    assert compiled, "no kernel was launched"
    judge(compiled, arch, tmp_path)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("dtype", "n"), [(torch.float32, n) for n in (32, 128)] + [(torch.float64, 32)], ids=str)
def test_polar_of_every_size(dtype, n, arch, compiled, tmp_path, monkeypatch):
    """16 and 64 are in the samples."""
    monkeypatch.setattr(driver, "_active", StandIn(arch))
    with Triton("triton", "meta").active():
        pygen.ops.polar(torch.empty(3, n, n - 1, dtype=dtype, device="meta"))
    assert compiled, "no kernel was launched"
    judge(compiled, arch, tmp_path)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_step_whose_coefficients_the_host_has_read(arch, compiled, tmp_path, monkeypatch):
    """And a bool mask. In the samples the table is on the device."""
    monkeypatch.setattr(driver, "_active", StandIn(arch))
    x, mask = (torch.empty(3, 70, dtype=dtype, device="meta") for dtype in (torch.float32, torch.bool))
    arguments = (x, [x], [x], torch.zeros(2, 14), None, 1, None, None, None, None, x, mask, None, None, 0, 0, 0)
    pygen.kernels.diffusion_step.launch_diffusion_step(*arguments, StepOptions(draws=True, copies=2))
    assert compiled, "no kernel was launched"
    judge(compiled, arch, tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("arch", ARCHS)
def test_a_loss_and_a_quantile_whose_coefficients_the_host_has_read(arch, dtype, compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_active", StandIn(arch))
    x, grad = torch.empty(3, 70, dtype=dtype, device="meta"), torch.empty(3, device="meta")
    table, types = torch.zeros(2, 3), [dtype] * 3
    pygen.kernels.diffusion_loss.launch_diffusion_loss(x, x, table, None, 1, None, True, None, 0, 0, 0, dtype)
    pygen.kernels.diffusion_loss.launch_diffusion_loss_backward(grad, x, grad, table, None, 1, *types)
    pygen.kernels.sample_stats.launch_quantile_abs(x, [x], table, None, 1, 0.5, None)
    assert compiled, "no kernel was launched"
    judge(compiled, arch, tmp_path)


def test_every_kernel_file_serves_an_op() -> None:
    """So that every file of kernels/ is under the tests of this folder."""
    folder = Path(pygen.kernels.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert files == {op.family for op in OPS.values() if op.cuda == "triton"}


@triton.jit
def _careless(x, N: tl.constexpr):
    i = tl.arange(0, N)
    v = tl.load(x + i)
    tl.store(x + i, tl.exp(v - tl.max(v, 0)) / tl.sqrt(v))  # all of v at once, in too few registers


def test_what_is_careless_is_seen(compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_active", StandIn(90))
    _careless[(1,)](torch.empty(4096, device="meta"), N=4096, num_warps=1, maxnreg=24)
    (kernel,) = compiled
    assert memory_use(kernel, tmp_path) > 0
    assert {word.split(".")[0] for word in approximations(kernel)} == {"ex2", "div", "sqrt"}
