"""What only a GPU can show, and a first look at the rest: `pytest -m gpu` runs every check of the contract on one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

import pygen
from pygen import backends, diffusion
from tests.causal_sampler.models import MODELS, STORAGE, Sampling, sampling
from tests.contract.params import SPECS, few
from tests.harness import checks
from tests.harness.calls import (
    UPSTREAM,
    Call,
    Tensors,
    assert_same_bits,
    backward,
    build,
    evaluate,
    raw_call,
    run,
    trainable,
    upstream_gradients,
)
from tests.harness.combine import pairwise
from tests.harness.layouts import LAYOUTS
from tests.harness.spec import F32, OpSpec, Sample
from tests.made_inverse import samples as made

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
]

NATIVE = [spec for spec in SPECS if backends.explain(spec.name, "cuda").backend == "native"]
Samples = Callable[[OpSpec], Iterable[Sample]]


def every(samples: Samples = few, **factors: Any) -> pytest.MarkDecorator:
    """Samples of each op that has a CUDA kernel, in pairs with the values of any factors."""
    rows = []
    for spec in NATIVE:
        values = {k: v(spec) if callable(v) else v for k, v in factors.items()}
        for row in pairwise(sample=list(samples(spec)), **values):
            words = [spec.name, row["sample"].name, *(row[k] for k in factors)]
            rows.append(pytest.param(spec, *(row[k] for k in ("sample", *factors)), id="-".join(map(str, words))))
    return pytest.mark.parametrize(("spec", "sample", *factors), rows)


def on_the_gpu(spec: OpSpec) -> list[Sample]:
    """A few samples, and large ones, which may take other kernels; without those whose options hold a list: to copy it
    to the GPU, the host waits."""
    return [
        sample
        for sample in (*few(spec), *spec.threaded())
        if not any(isinstance(v, list) for v in sample.options.values())
    ]


# Ops of which some gradients are torch's own products, of masks that the host makes: it waits, and TF32 may apply.
OUTPUTS_ALONE = {"made_inverse"}


def outputs_alone(spec: OpSpec) -> bool:
    return spec.order == 0 or spec.name in OUTPUTS_ALONE


def everything(spec: OpSpec, call: Call, upstream: Tensors | str = "contiguous") -> Tensors:
    """Outputs and gradients."""
    outputs, grads = evaluate(spec, spec.function, call, upstream)
    return outputs | grads


# --- numbers ---------------------------------------------------------------------------------------------------------


@every(dtypes=lambda spec: spec.dtypes, layout=LAYOUTS, upstream=UPSTREAM)
def test_accuracy(spec, sample, dtypes, layout, upstream):
    checks.accuracy(spec, sample, dtypes, layout, upstream, "cuda")


@every(lambda spec: spec.threaded())
def test_many_elements(spec, sample):
    checks.accuracy(spec, sample, device="cuda")


@every(lambda spec: spec.extremes())
def test_extremes(spec, sample):
    checks.extremes(spec, sample, device="cuda")


@every(dtypes=lambda spec: spec.dtypes)
def test_same_bits_in_any_batch(spec, sample, dtypes):
    """Run after run, and whatever samples are beside one."""
    whole = everything(spec, build(spec, sample, dtypes, device="cuda"))
    again = everything(spec, build(spec, sample, dtypes, device="cuda"))
    assert_same_bits(again, whole, "a second run")
    first = {k: t[:1] if t is not None and k in spec.batched else t for k, t in sample.inputs.items()}
    outputs = run(spec, spec.function, build(spec, Sample("first", first, sample.options), dtypes, device="cuda"))
    for k in set(outputs) & spec.batched:
        if outputs[k].numel():
            assert_same_bits({k: outputs[k]}, {k: whole[k][:1]}, "without the other samples")


@pytest.mark.parametrize("spec", [spec for spec in NATIVE if spec.huge is not None], ids=str)
def test_more_than_2_31_elements(spec):
    free, needed = torch.cuda.mem_get_info()[0] / 2**30, 5 * spec.huge_gb
    if free < needed:
        pytest.skip(f"{free:.0f} GiB of GPU memory are free, it takes {needed:.0f}")
    spec.huge(torch.device("cuda"))


@pytest.mark.parametrize("index", [[0, 5], [-1, 2], [3, 3], [2**40, 0]], ids=str)
def test_indices_that_are_no_channels_give_nan(index):
    x = torch.randn(3, 5, 4, device="cuda", requires_grad=True)
    params = torch.randn(3, 4, 4, device="cuda", requires_grad=True)
    y, logdet = pygen.ops.affine_coupling(x, params, part=torch.tensor(index, device="cuda"))
    for t in (y, logdet, *torch.autograd.grad(y.sum() + logdet.sum(), [x, params])):
        assert t.isnan().all()


# --- streams, graphs, devices ----------------------------------------------------------------------------------------


@every(on_the_gpu)
def test_the_host_does_not_wait(spec, sample):
    call = trainable(spec, build(spec, sample, F32, device="cuda"))
    upstream = upstream_gradients(run(spec, spec.function, call), "contiguous")
    everything(spec, call, upstream)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = run(spec, spec.function, call)
        if not outputs_alone(spec):
            backward(outputs, upstream, call)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every(on_the_gpu)
def test_captured_in_a_graph(spec, sample):
    """Replayed on other inputs, a CUDA graph of forward and backward gives the bits of a call."""
    call = trainable(spec, build(spec, sample, F32, device="cuda"))
    upstream = upstream_gradients(run(spec, spec.function, call), "contiguous")

    def step() -> Tensors:
        outputs = run(spec, spec.function, call)
        return outputs | ({} if outputs_alone(spec) else backward(outputs, upstream, call))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for name in call.differentiable:
            call.tensors[name].mul_(0.5)
    graph.replay()
    assert_same_bits(captured, step(), "replayed")


@every(on_the_gpu)
def test_on_the_current_stream(spec, sample):
    """Ordered with what was queued there before: inputs that another kernel is still writing."""
    call = build(spec, sample, F32, device="cuda")
    expected = everything(spec, call)
    late = call.map(lambda t: torch.zeros_like(t) if t.is_floating_point() else t)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # cycles: some 50 ms
        for name, t in late.tensors.items():
            t.copy_(call.tensors[name])
        ours = everything(spec, late)
    torch.cuda.current_stream().wait_stream(stream)
    assert_same_bits(ours, expected, "on a stream of its own")


@every(on_the_gpu)
def test_tf32_changes_nothing(spec, sample, monkeypatch):
    """What torch may make of products of float32."""
    call = build(spec, sample, F32, device="cuda")

    def results() -> Tensors:
        return run(spec, spec.function, call) if outputs_alone(spec) else everything(spec, call)

    expected = results()
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    assert_same_bits(results(), expected, "with TF32 allowed")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@every()
def test_on_the_second_device(spec, sample):
    """Where the tensors are, not where the current device is."""
    expected = everything(spec, build(spec, sample, F32, device="cuda:0"))
    with torch.cuda.device(0):
        ours = everything(spec, build(spec, sample, F32, device="cuda:1"))
    assert {t.device.index for t in ours.values()} == {1}
    assert_same_bits({k: t.to("cuda:0") for k, t in ours.items()}, expected, "on the second device")


# --- cached sampling -------------------------------------------------------------------------------------------------

SAMPLED = pytest.mark.skipif(
    backends.explain("causal_sampler", "cuda").backend != "native", reason="there is no CUDA C++ kernel"
)


def sampled(model: Sampling, first: int = 0, batch: int = 20, known: bool = False) -> tuple[Tensor, Tensor]:
    x, mask = model.unknown(batch)
    if known:
        mask[:, :, 0] = True
        mask[batch // 2] = True
    levels, log_prob = pygen.ops.causal_sampler(
        model.program, model.tensors, x, mask, model.conditions, log_prob=True, generator=3, first_sample=first
    )
    assert log_prob is not None
    return levels, log_prob


@SAMPLED
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", [*MODELS, "deep"])
def test_draws_what_the_reference_draws(name, known):
    model = sampling(name, torch.float64, 20, "cuda")
    ours = sampled(model, known=known)
    with backends.use("reference"):
        expected = sampled(model, known=known)
    assert torch.equal(ours[0], expected[0])
    torch.testing.assert_close(ours[1], expected[1], rtol=1e-9, atol=1e-9)


@SAMPLED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*MODELS, "deep"])
def test_draws_nearly_what_the_reference_draws(name, dtype):
    """A draw next to a boundary of the distribution function may fall on its other side: then the image differs."""
    model = sampling(name, dtype, 20, "cuda")
    ours = sampled(model)
    with backends.use("reference"):
        expected = sampled(model)
    same = (ours[0] == expected[0]).flatten(1).all(1)
    assert same.double().mean() >= 0.8
    torch.testing.assert_close(ours[1][same], expected[1][same], rtol=1e-4, atol=1e-4)


@SAMPLED
@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_same_images_in_any_batch(dtype):
    model = sampling("gated-wide", dtype, 20, "cuda")
    whole = sampled(model)
    for i in (0, 11, 19):
        alone = sampled(model.of(slice(i, i + 1)), first=i, batch=1)
        assert all(torch.equal(a, b[i : i + 1]) for a, b in zip(alone, whole, strict=True))


@SAMPLED
@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_more_images_than_run_at_once(dtype):
    """Blocks take turns: with a batch for each of 2 x 8 images on more processors than there are."""
    model = sampling("gated", dtype, 20, "cuda")
    batch = 16 * torch.cuda.get_device_properties(0).multi_processor_count + 100
    many = sampled(model, batch=batch)
    last = sampled(model, first=batch - 20)
    assert all(torch.equal(a[-20:], b) for a, b in zip(many, last, strict=True))


@SAMPLED
@pytest.mark.parametrize("name", ["gated", "plus-plus-rgb"])
def test_sampling_is_captured_and_the_host_does_not_wait(name):
    model = sampling(name, torch.float32, 20, "cuda")
    expected = sampled(model)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = sampled(model)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sampled(model)
    for t in captured:
        t.zero_()
    for _ in range(2):
        graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


# --- inverses of autoregressive transforms ---------------------------------------------------------------------------

INVERTED = pytest.mark.skipif(
    backends.explain("made_inverse", "cuda").backend != "native", reason="there is no CUDA C++ kernel"
)


@INVERTED
@pytest.mark.parametrize("transform", ["maf", "spline"])
def test_more_samples_than_run_at_once(transform):
    """Blocks take turns."""
    batch = 64 * 32 * torch.cuda.get_device_properties(0).multi_processor_count + 5
    call = build(made.SPEC, made.sample("many", batch, 5, 20, transform), F32, device="cuda")
    last = Call({k: t[-20:] if k in made.SPEC.batched else t for k, t in call.tensors.items()}, call.options)
    many, alone = (everything(made.SPEC, c, "sum") for c in (call, last))
    ours = ("x", "logabsdet", "grad_y")
    assert_same_bits({k: many[k][-20:] for k in ours}, {k: alone[k] for k in ours}, "alone")


@INVERTED
def test_a_spline_without_tails_is_nan_beyond_its_bounds():
    sample = made.sample("bounds", 6, 3, transform="bare")
    call = build(made.SPEC, sample, F32, device="cuda")
    y = call.tensors["y"].clone()
    y[2, 0] = 9.5
    x, logabsdet = made.SPEC.function(**{**call.inputs, "y": y}, **call.options)
    assert x[2].isnan().all()
    assert logabsdet.isnan().tolist() == [i == 2 for i in range(6)]


# --- loops of diffusion ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [None, 3.0])
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp-2m", "unipc", "heun"])
def test_a_sampling_loop_waits_for_nothing_and_replays_graphs(sampler, guidance):
    net = torch.nn.Conv2d(3, 3, 3, padding=1, device="cuda")
    plan = diffusion.plan(sampler, diffusion.Discrete.of(), 12)
    x = plan.first_state((4, 3, 16, 16), generator=0, device="cuda")

    def run(graph: bool) -> Tensor:
        return diffusion.sample_loop(
            lambda x, t: net(x) + t.view(-1, 1, 1, 1) / 1000, x, plan, guidance=guidance, generator=1, graph=graph
        )

    expected = run(False)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = run(False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
    torch.testing.assert_close(run(True), expected)


# --- torch -----------------------------------------------------------------------------------------------------------


@every(layout=("contiguous", "channels_last", "sliced"))
def test_registration(spec, sample, layout):
    """opcheck with CUDA tensors: their gradient is registered in Python, that of CPU tensors in C++."""
    op, args, kwargs = raw_call(spec, trainable(spec, build(spec, sample, F32, layout, "cuda")))

    def leaf(t: Tensor) -> Tensor:
        return t.detach().requires_grad_(t.requires_grad)

    torch.library.opcheck(op, tree_map_only(Tensor, leaf, args), tree_map_only(Tensor, leaf, kwargs))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("spec", NATIVE, ids=str)
def test_compiled_by_inductor(spec, mode):
    """The bits of a plain call; "reduce-overhead" captures CUDA graphs."""
    sample = few(spec)[0]
    call = build(spec, sample, F32, device="cuda")
    expected = everything(spec, call)
    torch._dynamo.reset()
    function = torch.compile(lambda inputs: spec.function(**inputs, **sample.options), fullgraph=True, mode=mode)
    for _ in range(3):  # runs, captures, replays
        torch.compiler.cudagraph_mark_step_begin()
        leaves = trainable(spec, call)
        result = function(leaves.inputs)
        outputs = dict(zip(spec.outputs, (result,) if isinstance(result, Tensor) else result, strict=True))
        grads = backward(outputs, upstream_gradients(outputs, "contiguous"), leaves) if spec.order else {}
        assert_same_bits(outputs | grads, expected, mode)
