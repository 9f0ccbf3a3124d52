"""What the README shows runs as written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
COMMANDS = re.findall(r"```sh\n((?:pygen|torchrun) .*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.strip().splitlines()[1])
def test_example(example: str) -> None:
    exec(compile(example, str(README), "exec"), {})


@pytest.mark.parametrize("commands", COMMANDS, ids=lambda c: " ".join(c.split()[:2]))
def test_commands(commands: str, tmp_path: Path) -> None:
    for module in ("safetensors", "matplotlib", "sklearn"):
        pytest.importorskip(module)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        ["bash", "-e", "-c", commands], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    for out in re.findall(r"--out (\S+)", commands):
        assert (tmp_path / out).exists()
