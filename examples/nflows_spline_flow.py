"""A neural spline flow of nflows on two moons, trained with nflows' splines and with pygen's in their place.

    pip install nflows
    python examples/nflows_spline_flow.py [--steps 300]

The model is nflows' own and does not change. Seed, data and order are the same, and so
are the losses, but for rounding.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.nn.nets import ResidualNet
from nflows.transforms import CompositeTransform, LULinear, PiecewiseRationalQuadraticCouplingTransform

from pygen.integrations.nflows import patch


def moons(n: int) -> torch.Tensor:
    """Two half circles, [n, 2]."""
    angle, upper = torch.pi * torch.rand(n), torch.rand(n) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    return torch.stack([x, y], 1) + 0.05 * torch.randn(n, 2)


def spline_flow(features: int = 2, layers: int = 8) -> Flow:
    transforms = []
    for i in range(layers):
        transforms += [
            PiecewiseRationalQuadraticCouplingTransform(
                mask=(torch.arange(features) + i) % 2,
                transform_net_create_fn=lambda inputs, outputs: ResidualNet(inputs, outputs, hidden_features=32),
                num_bins=8,
                tails="linear",
                tail_bound=3.0,
            ),
            LULinear(features),
        ]
    return Flow(CompositeTransform(transforms), StandardNormal([features]))


def train(steps: int) -> tuple[float, list[float]]:
    """Seconds, and the losses."""
    torch.manual_seed(0)
    flow = spline_flow()
    optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
    losses = []
    start = time.perf_counter()
    for _ in range(steps):
        loss = -flow.log_prob(moons(512)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return time.perf_counter() - start, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of training (default: 300)")
    steps = max(1, parser.parse_args().steps)
    seconds = {}
    for name, context in (("nflows", nullcontext), ("patched", patch)):
        with context():
            seconds[name], losses = train(steps)
        print(f"{name:8} {1000 * seconds[name] / steps:6.1f} ms a step, nats: {losses[0]:.4f} at first, "
              f"{sum(losses[-10:]) / len(losses[-10:]):.4f} at last")  # fmt: skip
    print(f"{seconds['nflows'] / seconds['patched']:.2f} times as fast")


if __name__ == "__main__":
    main()
