"""Cached sampling of models: the pixels of the naive loop, likelihoods, completions, filters, interruption."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import pygen
from pygen import _ext, random
from pygen.models import Autoregressive, GatedPixelCNN, PixelCNN, PixelCNNPlusPlus
from pygen.models.naive import naive_sample
from pygen.ops import causal_sampler
from pygen.program import HEAD, PIXEL, ROW, Plane, Program, Read, Stage

N = 6


def sharpened(model: Autoregressive, dtype: torch.dtype = torch.float64) -> Autoregressive:
    """As after training: distributions are far from uniform, and differ from pixel to pixel."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5 if parameter.dim() > 1
                            else 0.1 * torch.randn_like(parameter) + parameter)  # fmt: skip
    return model.to(dtype).eval()


# Every model, mask, stride, dilation, head and kind of condition; sizes that strides do not divide.
MODELS: dict[str, Callable[[], Autoregressive]] = {
    "plain": lambda: PixelCNN((1, 6, 5), 4, hidden=8, blocks=2),
    "plain-rgb": lambda: PixelCNN((3, 5, 4), 5, hidden=6, blocks=2, num_classes=3),
    "gated": lambda: GatedPixelCNN((1, 6, 5), 4, hidden=8, layers=2),
    "gated-first": lambda: GatedPixelCNN((1, 5, 5), 256, hidden=8, layers=0),
    "gated-dilated": lambda: GatedPixelCNN((2, 6, 9), 4, hidden=40, layers=3, dilations=(1, 2), num_classes=3),
    "gated-wide": lambda: GatedPixelCNN((1, 9, 11), 3, hidden=8, layers=2, kernel=5, context_features=2),
    "gated-map": lambda: GatedPixelCNN(
        (3, 6, 5), 4, hidden=6, layers=2, num_classes=3, context_features=2, spatial_context=True
    ),
    "plusplus": lambda: PixelCNNPlusPlus((1, 6, 5), 4, hidden=8, blocks=1, mixtures=3),
    "plusplus-rgb": lambda: PixelCNNPlusPlus((3, 9, 7), 256, hidden=6, blocks=2, mixtures=3, num_classes=3),
    "plusplus-tfp": lambda: PixelCNNPlusPlus((2, 4, 8), 17, hidden=6, blocks=1, mixtures=2),
}


def build(name: str, dtype: torch.dtype = torch.float64) -> Autoregressive:
    return sharpened(MODELS[name](), dtype)


def given(model: Autoregressive, n: int = N) -> dict[str, Any]:
    """Labels and a context, as the model takes them."""
    features, area = model.condition.context_features, model.condition.area
    generator = torch.Generator().manual_seed(1)
    context = torch.randn(n, features, *area, generator=generator).to(model._like) if features else None
    y = None if model.num_classes is None else torch.arange(n) % model.num_classes
    return {"y": y, "context": context}


def patterns(model: Autoregressive) -> Iterator[tuple[str, Tensor]]:
    """What may be known: nothing, rows, a box, scattered pixels, other ones in every image, everything."""
    channels, height, width = model.shape
    known = torch.zeros(N, channels, height, width, dtype=torch.bool)
    yield "nothing", known
    rows, box = known.clone(), known.clone()
    rows[:, :, : height // 2] = True
    yield "rows", rows
    box[:, :, 1:-1, 1:3] = True
    yield "box", box
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(N, 1, height, width, generator=generator) < 0.6
    yield "scattered", mask[:1].expand_as(known).contiguous()
    yield "each its own", mask.expand_as(known).contiguous()
    if len(model.head.drawn_together) > 1:
        yield "channels", torch.rand(known.shape, generator=generator) < 0.5
    yield "everything", ~known


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("implementation", ["reference", "native"])
def test_pixels_of_the_naive_loop(name: str, implementation: str) -> None:
    """All of them, in float64."""
    model = build(name)
    x = torch.randint(model.levels, (N, *model.shape), generator=torch.Generator().manual_seed(3))
    for pattern, known in patterns(model):
        expected = naive_sample(model, x, known, **given(model), seed=5)
        with pygen.backends.use(implementation):
            drawn, log_prob = model.complete_and_log_prob(x, known, **given(model), generator=5)
        assert torch.equal(drawn.long(), expected), pattern
        assert torch.equal(drawn.long()[known], x[known])
        if pattern == "nothing":
            density = model.log_prob(drawn, **given(model))
            assert (log_prob - density).abs().max() < 1e-10
        if pattern == "everything":
            assert (log_prob == 0).all()


@pytest.mark.parametrize("tier", _ext.tiers())
def test_draws_of_float32(tier: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the naive pixels as context, fewer than one draw in 10,000 is another: the level beside, of a boundary."""
    draws = differ = 0
    with using(tier):
        for name in MODELS:
            model = build(name, torch.float32)
            x = torch.randint(model.levels, (N, *model.shape), generator=torch.Generator().manual_seed(3))
            for _, known in patterns(model):
                expected = naive_sample(model, x, known, **given(model), seed=5)
                own = model.complete(x, known, **given(model), generator=5).long()
                draws += int((~known).sum())
                if torch.equal(own, expected):
                    continue
                for r, c in itertools.product(range(model.shape[1]), range(model.shape[2])):
                    before = torch.arange(math.prod(model.shape[1:])).view(model.shape[1:]) < r * model.shape[2] + c
                    drawn = model.complete(expected, known | before, **given(model), generator=5).long()
                    apart = (drawn[:, :, r, c] - expected[:, :, r, c]).abs()
                    differ += int((apart > 0).any(1).sum())
                    assert apart.max() <= 1
    with capsys.disabled():
        print(f"\n{tier}: {differ} of {draws} draws differ from the naive loop's in float32")
    assert differ <= 1e-4 * draws


@contextlib.contextmanager
def using(tier: str) -> Iterator[None]:
    before = _ext.tier
    _ext.use(tier)
    try:
        yield
    finally:
        _ext.use(str(before))


def nothing(model: Autoregressive, n: int = N) -> tuple[Tensor, Tensor]:
    x = torch.zeros(n, *model.shape, dtype=torch.int64)
    return x, x.bool()


@pytest.mark.parametrize("name", MODELS)
def test_likelihood_of_what_is_drawn(name: str) -> None:
    """In float32 to 1e-4 nats, whatever the draws were made with."""
    model = build(name, torch.float32)
    filters = {"top_k": 3, "top_p": 0.9} if not name.startswith("plusplus") else {}
    for options in ({}, {"temperature": 0.5, **filters}):
        x, log_prob = model.sample_and_log_prob(N, **given(model), generator=7, **options)
        assert log_prob.dtype == torch.float64
        assert (log_prob - model.log_prob(x, **given(model))).abs().max() < 1e-4
    for pattern, known in patterns(model):
        again, rest = model.complete_and_log_prob(x.long(), known, **given(model), generator=8)
        condition = model._given(N, *given(model).values())
        with torch.no_grad():
            nll = model.head.nll(model._features(model._scaled(again), condition), again.long())  # [B, (C,) H, W]
        drawn = ~known if nll.dim() == 4 else ~known[:, 0]
        assert (rest + (nll * drawn).flatten(1).double().sum(1)).abs().max() < 1e-4, pattern


@pytest.mark.parametrize("name", ["plain-rgb", "gated-map", "plusplus-rgb"])
@pytest.mark.parametrize("tier", _ext.tiers())
def test_an_image_is_the_same_in_any_batch(name: str, tier: str) -> None:
    """To the bit, in float32, alone or among others, on any number of threads."""
    model, n = build(name, torch.float32), 35
    own = given(model, n)
    with using(tier):
        whole, log_prob = model.sample_and_log_prob(n, **own, generator=3)
        for count in (1, 2, 3):
            with threads(count):
                for part in (slice(0, 1), slice(3, 6), slice(16, 33), slice(34, 35), slice(2, 2)):
                    some = {k: None if v is None else v[part] for k, v in own.items()}
                    first = {"generator": 3, "first_sample": part.start}
                    x, log_p = model.sample_and_log_prob(part.stop - part.start, **some, **first)
                    assert torch.equal(x, whole[part])
                    assert torch.equal(log_p, log_prob[part])


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


PAIRED: dict[str, Callable[[], Autoregressive]] = {  # large enough that the second thread has something to do
    "plain": lambda: PixelCNN((3, 16, 15), 5, hidden=12, blocks=2),
    "gated": lambda: GatedPixelCNN((1, 28, 28), 16, hidden=16, layers=4, dilations=(1, 2, 3)),
    "gated-wide": lambda: GatedPixelCNN((1, 9, 30), 16, hidden=8, layers=3, kernel=5, context_features=2),
    "plusplus": lambda: PixelCNNPlusPlus((3, 18, 21), 256, hidden=8, blocks=2, mixtures=3, num_classes=3),
}


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("tier", _ext.tiers())
def test_two_threads_to_an_image(name: str, tier: str) -> None:
    """The second one computes the stages of the next row: the same bits as one thread's."""
    model = sharpened(PAIRED[name](), torch.float32)
    x = torch.randint(model.levels, (N, *model.shape), generator=torch.Generator().manual_seed(3))
    with using(tier):
        for pattern, known in patterns(model):
            own = {**given(model), "generator": 5}
            with threads(1):
                expected = model.complete_and_log_prob(x, known, **own)
            for n in (1, N):
                some = {k: v[:n] if isinstance(v, Tensor) else v for k, v in own.items()}
                with threads(2 * n):
                    for _ in range(3):
                        found = model.complete_and_log_prob(x[:n], known[:n], **some)
                        assert torch.equal(found[0], expected[0][:n]), pattern
                        assert torch.equal(found[1], expected[1][:n]), pattern


@pytest.mark.parametrize("name", ["plain-rgb", "gated", "plusplus-rgb"])
def test_explicit_noise_is_what_the_stream_has(name: str) -> None:
    model = build(name)
    mixture = name.startswith("plusplus")
    channels, height, width = model.shape
    size = (N, height, width, channels + mixture)
    numbers = random.bits(size, generator=9).long() & 0xFFFFFFFF
    noise = numbers.double() / 2**32
    if mixture:
        noise = random.uniform(size, generator=9).double()
    noise = noise.movedim(-1, 1)
    for implementation in ("reference", "native"):
        with pygen.backends.use(implementation):
            x = model.sample(N, **given(model), noise=noise)
            assert torch.equal(x, model.sample(N, **given(model), generator=9))


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_k": 2}, {"top_p": 0.3}, {"top_p": 0.8, "top_k": 3},
                                     {"temperature": 0.0}, {"temperature": 1.7, "top_p": 0.6}])  # fmt: skip
def test_filters(options: dict[str, Any]) -> None:
    """As the naive loop has them; and never a level that is left out."""
    model = build("plain-rgb")
    expected = naive_sample(model, *nothing(model), **given(model), seed=1, **options)
    drawn = model.sample(N, **given(model), generator=1, **options)
    assert torch.equal(drawn.long(), expected)
    likeliest = model.sample(N, **given(model), generator=2, temperature=0)
    if options in ({"top_k": 1}, {"temperature": 0.0}):
        assert torch.equal(drawn, likeliest)
    with pytest.raises(ValueError, match="top_p for a softmax"):
        build("plusplus").sample(1, top_k=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'top'"):
        model.sample(1, **given(model, 1), top=3)


def test_equal_levels_stay_together() -> None:
    from pygen.reference.causal_sampler import kept

    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0, 1.0]])
    cases = ((1, 1.0), (2, 1.0), (3, 1.0), (0, 0.1), (0, 0.6), (0, 0.71), (0, 1.0), (9, 1.0))
    left = {case: (kept(logits, *case)[0] > -math.inf).nonzero().flatten().tolist() for case in cases}
    everything = [0, 1, 2, 3, 4]
    assert left == {
        (1, 1.0): [1, 3], (2, 1.0): [1, 3], (3, 1.0): [1, 2, 3, 4], (0, 0.1): [1, 3], (0, 0.6): [1, 3],
        (0, 0.71): [1, 2, 3, 4], (0, 1.0): everything, (9, 1.0): everything,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["gated", "plusplus"])
def test_samples_follow_an_enumerable_density(name: str) -> None:
    """65,536 samples of 256 images: L1 distance and chi-square."""
    build_ = {"gated": lambda: GatedPixelCNN((1, 2, 2), 4, hidden=8, layers=2),
              "plusplus": lambda: PixelCNNPlusPlus((1, 2, 2), 4, hidden=8, blocks=1, mixtures=3)}[name]  # fmt: skip
    model, n = sharpened(build_(), torch.float32), 65_536
    images = torch.tensor(list(itertools.product(range(4), repeat=4))).view(-1, 1, 2, 2)
    p = model.log_prob(images).double().exp()
    counts = (
        model.sample(n, generator=4).flatten(1).long().mul(torch.tensor([64, 16, 4, 1])).sum(1).bincount(minlength=256)
    )
    assert (counts / n - p).abs().sum() < 3 * (2 * 256 / (math.pi * n)) ** 0.5  # of which 1 is the mean
    likely = p * n >= 5
    chi = ((counts - p * n)[likely] ** 2 / (p * n)[likely]).sum()
    degrees = int(likely.sum())
    assert abs(chi - degrees) < 5 * (2 * degrees) ** 0.5


def test_bfloat16_weights() -> None:
    """Half the bytes; the arithmetic is float32's, of the rounded weights."""
    model = build("gated-dilated", torch.bfloat16)
    x, log_prob = model.sample_and_log_prob(N, **given(model), generator=5)
    wide = copy.deepcopy(model).float()
    own = given(wide) | {"y": given(model)["y"]}
    assert torch.equal(x, wide.sample(N, **own, generator=5))
    assert (log_prob - wide.log_prob(x, **own)).abs().max() < 1e-3


# --- progress and interruption ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["reference", "native"])
def test_progress(implementation: str) -> None:
    model, seen = build("gated"), []
    with pygen.backends.use(implementation):
        model.sample(N, generator=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert len(seen) > 1
    assert {total for _, total in seen} == {N * 6}
    assert seen[-1] == (N * 6, N * 6)


@pytest.mark.parametrize("implementation", ["reference", "native"])
def test_an_exception_in_progress_ends_the_call_and_nothing_else(implementation: str) -> None:
    model = build("gated")
    active = threading.active_count()

    def stop(done: int, total: int) -> None:
        raise RuntimeError("enough")

    with pygen.backends.use(implementation):
        for n in (1, 40):  # two threads, and one, to an image
            expected = model.sample(n, generator=1)
            with pytest.raises(RuntimeError, match="enough"):
                model.sample(n, generator=1, progress=stop)
            assert torch.equal(model.sample(n, generator=1), expected)  # and it reports to nobody any more
    assert threading.active_count() == active


INTERRUPTED = """
import signal, time, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background would inherit as ignored
from pygen.models import GatedPixelCNN
from pygen.ops import causal_sampler
compiled = GatedPixelCNN((1, 28, 28), 256, hidden=64, layers=6).program()
x = torch.zeros(20_000, 1, 28, 28, dtype=torch.int64)  # a minute, on any machine
known = x.bool()
def call(n):
    return causal_sampler(compiled.program, compiled.tensors, x[:n], known[:n], generator=1)[0]
expected = call(2)
print("ready", flush=True)
try:
    call(20_000)
except KeyboardInterrupt:
    assert torch.equal(call(2), expected)
    print("stopped", flush=True)
"""


def test_ctrl_c() -> None:
    """Within a call, not after it."""
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        time.sleep(1)
        run.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert run.stdout.readline() == "stopped\n"
        assert time.monotonic() - start < 20
    assert run.returncode == 0


def test_a_call_within_progress() -> None:
    """Reports to nobody, or to its own function."""
    model, seen, inner = build("gated"), [], []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        model.sample(1, generator=2)
        model.sample(1, generator=2, progress=lambda done, total: inner.append(total))

    model.sample(N, generator=1, progress=progress)
    assert seen[-1] == N * 6
    assert set(inner) == {6}


# --- what is refused -------------------------------------------------------------------------------------------------


def changed(program: Program, i: int, **fields: Any) -> Program:
    stages = list(program.stages)
    stages[i] = replace(stages[i], **fields)
    return replace(program, stages=tuple(stages))


def unsound() -> Iterator[Program]:
    """Programs that look at what is not there yet, each a way of its own; and one too large to keep."""

    def program(planes: tuple[Plane, ...], *stages: Stage, size: int = 4) -> Program:
        return Program(size, size, 1, 4, 1, "categorical", 1, "openai", 1, len(stages), 0, planes, stages)

    logits, other = Plane(4), Plane(4)
    head = {"phase": HEAD, "weight": 0}
    image, left = Read(0, 0, 0, 0, 1), Read(0, 0, -1, 0, 1)
    yield program((Plane(1), logits), Stage(1, 0, 4, reads=(image,), **head))  # the pixel that is drawn
    first = Stage(2, 0, 4, weight=0, reads=(left,))
    last = Stage(1, 0, 4, phase=HEAD, weight=1, reads=(Read(2, 0, 0, 0, 4),))
    yield program((Plane(1), logits, other), replace(last, weight=0), replace(first, weight=1))  # written later
    own = Stage(2, 0, 4, weight=0, reads=(left, Read(2, 0, -1, 0, 4)))
    yield program((Plane(1), logits, other), own, last)  # what it writes itself, in the same row
    drawn = Stage(1, 0, 4, weight=0, phase=HEAD, reads=(Read(1, 0, -1, 0, 4),))
    yield program((Plane(1), logits), drawn)  # what a head has left
    row = Stage(2, 0, 1, weight=0, phase=ROW, reads=(Read(0, -1, 0, 0, 1),), residual=0)
    yield program((Plane(1), logits, Plane(1)), row, replace(last, reads=(Read(2, 0, 0, 0, 1),)))  # the row to come
    yield program((Plane(1 << 30), logits), Stage(1, 0, 4, reads=(Read(0, -3, -3, 0, 1),), **head))  # too large


def test_strides_that_meet_a_plane_again() -> None:
    """A coarse plane that finer rows and columns read: it is kept for them."""
    from pygen.nn import MaskedConv2d, ProgramBuilder

    torch.manual_seed(0)
    down = MaskedConv2d(1, 4, ((0, -1),), stride=2).double()
    up = MaskedConv2d(4, 4, ((0, 0), (0, -1)), stride=2, transposed=True).double()
    builder = ProgramBuilder((1, 5, 8), 4, 1)
    h = builder.conv((up, builder.conv((down, builder.image))))
    output = builder.plane(4)
    builder.dense(2 * torch.randn(4, 4).double(), torch.zeros(4).double(), h, output, group=0)
    compiled = builder.finish(output, head="categorical")
    x = torch.randint(4, (3, 1, 5, 8))
    known = torch.zeros_like(x, dtype=torch.bool)
    known[..., 4:7] = True
    drawn = [causal_sampler(compiled.program, compiled.tensors, x, known, generator=1)[0]]
    with pygen.backends.use("reference"):
        drawn.append(causal_sampler(compiled.program, compiled.tensors, x, known, generator=1)[0])
    assert torch.equal(*drawn)


def test_wrong_programs() -> None:
    model = build("gated")
    compiled = model.program()
    program = compiled.program
    assert Program.decode(program.encode()) == program
    pixel = next(i for i, s in enumerate(program.stages) if s.phase == PIXEL and s.reads)
    right = Read(program.stages[pixel].reads[0].plane, 0, 1, 0, program.stages[pixel].reads[0].count)
    wrong = {
        "out of stage 0": changed(program, 0, out=99),
        "of what is known by then": changed(program, pixel, reads=(right, *program.stages[pixel].reads[1:])),
        "activation of stage 1": changed(program, 1, activation=17),
        "weight of stage 0": changed(program, 0, weight=10**6),
        "even for a gate": changed(program, pixel, activation=3, outputs=7),
    }
    x, known = nothing(model)
    for other in unsound():
        with pytest.raises(ValueError, match=r"of what is known by then|of at most"):
            other.check()
        tensors = [torch.zeros(-(-s.outputs // 32), s.depth, 32) for s in other.stages]
        blank = torch.zeros(2, 1, other.height, other.width, dtype=torch.int64)
        with pytest.raises(ValueError, match=r"of what is known by then|of at most"):
            torch.ops.pygen.causal_sampler(
                blank, blank.bool(), None, other.encode(), tensors, [], torch.empty(0).long(), 0, 0, 0, 0, ""
            )
    for words, other in wrong.items():
        with pytest.raises(ValueError, match=words):
            other.check()
        with pytest.raises(ValueError, match=f"causal_sampler: .*{words}"):
            causal_sampler(other, compiled.tensors, x, known)
    shorter = [t[:, 1:] if t.dim() == 3 else t for t in compiled.tensors]
    with pytest.raises(ValueError, match=r"expected tensor \d+ \(\d+, \d+, 32\), got"):
        causal_sampler(program, shorter, x, known)
    with pytest.raises(ValueError, match="the number of tensors"):
        causal_sampler(program, compiled.tensors[1:], x, known)
    with pytest.raises(TypeError, match=r"expected a pygen.program.Program, got Tensor"):
        causal_sampler(program.encode(), compiled.tensors, x, known)
    for words in (program.encode()[:-1], torch.cat([program.encode(), torch.zeros(1).long()]), torch.zeros(0).long()):
        with pytest.raises(ValueError, match="expected"):
            Program.decode(words)


def test_weights_that_are_nan() -> None:
    for name, words in (("gated", "expected logits"), ("plusplus", "expected parameters of a mixture")):
        model = build(name)
        with torch.no_grad():
            next(iter(model.head.parameters())).fill_(math.nan)
        for options in ({}, {"temperature": 0.0}):
            for implementation in ("reference", "native"):
                with pygen.backends.use(implementation), pytest.raises(ValueError, match=words):
                    model.sample(2, generator=0, **options)


def test_dropout_is_not_drawn_and_modes_stay() -> None:
    model = build("plusplus").train()
    x = model.sample(3, generator=0)
    assert model.training
    assert torch.equal(x, model.eval().sample(3, generator=0))
