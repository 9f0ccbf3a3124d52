"""made_inverse and its backward, as the contract suite (tests/harness) sees them: lists as inputs of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from itertools import pairwise as neighbours
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import pygen
from pygen import ops
from pygen.ops.made_inverse import MadeOptions, _own
from pygen.reference import made_inverse as reference
from tests.harness.calls import Call, build, evaluate, random, raw_call
from tests.harness.combine import pairwise
from tests.harness.spec import (
    ALL_DTYPES,
    F64,
    Dtypes,
    ErrorInput,
    OpSpec,
    Sample,
    register,
)

MOST = 6  # layers, that of the parameters included

Degrees = tuple[tuple[int, ...], ...]


def layers(given: dict[str, Tensor | None], degrees: Degrees) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights, biases (b: for all samples, c: of each) and degrees."""
    weights = [given[f"w{i}"] for i in range(MOST) if given.get(f"w{i}") is not None]
    biases = [given.get(f"c{i}") if given.get(f"b{i}") is None else given[f"b{i}"] for i in range(len(weights))]
    return weights, biases, [torch.tensor(d) for d in degrees]  # type: ignore[return-value]


def call(y: Tensor, degrees: Degrees, options: Sequence[tuple[str, Any]] = (), **given: Tensor | None) -> Any:
    """The public function, of layers by name."""
    return ops.made_inverse(y, *layers(given, degrees), **dict(options))


def truth(y: Tensor, degrees: Degrees, options: Sequence[tuple[str, Any]] = (), **given: Tensor | None) -> Any:
    """The reference, likewise."""
    return reference.made_inverse(y, *layers(given, degrees), **dict(options))


# --- samples ----------------------------------------------------------------------------------------------------------

TRANSFORMS: dict[str, tuple[int, dict[str, Any]]] = {  # parameters of a feature, options
    "maf": (2, {"activation": "softplus", "eps": 1e-3}),
    "exp": (2, {"squash": "tanh"}),
    "before": (2, {"activation": "sigmoid", "offset": 2.0, "shift": "before", "order": "ts", "shift_scale": 0.5}),
    "bounded": (2, {"squash": "softsign", "gain": 1.5, "width": 2.0, "order": "ts", "max_scale": 1.2}),
    "additive": (1, {"activation": "additive"}),
    "spline": (14, {"transform": "spline", "bounds": 3.0}),
    "ends": (10, {"transform": "spline", "bounds": 3.0, "style": "zuko"}),
    "circular": (9, {"transform": "spline", "bounds": 3.0, "tails": "circular", "min_width": 0.05}),
    "bare": (7, {"transform": "spline", "bounds": (-1.0, 2.0, -9.0, 9.0), "tails": None}),
}
FACTORS: dict[str, tuple[Any, ...]] = {
    "transform": tuple(TRANSFORMS),
    "net": (("relu", True), ("tanh", True), ("silu", False), ("elu", False), ("leaky_relu", False), ("sigmoid", True)),
    "hidden": (1, 2, 3, 5),
    "order": ("natural", "reversed", "shuffled", "blocks", "gaps"),
    "per_sample": (False, True),
}


def degrees_of(order: str, features: int, units: int, hidden: int) -> Degrees:
    """As nflows has them, with its inputs in another order; inputs that share degrees; degrees of a wide range, of
    which the hidden ones rise from layer to layer, beyond and below those of the inputs."""
    natural = tuple(range(1, features + 1))
    inputs = {
        "natural": natural,
        "reversed": natural[::-1],
        "shuffled": tuple(int(i) + 1 for i in random(f"degrees {features}", features).argsort()),
        "blocks": tuple(i // 2 for i in range(features)),
        "gaps": tuple(10 * i for i in natural),
    }[order]
    most = max(1, features - 1)
    if order == "gaps":
        own = [tuple((7 * i + 3 * j) % (10 * features) + 5 * j for i in range(units)) for j in range(hidden)]
        rising = [own[0]]
        for of_layer in own[1:]:
            rising.append(tuple(max(a, b) for a, b in zip(of_layer, rising[-1], strict=True)))
        return (inputs, *rising)
    return (inputs, *[tuple(i % most + min(1, features - 1) for i in range(units))] * hidden)


def sample(
    name: str,
    batch: int,
    features: int,
    units: int = 7,
    transform: str = "maf",
    net: tuple[str, bool] = ("relu", True),
    hidden: int = 3,
    order: str = "natural",
    per_sample: bool = False,
) -> Sample:
    nonlinearity, residual = net
    hidden += residual and hidden % 2 == 0
    parameters, own = TRANSFORMS[transform]
    degrees = degrees_of(order, features, units, hidden)
    sizes = [*map(len, degrees), features * parameters]
    inputs: dict[str, Tensor | None] = {"y": random(f"{name} y", batch, features)}
    if own.get("tails", "") is None:
        inputs["y"] = random(f"{name} y", batch, features).clamp(-4, 4)
    for i, (below, outputs) in enumerate(neighbours(sizes)):
        inputs[f"w{i}"] = random(f"{name} w{i}", outputs, below) / below**0.5
        of_samples = per_sample and i in (0, 1, hidden)
        inputs[f"c{i}" if of_samples else f"b{i}"] = random(
            f"{name} b{i}", *((batch, outputs) if of_samples else (outputs,))
        )
    options = {"nonlinearity": nonlinearity, "residual": residual, **own}
    traits = {"transform": transform, "net": net, "order": order, "per_sample": per_sample}
    return Sample(name, inputs, {"degrees": degrees, "options": tuple(options.items())}, traits)


def samples() -> Iterator[Sample]:
    for i, row in enumerate(pairwise(**FACTORS)):
        yield sample(f"{i:02d}-{row['transform']}-{row['order']}", 3, 4, **row)


BATCHES = (0, 1, 2, 7, 8, 15, 16, 17, 33, 64, 65, 130)


def shapes() -> Iterator[Sample]:
    forms = cycle(pairwise(**FACTORS))
    for batch in BATCHES:
        yield sample(f"batch {batch}", batch, 3, **next(forms))
    for features in (1, 2, 5, 9, 17):
        for units in (1, 2, 6, 13, 40):
            yield sample(f"{features} features, {units} units", 5, features, units, **next(forms))


def threaded() -> Iterator[Sample]:
    yield sample("residual", 203, 11, 40, hidden=5)
    yield sample("spline", 150, 6, 33, "spline", ("silu", False), 2, "shuffled", per_sample=True)


def draw() -> st.SearchStrategy[Sample]:
    rows = st.sampled_from(pairwise(**FACTORS))
    sizes = st.tuples(st.integers(0, 70), st.integers(1, 9), st.integers(1, 20))
    return st.builds(lambda row, s: sample("drawn", *s, **row), rows, sizes).filter(_tame)


def _tame(s: Sample) -> bool:
    """Whether no feature's scale sends the later ones off, to where even float64 is infinite."""
    x, logabsdet = truth(**s.inputs, **s.options)
    return not x.numel() or bool((x.abs().max() < 1e3) & logabsdet.isfinite().all())


# --- what is not admitted ---------------------------------------------------------------------------------------------


def errors() -> Iterator[ErrorInput]:
    good = sample("errors", 3, 4, hidden=1)
    given = {name: None if t is None else t.float() for name, t in good.inputs.items()} | dict(good.options)
    degrees = good.options["degrees"]

    def bad(name: str, error: type[Exception], *words: str, by_value: bool = False, **changed: Any) -> ErrorInput:
        if "also" in changed:
            changed["options"] = (*good.options["options"], *changed.pop("also").items())
        return ErrorInput(name, {**given, **changed}, error, words, by_value)

    y, w, b = given["y"], given["w0"], given["b0"]
    yield bad("rank of y", ValueError, "[B, D]", "[4]", y=y[0])
    yield bad("no features", ValueError, "D > 0", y=y[:, :0])
    yield bad("type of y", TypeError, "int64", y=y.long())
    yield bad("type of weights", TypeError, "weights", "float64", w0=w.double())
    yield bad("mixed weights", TypeError, "weights[1]", "float16", w1=given["w1"].half())
    yield bad("type of a bias", TypeError, "biases[0]", "float64", b0=b.double())
    yield bad("shape of weights", ValueError, "weights[0]", "[7, 4]", "[7, 3]", w0=w[:, :3])
    yield bad("shape of a bias", ValueError, "biases[0]", "[3, 7]", "[2, 7]", b0=b.expand(2, 7))
    yield bad("features of degrees", ValueError, "degrees[0]", "4 features", "3", degrees=(degrees[0][:3], degrees[1]))
    yield bad("layers", ValueError, "2, 2 and 3", degrees=(*degrees, degrees[1]))
    yield bad("outputs", ValueError, "2 outputs", "1", w1=given["w1"][:4], b1=given["b1"][:4])
    yield bad("outputs that do not divide", ValueError, "weights[1]", w1=given["w1"][:7], b1=given["b1"][:7])
    plain = sample("errors", 3, 4, hidden=2, net=("relu", False))
    two = {name: None if t is None else t.float() for name, t in plain.inputs.items()}
    yield bad(
        "layers of a residual net", ValueError, "1 + 2 x blocks", "got 2", **two, degrees=plain.options["degrees"]
    )
    three = sample("errors", 3, 4, hidden=3)
    two = {name: None if t is None else t.float() for name, t in three.inputs.items()}
    a, *rest = three.options["degrees"]
    falls = {"degrees": (a, *rest[:-1], tuple(0 for _ in rest[-1]))}
    yield bad("degree that falls", ValueError, "1 and then 0", "unit 0", by_value=True, **two, **falls)
    yield bad("nonlinearity", ValueError, "nonlinearity", "'gelu'", also={"nonlinearity": "gelu"})
    yield bad("type of residual", TypeError, "residual", "1", also={"residual": 1})
    yield bad("transform", ValueError, "transform", "'cubic'", also={"transform": "cubic"})
    yield bad("option of another transform", TypeError, "bounds", also={"bounds": 1.0})
    yield bad("value of an option", ValueError, "eps", "-1", also={"eps": -1.0})
    yield bad("parameters of a spline", ValueError, "bins", options=(("transform", "spline"),))
    yield bad("knots", ValueError, "'knots'", options=(("transform", "spline"), ("style", "knots")))
    bare = sample("errors", 3, 4, hidden=1, transform="bare")
    outside = {name: None if t is None else t.float() for name, t in bare.inputs.items()}
    outside |= {"y": torch.full((3, 4), 9.5), "options": bare.options["options"]}
    yield bad("beyond the bounds", ops.InputOutsideDomain, "[-9, 9]", "9.5", by_value=True, **outside)


# --- the specs --------------------------------------------------------------------------------------------------------

OF_LAYERS = {f"{kind}{i}": "parameters" for i in range(MOST) for kind in "wbc"}
OF_SAMPLES = frozenset(f"c{i}" for i in range(MOST))
BATCHED = frozenset({"y", "x", "logabsdet", "grad_total"}) | OF_SAMPLES


def allowance(
    spec: OpSpec, s: Sample, inputs: Any, outputs: Any, upstream: Any, dtypes: Dtypes
) -> dict[str, Tensor | float]:
    """What y would change that is off by a few units in the last place, at most in a sample or a weight: rounding early
    in the sweep is like that, and how much of it there is in eager, and where, is luck. The backward of 16-bit y keeps
    an x that was rounded to that, which may put a unit on the other side of a kink: units of its own last place, and
    what they change at most anywhere. An allowance, also of 0, excuses gradients of weights from where NaN may be: the
    net is run whole for them, in which a NaN times a zero is one."""
    y = inputs["y"]
    short = dtypes.data.itemsize == 2
    eps = 4 * torch.finfo(dtypes.data).eps if short else 8 * torch.finfo(dtypes.accumulate).eps
    step = eps * float(y.abs().max() if y.numel() else 0)
    ways = [torch.zeros_like(y), torch.ones_like(y), -torch.ones_like(y)]
    if short:  # every element its own way: which unit passes its kink is luck
        ways += [random(f"{s.name} way {i}", *y.shape).sign() for i in range(8)]
    results = []
    for way in ways:
        moved, grads = evaluate(spec, spec.reference, Call(inputs | {"y": y + way * step}, s.options), upstream)
        results.append(moved | grads)
    here, *moved_by = results

    def most(name: str) -> Tensor:
        moved = torch.stack([(t[name] - here[name]).abs().nan_to_num(0) for t in moved_by]).amax(0)
        if not moved.numel():
            return moved
        of_samples = name.removeprefix("grad_") in BATCHED and not short
        return (moved.amax(-1, keepdim=True) if of_samples else moved.amax()).expand_as(moved)

    return {name: most(name) for name in here}


SPEC = register(
    OpSpec(
        name="made_inverse",
        function=call,
        reference=truth,
        outputs=("x", "logabsdet"),
        roles={"y": "data"} | OF_LAYERS,
        batched=frozenset({"y", "x", "logabsdet"}) | OF_SAMPLES,
        order=1,
        dtypes=ALL_DTYPES,
        samples=samples,
        shapes=shapes,
        threaded=threaded,
        errors=errors,
        draw=draw(),
        allowance=lambda s, inputs, outputs, upstream, dtypes: allowance(SPEC, s, inputs, outputs, upstream, dtypes),
        public=False,
    )
)

_BACKWARD = torch.ops.pygen.made_inverse_backward.default


def call_backward(
    grad_x: Tensor, grad_logabsdet: Tensor, x: Tensor, y: Tensor, degrees: Degrees, words: str, own: str, **given: Any
) -> tuple[Tensor, Tensor]:
    """The op, as the backend in force runs it."""
    arguments = (grad_x, grad_logabsdet, x, y, *layers(given, degrees), words, own)
    if pygen.backends.forced == "reference":
        return _BACKWARD._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *arguments)
    return _BACKWARD(*arguments)


def reference_backward(
    grad_x: Tensor, grad_logabsdet: Tensor, x: Tensor, y: Tensor, degrees: Degrees, words: str, own: str, **given: Any
) -> tuple[Tensor, Tensor]:
    """The reference's backward, of layers by name."""
    options = MadeOptions.parse(words)
    return reference.made_inverse_backward(
        grad_x, grad_logabsdet, x, y, *layers(given, degrees), **options.net, transform=options.transform,
        **_own(options, own),
    )  # fmt: skip


def backward_samples() -> Iterator[Sample]:
    for s in samples():
        built = build(SPEC, s, F64)
        _, (*_, words, own), _ = raw_call(SPEC, built)
        x, _ = truth(**built.inputs, **built.options)
        grads = {"grad_x": random(f"{s.name} grad_x", *x.shape), "grad_logabsdet": random(f"{s.name} grad", len(x))}
        yield Sample(
            s.name,
            grads | {"x": x} | dict(s.inputs),
            {"degrees": s.options["degrees"], "words": words, "own": own},
            s.traits,
        )


BACKWARD = register(
    OpSpec(
        name="made_inverse_backward",
        function=call_backward,
        reference=reference_backward,
        outputs=("grad_y", "grad_total"),
        roles={"grad_x": "data", "grad_logabsdet": "accumulate", "x": "data", "y": "data"} | OF_LAYERS,
        batched=frozenset({"grad_x", "grad_logabsdet", "x", "y", "grad_y", "grad_total"}) | OF_SAMPLES,
        order=0,
        dtypes=ALL_DTYPES,
        samples=backward_samples,
        allowance=lambda s, inputs, outputs, upstream, dtypes: allowance(
            BACKWARD, s, inputs, outputs, upstream, dtypes
        ),
        public=False,
    )
)
