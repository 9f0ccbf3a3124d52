"""Where nothing was compiled, and on devices without a kernel, an op runs its reference kernel under the gradient that
Python registers. On a CPU with kernels nothing else runs that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pygen import _ext

FOLDER = Path(__file__).parent
TESTS = (
    "test_numbers.py::test_options",
    "test_gradients.py",
    "test_dispatch.py::test_registration",
    "test_dispatch.py::test_metadata",
    "test_behaviour.py::test_functional",
    "test_behaviour.py::test_modes",
)


@pytest.mark.skipif(not _ext.tiers(), reason="this is that run")
def test_without_kernels():
    environment = {k: v for k, v in os.environ.items() if k != "PYGEN_REQUIRE_EXT"} | {"PYGEN_TEST_FALLBACK": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", *(str(FOLDER / test) for test in TESTS)]
    result = subprocess.run(
        command, env=environment, cwd=FOLDER.parents[1], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-5000:]
    assert "-fallback-" in result.stdout
