"""Installing pygen in every way users do, with every tool missing or broken in turn.

Only `test_wheel_of_the_sdist` compiles the real kernels; what the others ask is answered by modules without kernels.
"""

from __future__ import annotations

import json
import platform
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from .conftest import PROJECT, Environment, copy_tree
from .test_decisions import program

pytestmark = [
    pytest.mark.slow_build,
    pytest.mark.skipif(platform.system() != "Linux", reason="native kernels are built on Linux only"),
]

TIERS = ["DEFAULT", "AVX2", "AVX512"] if platform.machine() == "x86_64" else ["DEFAULT"]
SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"


def binaries(package: Path) -> list[str]:
    return sorted(path.name.split(".")[0] for path in package.glob("*.so"))


BINARIES = sorted(["_C", *(f"_K_{tier.lower()}" for tier in TIERS)])


def test_without_a_compiler(tiny: Path, environment: Environment) -> None:
    tools = {"PATH": str(tiny / "no_tools")}
    said = environment.install(tiny, check=False, PYGEN_REQUIRE_EXT="1", **tools)
    assert "pygen: there is no C++ compiler: c++ was not found" in said
    assert not environment.package.exists()

    environment.install(tiny, **tools)
    state = environment.state()
    assert Path(state["file"]).parent == environment.package
    assert state["tier"] is None
    assert state["reason"] == "there is no C++ compiler: c++ was not found (install g++, or name one in CXX)"
    assert state["warnings"] == [f"pygen: CPU ops run the plain PyTorch reference: {state['reason']}"]
    assert not state["cuda"]
    assert state["cuda_reason"] == state["reason"]
    environment.run(
        "-W", "ignore", "-c", "import torch, pygen; pygen.ops.affine_coupling(torch.ones(1, 2), torch.ones(1, 2))"
    )

    imported = environment.run("-c", "import pygen", check=False, PYGEN_REQUIRE_EXT="1")
    assert imported.returncode != 0
    assert f"ImportError: pygen: CPU ops run the plain PyTorch reference: {state['reason']}" in imported.stderr


def test_without_torch(tiny: Path, environment: Environment) -> None:
    (environment.root / "torch.py").write_text("raise ImportError('hidden')")
    hidden = {"PYTHONPATH": str(environment.root)}
    said = environment.install(tiny, check=False, PYGEN_REQUIRE_EXT="1", **hidden)
    reason = "torch could not be imported at build time (hidden): install it, then reinstall pygen"
    assert f"pygen: {reason} (PYGEN_REQUIRE_EXT=1)" in said
    environment.install(tiny, **hidden)
    (environment.root / "torch.py").unlink()
    state = environment.state()
    assert state["build"]["torch"] is None
    assert state["tier"] is None
    assert state["reason"] == reason


def test_a_failing_compiler_is_an_error(tiny: Path, environment: Environment) -> None:
    broken = program(tiny / "g++", 'test "$1" = --version && exec c++ --version; echo out of order >&2; exit 1')
    said = environment.install(tiny, check=False, CXX=str(broken))
    assert "out of order" in said
    assert "pygen: pygen._C failed to build" in said
    assert "PYGEN_BUILD_CPP=0 installs without it" in said
    assert not environment.package.exists()


def test_plain_pip_install_and_another_torch_at_run_time(tiny: Path, environment: Environment) -> None:
    environment.install(tiny, isolated=True)
    state = environment.state(PYGEN_REQUIRE_EXT="1")
    assert Path(state["file"]).parent == environment.package
    assert binaries(environment.package) == BINARIES
    assert state["build"]["torch"] == torch.__version__
    assert state["build"]["tiers"] == TIERS
    assert state["tier"] == state["tiers"][0]
    assert state["warnings"] == []
    for tier in state["tiers"]:
        lower = environment.state(ATEN_CPU_CAPABILITY=tier.lower())
        assert lower["tier"] == tier

    record = environment.package / "_build.json"
    record.write_text(json.dumps(state["build"] | {"torch": "2.9.1"}))
    state = environment.state()
    assert state["tier"] is None
    assert state["reason"] == f"built for torch 2.9.1, running torch {torch.__version__}: reinstall pygen"
    assert len(state["warnings"]) == 1
    imported = environment.run("-c", "import pygen", check=False, PYGEN_REQUIRE_EXT="1")
    assert "ImportError" in imported.stderr
    assert state["reason"] in imported.stderr


def test_editable_and_nothing_stale(tiny: Path, environment: Environment) -> None:
    environment.install("--editable", tiny)
    code = "import pygen.kernels, pygen.benchmarks; print(pygen.kernels.__file__, pygen.benchmarks.__file__)"
    found = environment.run("-c", code).stdout.split()
    assert [Path(path).parent for path in found] == [tiny / "kernels", tiny / "benchmarks"]
    assert environment.state(PYGEN_REQUIRE_EXT="1")["tiers"]
    assert binaries(tiny / "pygen") == BINARIES

    # A warning is an error on request, and an error leaves no module of the former build behind for its place.
    tier = tiny / "csrc" / "cpu" / "tier" / "module.cpp"
    sound = tier.read_text()
    tier.write_text(sound + "static void nobody() {}\n")
    said = environment.install("--editable", tiny, check=False, PYGEN_WERROR="1")
    assert "nobody" in said
    assert "PYGEN_BUILD_CPP=0 installs without it" in said
    assert not set(binaries(tiny / "pygen")) & {name for name in BINARIES if name.startswith("_K")}
    assert not (tiny / "pygen" / "_build.json").exists()
    assert "there is no build record" in environment.state()["reason"]

    tier.write_text(sound)
    environment.install("--editable", tiny)
    assert environment.state(PYGEN_REQUIRE_EXT="1")["tiers"]
    environment.install("--editable", tiny, PYGEN_BUILD_CPP="0")
    assert binaries(tiny / "pygen") == []
    assert environment.state()["reason"] == "PYGEN_BUILD_CPP=0"


def test_a_wheel_holds_nothing_of_an_earlier_build(tiny: Path, environment: Environment) -> None:
    def wheel() -> zipfile.ZipFile:
        command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", environment.root, tiny]
        environment.run(*command, PYGEN_BUILD_CPP="0")
        (path,) = environment.root.glob("*.whl")
        return zipfile.ZipFile(path)

    gone = tiny / "pygen" / "gone.py"
    gone.write_text("")
    assert "pygen/gone.py" in wheel().namelist()
    gone.unlink()
    # What an editable install leaves in the sources, and an earlier wheel in the build folder.
    (built,) = (tiny / "build").glob("lib*/pygen")
    for folder in (tiny / "pygen", built):
        (folder / "_C.cpython-39-x86_64-linux-gnu.so").write_text("stale")
        (folder / "_build.json").write_text("stale")
    with wheel() as archive:
        assert not [name for name in archive.namelist() if name.endswith((".so", "gone.py"))]
        record = json.loads(archive.read("pygen/_build.json"))
    assert record["tiers"] == []
    assert record["reasons"]["cpu"] == "PYGEN_BUILD_CPP=0"


def sources(tree: Path) -> set[str]:
    folders = ("csrc", "kernels", "benchmarks", "pygen", "tests")
    paths = (path for folder in folders for path in (tree / folder).rglob("*"))
    return {str(path.relative_to(tree)) for path in paths if path.is_file() and "__pycache__" not in path.parts}


def test_wheel_of_the_sdist(tmp_path: Path, environment: Environment) -> None:
    tree = copy_tree(tmp_path / "tree")
    expected = sources(tree)
    environment.run("-c", SDIST, tmp_path, cwd=tree)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    others = {"setup.py", "pyproject.toml", "Makefile", "LICENSE", ".clang-format", ".ci/run"}
    assert expected | others <= members
    assert not [name for name in members if name.endswith((".so", ".pyc", "_build.json"))]

    environment.install(sdist, isolated=True, PYGEN_REQUIRE_EXT="1")
    package = environment.package
    assert binaries(package) == BINARIES
    python = {name for name in expected if name.endswith(".py")}
    installed = {str(path.relative_to(environment.site)) for path in package.rglob("*.py")}
    moved = {name for name in python if name.startswith("pygen/")}
    moved |= {f"pygen/{name}" for name in python if name.startswith(("kernels/", "benchmarks/"))}
    assert installed == moved
    assert (package / "py.typed").is_file()
    assert not list(package.rglob("*.cpp"))
    assert "pygen" in {path.name for path in (environment.root / "bin").iterdir()}

    code = """
import torch, pygen
from pygen import _ext, ops, reference
x, params = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
for tier in _ext.tiers():
    _ext.use(tier)
    for ours, theirs in zip(ops.affine_coupling(x, params), reference.affine_coupling(x, params)):
        torch.testing.assert_close(ours, theirs)
    print(tier, pygen.backends.explain("affine_coupling", x).backend)
"""
    ran = environment.run("-c", code, PYGEN_REQUIRE_EXT="1").stdout.splitlines()
    assert ran
    assert all(line.endswith(" native") for line in ran)


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is a CPU build")
def test_cuda_module(tiny: Path, environment: Environment) -> None:
    for path in (PROJECT / "tests" / "cuda").glob("probe.*"):
        (tiny / "csrc" / "cuda" / path.name).write_bytes(path.read_bytes())
    environment.install(tiny, PYGEN_BUILD_CUDA="1")
    state = environment.state(PYGEN_REQUIRE_EXT="1")
    assert state["cuda"]
    assert state["build"]["archs"]
    if torch.cuda.is_available():
        code = "import pygen, torch; print(torch.ops.pygen_probe.scale(torch.arange(3.0).cuda(), 2.0).tolist())"
        assert environment.run("-c", code).stdout.strip() == "[0.0, 2.0, 4.0]"
