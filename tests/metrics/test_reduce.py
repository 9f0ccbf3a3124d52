"""StreamingMoments over processes, by torchrun: every process gets what all have seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, distributed

from pygen.metrics import StreamingMoments

from ..training.test_kills import ENVIRONMENT


def features() -> Tensor:
    """Their mean drifts, so that processes which start at different rows take different shifts."""
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    return x + torch.arange(60)[:, None]


def processes() -> None:
    """Run by each of three: rows for the last two in turns, none for the first; and none for any."""
    from pygen import ranks

    with ranks.group():
        moments, nothing = StreamingMoments(5), StreamingMoments(5)
        for i, part in enumerate(features().split(12)):
            if ranks.rank() == 1 + i % 2:
                moments.update(part)
        for reduced in (moments, nothing):
            reduced.reduce()
        assert (moments.count, nothing.count) == (60, 0)
        mu, sigma = moments.statistics()
        torch.testing.assert_close(mu, features().double().mean(0), rtol=1e-6, atol=0)
        torch.testing.assert_close(sigma, features().double().T.cov(), rtol=1e-6, atol=0)
        everywhere = [torch.empty_like(sigma) for _ in range(3)]
        distributed.all_gather(everywhere, sigma)
        assert all(torch.equal(other, sigma) for other in everywhere)


def test_three_processes(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from tests.metrics.test_reduce import processes\n"
        "processes()\n"
    )
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    done = subprocess.run(
        [*run, str(tmp_path / "script.py")], env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
