"""One function per item of the op contract. Each raises AssertionError for an op that does not keep it.

They run whatever implementation is active (see `backend`). `tests/contract` gives them every op, and ops that each
break one item.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.autograd.gradcheck import GradcheckError
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from .calls import (
    Call,
    Tensors,
    assert_same_bits,
    backward,
    build,
    evaluate,
    raw_call,
    run,
    same_bits,
    strides,
    trainable,
    upstream_gradients,
)
from .spec import F32, F64, Dtypes, ErrorInput, OpSpec, Sample
from .tolerance import RUNS, assert_accurate, judge

# --- numbers ---------------------------------------------------------------------------------------------------------


def accuracy(
    spec: OpSpec,
    sample: Sample,
    dtypes: Dtypes = F32,
    layout: str = "contiguous",
    upstream: str = "contiguous",
    device: str = "cpu",
) -> None:
    """Outputs and every gradient are as near to the truth as `tolerance` asks, with the reference's dtypes."""
    call = trainable(spec, build(spec, sample, dtypes, layout, device))
    outputs = run(spec, spec.function, call)
    if spec.exact:
        assert_same_bits(outputs, run(spec, spec.reference, call), "against the reference")
        return
    gradients = upstream_gradients(outputs, upstream)
    grads = backward(outputs, gradients, call) if spec.order else {}

    expected = run(spec, spec.reference, call)
    for name, t in outputs.items():
        assert t.dtype == expected[name].dtype, f"{name}: expected {expected[name].dtype}, got {t.dtype}"
    for name, g in grads.items():
        given, wanted = ((t.dtype, tuple(t.shape)) for t in (g, call.tensors[name.removeprefix("grad_")]))
        assert given == wanted, f"{name}: expected {wanted}, got {given}"

    ours = {k: t.detach() for k, t in (outputs | grads).items()}
    for runs in RUNS:
        truth, true_grads, errors = judge(spec, call, dtypes, gradients, runs)
        allowance = spec.allowance(sample, call.double().inputs, truth, gradients, dtypes)
        try:
            for name, true in (truth | true_grads).items():
                assert_accurate(name, ours[name], true, errors[name], allowance.get(name, 0.0))
            return
        except AssertionError:
            if runs == RUNS[-1]:
                raise


def extremes(spec: OpSpec, sample: Sample, dtypes: Dtypes = F32, device: str = "cpu") -> None:
    """Where the true result is representable there is no NaN and no infinity, and it is right.

    Right means: to 2 ln(largest number) eps. The exponential turns a rounding error of its argument, eps / 2 of it,
    into a relative error of the result, and its argument goes up to ln(largest number) while the result is a number.
    """
    call = build(spec, sample, dtypes, device=device)
    outputs = run(spec, spec.function, call)
    truth = run(spec, spec.reference, call.double())
    for name, true in truth.items():
        ours = outputs[name]
        limit = torch.finfo(ours.dtype)
        representable = true.abs() <= limit.max
        wrong = representable & ~ours.isfinite()
        assert not wrong.any(), f"{name}: expected {true[wrong][0]:.6g}, got {ours[wrong][0]:.6g}"
        relative = 2 * math.log(torch.finfo(dtypes.accumulate).max) * torch.finfo(dtypes.accumulate).eps + limit.eps
        error = (ours.double() - true).abs()[representable]
        wrong = error > relative * true.abs()[representable] + limit.smallest_normal
        assert not wrong.any(), f"{name}: error {error[wrong][0]:.3g} for {true[representable][wrong][0]:.6g}"


def nan_containment(spec: OpSpec, sample: Sample, dtypes: Dtypes = F32, device: str = "cpu") -> None:
    """NaN in one element of an input reaches what depends on it and nothing else: every other sample keeps its
    bits, outputs are NaN exactly where the truth is, gradients at most where the truth's are. It never raises.

    Gradients with an allowance are excused from the last: a mode that recovers x from y finds NaN where only y is.
    """
    clean = build(spec, sample, dtypes, device=device)
    clean_outputs, clean_grads = evaluate(spec, spec.function, clean, "contiguous")
    truth, _ = evaluate(spec, spec.reference, clean.double(), "contiguous")
    upstream = upstream_gradients(clean_outputs, "contiguous")
    excused = spec.allowance(sample, clean.double().inputs, truth, upstream, dtypes)
    for name in clean.differentiable:
        for where in _a_few_elements(clean.tensors[name]):
            broken = clean.map(lambda t: t.detach().clone())
            broken.tensors[name][where] = float("nan")
            what = f"NaN in {name}{list(where)}"
            outputs, grads = evaluate(spec, spec.function, broken, "contiguous")
            truth, true_grads = evaluate(spec, spec.reference, broken.double(), "contiguous")
            for k, t in outputs.items():
                assert torch.equal(t.isnan(), truth[k].isnan()), f"{what}: {k} is NaN elsewhere than in the truth"
            for k, t in grads.items():
                spread = t.isnan() & ~true_grads[k].isnan()
                assert k in excused or not spread.any(), f"{what}: it spreads to {int(spread.sum())} elements of {k}"
            if name not in spec.batched:
                continue
            others = torch.arange(clean.tensors[name].shape[0], device=device) != where[0]
            for k, t in (outputs | grads).items():
                if k.removeprefix("grad_") in spec.batched and t.numel():
                    before = (clean_outputs | clean_grads)[k]
                    assert same_bits(t[others], before[others]), f"{what}: {k} of another sample changes"


def _a_few_elements(t: Tensor) -> list[tuple[int, ...]]:
    """The first, a middle and the last element's indices."""
    flat = sorted({0, t.numel() // 2, t.numel() - 1} if t.numel() else ())
    return [tuple(int(i) for i in torch.unravel_index(torch.tensor(k), t.shape)) for k in flat]


# --- gradients -------------------------------------------------------------------------------------------------------


def _function_of_leaves(spec: OpSpec, call: Call) -> tuple[Any, list[Tensor]]:
    """The op as a function of its differentiable inputs alone, and those."""
    names = call.differentiable

    def function(*leaves: Tensor) -> tuple[Tensor, ...]:
        inputs = call.inputs | dict(zip(names, leaves, strict=True))
        return tuple(run(spec, spec.function, Call(inputs, call.options)).values())

    return function, [call.tensors[k].detach().clone().requires_grad_() for k in names]


def first_order(spec: OpSpec, sample: Sample, device: str = "cpu") -> None:
    """Gradients agree with finite differences in float64."""
    function, leaves = _function_of_leaves(spec, build(spec, sample, F64, device=device))
    if not leaves:
        return
    try:
        torch.autograd.gradcheck(function, leaves, rtol=1e-5, atol=1e-6, check_batched_grad=False)
    except GradcheckError as error:
        raise AssertionError(f"gradcheck: {error}") from error


def second_order(spec: OpSpec, sample: Sample, device: str = "cpu", must_raise: bool = True) -> None:
    """One differentiation more than promised raises NotImplementedError; those promised are right.

    must_raise: False for the reference, which may be differentiable more often than promised, but not wrong.
    """
    call = build(spec, sample, F64, device=device).requiring_grad()
    if not call.differentiable:
        return
    if spec.order >= 2 or not must_raise:
        function, leaves = _function_of_leaves(spec, call)
        try:
            torch.autograd.gradgradcheck(
                function, leaves, rtol=1e-4, atol=1e-6, fast_mode=True, check_batched_grad=False
            )
        except GradcheckError as error:
            raise AssertionError(f"gradgradcheck: {error}") from error
        except NotImplementedError:
            if must_raise:  # it is promised
                raise
        return
    for through_upstream in (True, False):
        try:
            grads = list(run(spec, spec.function, call).values())
            for _ in range(spec.order + 1):
                upstream = [torch.ones_like(g, requires_grad=through_upstream) for g in grads]
                leaves = [t for t in call.tensors.values() if t.requires_grad]
                grads = torch.autograd.grad(
                    grads, leaves, upstream, create_graph=True, allow_unused=True, materialize_grads=True
                )
        except NotImplementedError:
            continue
        except RuntimeError as error:  # autograd's own complaint about a constant gradient is no silence
            if "does not require grad" in str(error):
                continue
            raise
        raise AssertionError(f"derivative {spec.order + 1} of an op that has {spec.order} is wrong in silence")


def partial_gradients(spec: OpSpec, sample: Sample, device: str = "cpu", skips: bool = True) -> None:
    """Each gradient asked for alone has the bits it has together with all others, and costs less memory than all.

    skips: False for the reference, whose intermediates are the autograd engine's business.
    """
    call = build(spec, sample, F32, device=device)
    names = call.differentiable

    def gradients(wanted: Collection[str]) -> tuple[Tensors, int, dict[int, int]]:
        """Gradients, the bytes that their computation took, and of these the bytes of each gradient, by its address:
        several may be one tensor."""
        c = call.requiring_grad(wanted)
        outputs = run(spec, spec.function, c)
        upstream = upstream_gradients(outputs, "contiguous")
        with _Allocations() as allocations:
            grads = backward(outputs, upstream, c)
        passed_on = {g.data_ptr() for g in upstream.values()}
        own = {g.data_ptr(): g.nbytes for g in grads.values() if g.data_ptr() not in passed_on and g.any()}
        return grads, allocations.bytes, own

    everything, all_bytes, own_bytes = gradients(names)
    for name in names:
        key = f"grad_{name}"
        alone, alone_bytes, _ = gradients([name])
        assert_same_bits(alone, {key: everything[key]}, f"the gradient of {name} alone")
        others = sum(n for k, n in own_bytes.items() if k != everything[key].data_ptr())
        if skips:
            assert alone_bytes <= all_bytes - others, (
                f"the other gradients are not skipped: all take {all_bytes} bytes, {others} of these are the others', "
                f"and {name} alone takes {alone_bytes} bytes"
            )


class _Allocations(TorchDispatchMode):
    """Bytes of the new memory that outputs of ops take. Views, and tensors that an op passes on, cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        fresh = {t.untyped_storage().data_ptr(): t for t in tree_leaves(result) if isinstance(t, Tensor)}
        self.bytes += sum(t.untyped_storage().nbytes() for p, t in fresh.items() if p not in known)
        return result


def skipped_outputs(spec: OpSpec, sample: Sample, device: str = "cpu") -> None:
    """A backward op leaves an output that is not asked for empty, and the others as they are."""
    call = build(spec, sample, F32, device=device)
    asked = dict.fromkeys(spec.skips, True)
    full = list(run(spec, spec.function, Call(call.inputs, {**call.options, **asked})).values())
    for option, index in spec.skips.items():
        options = {**call.options, **asked, option: False}
        for i, t in enumerate(run(spec, spec.function, Call(call.inputs, options)).values()):
            if i == index:
                assert t.numel() == 0, f"{option}=False still computes {spec.outputs[i]}"
            else:
                assert same_bits(t, full[i]), f"{option}=False changes {spec.outputs[i]}"


def saved_memory(spec: OpSpec, sample: Sample, device: str = "cpu") -> None:
    """Between forward and backward nothing stays alive but what the op names: `OpSpec.keeps`."""
    assert spec.keeps is not None
    may_keep = spec.keeps(sample)
    leaves = build(spec, sample, F32, device=device).requiring_grad()
    run(spec, spec.function, leaves)  # what a first call caches is no part of the graph

    call = leaves.map(lambda t: t.clone())  # no leaves: nobody keeps these clones but the op
    saved, outputs = _saved(spec, call)
    memory = {k: t.untyped_storage() for k, t in (call.tensors | outputs).items() if t.numel()}
    known = {storage.data_ptr() for storage in memory.values()}
    extra = [tuple(t.shape) for t in saved if t.untyped_storage().data_ptr() not in known]
    for name in (k.removeprefix("grad_") for k in may_keep if k.startswith("grad_")):
        if tuple(call.tensors[name].shape) in extra:
            extra.remove(tuple(call.tensors[name].shape))
    assert not extra, f"it keeps tensors of shape {extra}, neither an input nor an output"

    graph = [t.grad_fn for t in outputs.values()]
    watched = {k: StorageWeakRef(storage) for k, storage in memory.items()}
    del call, saved, outputs, memory  # leaves the graph alone
    kept = {k for k, storage in watched.items() if not storage.expired()}
    assert kept <= may_keep, f"the graph keeps {sorted(kept)}, and may keep {sorted(may_keep)}"
    del graph


def _saved(spec: OpSpec, call: Call) -> tuple[list[Tensor], Tensors]:
    """What a call saves for its backward (numbers, that is: an index may stand for an option), and its outputs."""
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        if t.numel() and t.is_floating_point():
            saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        return saved, run(spec, spec.function, call)


# --- the op and the dispatcher ---------------------------------------------------------------------------------------


def registration(spec: OpSpec, sample: Sample, layout: str = "contiguous", requires_grad: bool = True) -> None:
    """torch.library.opcheck: schema, autograd registration, fake tensors, AOT dispatch with dynamic shapes."""
    call = build(spec, sample, F32, layout)
    call = trainable(spec, call) if requires_grad else call
    op, args, kwargs = raw_call(spec, call)
    try:
        torch.library.opcheck(op, tree_map_only(Tensor, _leaf, args), tree_map_only(Tensor, _leaf, kwargs))
    except torch.testing._internal.optests.OpCheckError as error:
        raise AssertionError(str(error)) from error


def _leaf(t: Tensor) -> Tensor:
    return t.detach().requires_grad_(t.requires_grad)


def metadata(
    spec: OpSpec, sample: Sample, dtypes: Dtypes = F32, layout: str = "contiguous", device: str = "cpu"
) -> None:
    """Shapes, dtypes, devices and strides of real, fake and meta tensors agree."""
    call = build(spec, sample, dtypes, layout, device)
    expected = _describe(run(spec, spec.function, call))
    with FakeTensorMode() as mode:
        fake = _describe(run(spec, spec.function, call.map(mode.from_tensor)))
    assert fake == expected, f"fake tensors: {fake}, the op: {expected}"
    empty = call.map(lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta"))
    meta = _describe(run(spec, spec.function, empty))
    expected = {k: (*rest, "meta") for k, (*rest, _) in expected.items()}
    assert meta == expected, f"meta tensors: {meta}, the op: {expected}"


def _describe(outputs: Tensors) -> dict[str, tuple[Any, ...]]:
    return {k: (tuple(t.shape), strides(t), t.dtype, t.device.type) for k, t in outputs.items()}


def same_metadata(spec: OpSpec, sample: Sample, one: Any, other: Any, layout: str = "contiguous") -> None:
    """Two backends give outputs of the same shapes, dtypes and strides."""
    call = build(spec, sample, F32, layout)
    with one.active():
        ours = _describe(run(spec, spec.function, call))
    with other.active():
        theirs = _describe(run(spec, spec.function, call))
    assert ours == theirs, f"{one}: {ours}, {other}: {theirs}"


def compiled(spec: OpSpec, sample: Sample, backend: str = "aot_eager", sizes: Iterable[int] = (2, 3, 5, 8)) -> None:
    """torch.compile takes it whole, recompiles once at most over batch sizes, and changes no bit."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    function = torch.compile(lambda inputs: spec.function(**inputs, **sample.options), fullgraph=True, backend=counter)
    one = build(spec, sample, F32)
    try:
        for size in sizes:
            rows = torch.arange(size) % max(1, _sample_count(spec, sample))
            inputs = {k: t[rows] if t is not None and k in spec.batched else t for k, t in one.inputs.items()}
            call = Call(inputs, sample.options)
            expected = evaluate(spec, spec.function, call, "contiguous")
            call = trainable(spec, call)
            result = function(call.inputs)
            outputs = dict(zip(spec.outputs, (result,) if isinstance(result, Tensor) else result, strict=True))
            assert_same_bits(outputs, expected[0], f"compiled, batch {size}")
            if spec.order:
                grads = backward(outputs, upstream_gradients(outputs, "contiguous"), call)
                assert_same_bits(grads, expected[1], f"compiled, batch {size}")
    except torch._dynamo.exc.TorchDynamoException as error:
        raise AssertionError(f"torch.compile(fullgraph=True): {error}") from error
    count = counter.frame_count
    assert count <= 2, f"{count} compilations over batch sizes {tuple(sizes)}, expected 2 at most"


def _sample_count(spec: OpSpec, sample: Sample) -> int:
    return next((t.shape[0] for k, t in sample.inputs.items() if t is not None and k in spec.batched), 0)


# --- behaviour of a function -----------------------------------------------------------------------------------------


def determinism(
    spec: OpSpec, sample: Sample, dtypes: Dtypes = F32, threads: Iterable[int] = (1, 2, 3), device: str = "cpu"
) -> None:
    """The same bits from run to run, and for any number of threads."""
    call = build(spec, sample, dtypes, device=device)
    expected, expected_grads = evaluate(spec, spec.function, call, "contiguous")
    before = torch.get_num_threads()
    try:
        for count in (before, *threads):
            torch.set_num_threads(count)
            outputs, grads = evaluate(spec, spec.function, call, "contiguous")
            assert_same_bits(outputs | grads, expected | expected_grads, f"{count} threads after {before}")
    finally:
        torch.set_num_threads(before)


def functional(
    spec: OpSpec, sample: Sample, dtypes: Dtypes = F32, layout: str = "contiguous", device: str = "cpu"
) -> None:
    """Inputs, what lies between their elements, and upstream gradients stay untouched; outputs are new memory, each its
    own."""
    call = trainable(spec, build(spec, sample, dtypes, layout, device))
    before = {f"input {k}": _snapshot(t) for k, t in call.tensors.items()}
    outputs = run(spec, spec.function, call)
    if spec.order:
        upstream = upstream_gradients(outputs, "contiguous")
        before |= {f"gradient of {k}": _snapshot(g) for k, g in upstream.items()}
        backward(outputs, upstream, call)
    for k, (t, copy, version) in before.items():
        assert same_bits(_whole_storage(t), copy), f"{k} was written to"
        assert t._version == version, f"{k} was written to (its version changed)"
    owners = {t.untyped_storage().data_ptr(): f"input {k}" for k, t in call.tensors.items() if t.numel()}
    for k, t in outputs.items():
        if t.numel():
            owner = owners.setdefault(t.untyped_storage().data_ptr(), k)
            assert owner == k, f"output {k} shares memory with {owner}"


def _snapshot(t: Tensor) -> tuple[Tensor, Tensor, int]:
    return t, _whole_storage(t).clone(), t._version


def _whole_storage(t: Tensor) -> Tensor:
    """All of the memory behind a tensor, the gaps too."""
    return t.detach().as_strided((t.untyped_storage().nbytes() // t.element_size(),), (1,), 0)


def modes(spec: OpSpec, sample: Sample, device: str = "cpu") -> None:
    """The same bits with and without gradients and in inference mode; outputs require grad in the first case only."""
    call = build(spec, sample, F32, device=device)
    leaves = trainable(spec, call)
    expected = run(spec, spec.function, leaves)
    if spec.order and call.differentiable:
        assert any(t.requires_grad for t in expected.values()), "no output requires grad though every input does"
    with torch.no_grad():
        without = run(spec, spec.function, leaves)
    with torch.inference_mode():
        outside = run(spec, spec.function, leaves)
        inside = run(spec, spec.function, call.map(lambda t: t.clone()))
    for what, outputs in (
        ("inputs that need no gradient", run(spec, spec.function, call)),
        ("no_grad", without),
        ("inference_mode", outside),
        ("inference tensors", inside),
    ):
        assert_same_bits(outputs, expected, what)
        assert not any(t.requires_grad for t in outputs.values()), f"{what}: an output requires grad"


def autocast(spec: OpSpec, sample: Sample, device: str = "cpu", gradients: bool = True) -> None:
    """Autocast changes nothing: not a bit, no dtype.

    gradients: False for the reference, whose matrix products torch's own derivative formulas leave to autocast.
    """
    call = build(spec, sample, F32, device=device)
    if not gradients:
        expected = run(spec, spec.function, call)
        with torch.autocast(device, torch.bfloat16):
            assert_same_bits(run(spec, spec.function, call), expected, "under autocast")
        return
    expected, expected_grads = evaluate(spec, spec.function, call, "contiguous")
    with torch.autocast(device, torch.bfloat16):
        outputs, grads = evaluate(spec, spec.function, call, "contiguous")
    assert_same_bits(outputs | grads, expected | expected_grads, "under autocast")


def transforms(spec: OpSpec, sample: Sample, device: str = "cpu") -> None:
    """torch.func's vmap and vjp raise or are right."""
    call = build(spec, sample, F32, device=device)
    function, leaves = _function_of_leaves(spec, call)
    if not leaves:
        return
    values = [t.detach() for t in leaves]
    halves = [0.5 * t for t in values]
    _right_or_raises(
        "vmap",
        lambda: torch.vmap(function)(*(torch.stack(pair) for pair in zip(values, halves, strict=True))),
        [torch.stack(pair) for pair in zip(function(*values), function(*halves), strict=True)],
    )
    if spec.order:
        outputs, grads = evaluate(spec, spec.function, call, "contiguous")
        upstream = tuple(upstream_gradients(outputs, "contiguous").values())
        _right_or_raises("vjp", lambda: torch.func.vjp(function, *values)[1](upstream), grads.values())


def forward_mode(spec: OpSpec, sample: Sample, device: str = "cpu") -> None:
    """Forward-mode differentiation (torch.func.jvp, torch.autograd.forward_ad) raises or is right."""
    call = build(spec, sample, F32, device=device)
    function, leaves = _function_of_leaves(spec, call)
    if not leaves:
        return
    reference, _ = _function_of_leaves(replace(spec, function=spec.reference), call)
    values = tuple(t.detach() for t in leaves)
    expected = torch.func.jvp(reference, values, values)[1]
    _right_or_raises("jvp", lambda: torch.func.jvp(function, values, values)[1], expected)


def _right_or_raises(name: str, transformed: Callable[[], Iterable[Tensor]], expected: Iterable[Tensor]) -> None:
    try:
        results = transformed()
    except RuntimeError:  # and NotImplementedError, which is one
        return
    for ours, true in zip(results, expected, strict=True):
        assert torch.allclose(ours, true, rtol=1e-5, atol=1e-5), f"torch.func.{name} is wrong in silence"


# --- what is not admitted --------------------------------------------------------------------------------------------


def refusal(spec: OpSpec, bad: ErrorInput, one: Any, other: Any) -> None:
    """Two backends, fake and meta tensors raise the same error, which says what was expected and what was given.
    Nothing is written."""
    tensors = {k: v for k, v in bad.arguments.items() if isinstance(v, Tensor)}
    before = {k: t.clone() for k, t in tensors.items()}

    def message(where: str, arguments: Mapping[str, Any]) -> str:
        expected = f"{where}: expected {bad.error.__name__}"
        try:
            spec.function(**arguments)
        except Exception as error:
            if type(error) is bad.error:
                return str(error).split("\n")[0]
            raise AssertionError(f"{expected}, got {type(error).__name__}: {error}") from error
        raise AssertionError(f"{expected}, nothing is raised")

    messages = {}
    for backend in (one, other):
        with backend.active():
            messages[str(backend)] = message(str(backend), bad.arguments)
    if not bad.by_value:
        with FakeTensorMode() as mode:
            faked = tree_map_only(Tensor, mode.from_tensor, dict(bad.arguments))
            messages["fake tensors"] = message("fake tensors", faked)
        meta = tree_map_only(Tensor, lambda t: t.to("meta"), dict(bad.arguments))
        messages["meta tensors"] = message("meta tensors", meta)

    for where, text in messages.items():
        for word in ("expected", "got", *bad.words):
            assert word in text, f"{where}: expected {word!r} in the message {text!r}"
    assert len(set(messages.values())) == 1, f"the messages differ: {messages}"
    for k, t in tensors.items():
        assert same_bits(t, before[k]), f"{k} was written to"


# --- completeness ----------------------------------------------------------------------------------------------------

# What every public docstring speaks of, and a word that shows it.
DOCSTRING = {
    "formula": r"=",
    "shapes": r"\[[BN]\b",
    "dtypes": r"float(32|64)",
    "errors": r"(?i)raises",
    "differentiability": r"(?i)differentiab",
    "bytes moved": r"(?i)bytes",
    "backends": r"(?i)triton|cuda",
    "autocast": r"(?i)autocast",
}


def completeness(names: Collection[str], specs: Mapping[str, OpSpec]) -> None:
    """Every op has samples, a reference, and a docstring that says what the contract asks; no spec is of no op."""
    missing, unknown = set(names) - specs.keys(), specs.keys() - set(names)
    assert not missing, f"ops without samples: {sorted(missing)} (register an OpSpec in tests/<family>/samples.py)"
    assert not unknown, f"specs of no op: {sorted(unknown)}"
    for spec in specs.values():
        _documented(spec)
        assert list(spec.samples()), f"{spec}: no samples"
        assert list(spec.errors()) or not spec.public, f"{spec}: no error inputs"
        assert callable(spec.reference), f"{spec}: no reference"


def _documented(spec: OpSpec) -> None:
    if spec.public:
        text = inspect.getdoc(spec.function) or ""
        lacking = [what for what, pattern in DOCSTRING.items() if not re.search(pattern, text)]
        assert not lacking, f"{spec}: its docstring lacks {', '.join(lacking)}"
    assert inspect.getdoc(spec.reference), f"{spec}: its reference has no docstring"
