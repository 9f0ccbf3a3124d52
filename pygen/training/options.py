"""What decides the result of a run."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from .._arguments import check_integer

SCHEDULES = ("cosine", "constant")
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Options:
    """Options of a training run.

    batch_size: samples a step, of all processes together.
    lr, schedule, warmup: the learning rate rises for `warmup` steps (None: a tenth of all), then stays at `lr` or falls
        to 0 along a cosine.
    clip: largest norm of the gradient.
    ema: decay of the moving average of the weights, which is what a run is for; less in the first steps.
    precision: what torch's matrix products and convolutions compute in (autocast); weights are float32, and so is what
        pygen's own ops make of them, which leave autocast alone.
    seed: of the first weights, the data's order, dropout and noise.
    """

    steps: int = 2000
    batch_size: int = 128
    lr: float = 2e-3
    schedule: str = "cosine"
    warmup: int | None = None
    clip: float = 1.0
    weight_decay: float = 1e-4
    ema: float = 0.999
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.warmup is None:
            object.__setattr__(self, "warmup", max(1, self.steps // 10))
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup", 0), ("seed", 0)):
            check_integer(name, getattr(self, name), least)
        for name in ("lr", "clip", "weight_decay"):
            value = getattr(self, name)
            if not 0 <= value < math.inf or (value == 0 and name != "weight_decay"):
                raise ValueError(
                    f"expected {name} as a positive number{' or 0' * (name == 'weight_decay')}, got {value}"
                )
        if not 0 <= self.ema < 1:
            raise ValueError(f"expected 0 <= ema < 1, got {self.ema}")
        for name, known in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"expected {name} as one of {', '.join(known)}, got {getattr(self, name)!r}")

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        falling = 0.5 + 0.5 * math.cos(math.pi * step / self.steps) if self.schedule == "cosine" else 1.0
        return self.lr * rising * falling

    def decay(self, step: int) -> float:
        """The decay of the average at a step: a young average forgets its first weights sooner."""
        return min(self.ema, (1 + step) / (10 + step))

    def seed_of(self, what: str, *numbers: int) -> int:
        """A seed of 63 bits for one use at one place: what is drawn there depends on nothing that was drawn before."""
        text = " ".join(map(str, (self.seed, what, *numbers)))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
