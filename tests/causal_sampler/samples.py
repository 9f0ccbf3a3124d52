"""What the contract suite tries cached sampling with: programs by hand, whose sums are exact in every dtype."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pygen import ops, reference
from pygen.program import HEAD, ROW, Plane, Program, Read, Stage, pack
from tests.harness.calls import random
from tests.harness.spec import BF16, F32, F64, ErrorInput, OpSpec, Sample, register

LEVELS = 3  # -1, 0, 1 in an image's plane


def program(height: int, width: int, hidden: int = 5, channels: int = 1) -> Program:
    """A plane of the row above and, for each group, one of what lies to the left, rectified; their logits."""
    above = (Read(0, -1, -1, 0, channels), Read(0, -1, 1, 0, channels))
    output = 2 + channels
    stages = [Stage(1, 0, hidden, 0, 1, 0, phase=ROW, reads=above)]
    for group in range(channels):
        own, first = 2 + group, 2 + 3 * group
        reads = (Read(0, 0, -1, 0, channels), *([Read(0, 0, 0, 0, group)] if group else []))
        stages.append(Stage(own, 0, hidden, first, start=1, activation=1, group=group, reads=reads))
        last = (Read(own, 0, 0, 0, hidden),)
        stages.append(Stage(output, 0, LEVELS, first + 1, first + 2, phase=HEAD, group=group, reads=last))
    planes = (Plane(channels), *[Plane(hidden)] * (1 + channels), Plane(LEVELS))
    tensors = 2 + 3 * channels
    return Program(
        height, width, channels, LEVELS, channels, "categorical", 1, "openai", output, tensors, 1, planes, tuple(stages)
    )


def eighths(name: str, *shape: int) -> Tensor:
    return (random(name, *shape) * 8).round() / 8


def tensors(name: str, p: Program) -> dict[str, Tensor]:
    """By the names of `call`'s arguments, in float64."""
    shapes: dict[int, tuple[int, ...]] = {}
    for s in p.stages:
        shapes[s.weight] = (s.depth, s.outputs)
        if s.bias >= 0:
            shapes[s.bias] = (s.outputs,)
    drawn = [eighths(f"{name} {i}", *shapes[i]) for i in sorted(shapes)]
    return {f"t{i}": pack(t) if t.dim() == 2 else t for i, t in enumerate(drawn)}


def call(
    x: Tensor,
    known: Tensor,
    condition: Tensor,
    program: Program,
    noise: Tensor | None = None,
    generator: int = 0,
    step: int = 0,
    draw: int = 0,
    offset: int = 0,
    options: tuple[tuple[str, Any], ...] = (),
    **given: Tensor,
) -> Tensor:
    """The levels that are drawn."""
    own = [given[f"t{i}"] for i in range(program.tensors)]
    where = {"generator": generator, "step": step, "draw": draw, "offset": offset}
    return ops.causal_sampler(program, own, x, known, [condition], noise=noise, **where, **dict(options))[0]


def truth(
    x: Tensor,
    known: Tensor,
    condition: Tensor,
    program: Program,
    noise: Tensor | None = None,
    generator: int = 0,
    step: int = 0,
    draw: int = 0,
    offset: int = 0,
    options: tuple[tuple[str, Any], ...] = (),
    **given: Tensor,
) -> Tensor:
    """The same, for samples 0, 1, ..."""
    own = [given[f"t{i}"] for i in range(program.tensors)]
    where = {"seed": generator, "step": draw << 24 | step, "offset": offset}
    return reference.causal_sampler(program, own, [condition], x, known, noise, **where, **dict(options))[0]


def sample(
    name: str, batch: int, height: int, width: int, hidden: int = 5, channels: int = 1, **options: Any
) -> Sample:
    p = program(height, width, hidden, channels)
    shape = (batch, channels, height, width)
    traits = {"channels": channels, **options, "noise": options.pop("noise", False), "known": options.pop("known", 0.0)}
    x = (random(f"{name} x", *shape).sigmoid() * LEVELS).long()
    known = random(f"{name} known", *shape).sigmoid() < traits["known"]
    inputs: dict[str, Tensor | None] = {"x": x, "known": known, "condition": eighths(f"{name} c", batch, hidden)}
    if traits["noise"]:
        inputs["noise"] = random(f"{name} noise", *shape).sigmoid()
    inputs |= tensors(name, p)
    where = {"generator": 2**64 - 5, "step": 3, "draw": 1, "offset": 5}
    return Sample(name, inputs, {"program": p, "options": tuple(options.items()), **where}, traits)


def samples() -> Iterator[Sample]:
    yield sample("grey", 3, 4, 5)
    yield sample("colour", 2, 3, 3, channels=3, known=0.5)
    yield sample("known", 3, 4, 5, known=0.7)
    yield sample("all known", 2, 2, 2, known=1.0)
    yield sample("noise", 3, 2, 5, noise=True)
    yield sample("cold", 3, 3, 3, temperature=0.0)
    yield sample("warm", 3, 3, 3, temperature=2.0)
    yield sample("top_k", 3, 3, 3, top_k=2)
    yield sample("top_p", 3, 3, 3, top_p=0.5)


def errors() -> Iterator[ErrorInput]:
    good = sample("errors", 2, 3, 4)
    given = {name: t if t is None or not t.is_floating_point() else t.float() for name, t in good.inputs.items()}
    given |= {"program": good.options["program"], "generator": 0}

    def bad(name: str, error: type[Exception], *words: str, by_value: bool = False, **changed: Any) -> ErrorInput:
        return ErrorInput(name, {**given, **changed}, error, words, by_value)

    x, known, weight = given["x"], given["known"], given["t0"]
    yield bad("type of x", ValueError, "int64", "uint8", x=x.byte())
    yield bad("rank of x", ValueError, "[B, C, H, W]", x=x[0])
    yield bad("shape of known", ValueError, "known", "(1, 1, 3, 4)", known=known[:1])
    yield bad("type of known", ValueError, "bool", "int64", known=known.long())
    yield bad("type of weights", TypeError, "float16", t0=weight.half(), t2=weight.half())
    yield bad("mixed weights", TypeError, "tensor 2", "float64", t2=given["t2"].double())
    yield bad("type of a condition", TypeError, "condition 0", condition=given["condition"].double())
    yield bad("shape of noise", ValueError, "noise", "(2, 4, 3, 4)", noise=torch.zeros(2, 4, 3, 4))
    yield bad("type of noise", TypeError, "noise", "int64", noise=torch.zeros(2, 1, 3, 4).long())
    yield bad("temperature", ValueError, "temperature", "-1.0", options=(("temperature", -1.0),))
    yield bad("top_k", ValueError, "top_k", "-1", options=(("top_k", -1),))
    yield bad("top_p", ValueError, "top_p", "0.0", options=(("top_p", 0.0),))
    yield bad("level", ValueError, "[0, 3)", "got 3", by_value=True, x=torch.full_like(x, 3), known=~known | True)
    yield bad("noise", ValueError, "[0, 1)", by_value=True, noise=torch.ones(2, 1, 3, 4))
    yield bad("size", ValueError, "x [B, 1, 3, 4]", by_value=True, x=x[..., :3], known=known[..., :3])
    yield bad("shape of a weight", ValueError, "tensor 0", by_value=True, t0=weight[:, :1])
    yield bad("shape of a condition", ValueError, "condition 0", by_value=True, condition=given["condition"][:1])


register(
    OpSpec(
        name="causal_sampler",
        function=call,
        reference=truth,
        outputs=("levels",),
        roles={"condition": "accumulate", "noise": "data"}
        | {f"t{i}": "accumulate" if i in (1, 4, 7, 10) else "data" for i in range(11)},
        batched=frozenset({"x", "known", "condition", "noise", "levels"}),
        order=0,
        dtypes=(F32, F64, BF16),
        samples=samples,
        shapes=lambda: (
            sample("x".join(map(str, s)), *s)
            for s in ((0, 3, 3), (1, 1, 1), (1, 1, 17), (2, 7, 1), (33, 2, 3), (5, 2, 2, 63), (2, 2, 2, 33, 3))
        ),
        threaded=lambda: [sample("threaded", 37, 5, 7, 40)],
        errors=errors,
        exact=True,
        public=False,
    )
)
