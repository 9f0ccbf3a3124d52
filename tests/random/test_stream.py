"""The stream: published vectors, bits that depend on nothing but (seed, sample, step, element), seeds, errors."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pygen import _ext, backends, random
from pygen.ops import dequantize
from pygen.reference import random as reference
from tests.harness import backend

DRAWS: dict[str, Callable[..., Tensor]] = {
    "bits": random.bits,
    "uniform": random.uniform,
    "normal": random.normal,
    "logistic": random.logistic,
    "gumbel": random.gumbel,
    "integers": lambda shape, **place: random.integers(10, shape, **place),
    # Values that depend on the sample too: a row must meet its own.
    "bernoulli": lambda shape, **place: random.bernoulli(torch.full(tuple(shape), 0.3), **place),
    "categorical": lambda shape, **place: random.categorical(torch.arange(7.0).expand(*shape, 7) / 3, **place),
    "dequantize": lambda shape, **place: dequantize(torch.zeros(tuple(shape), dtype=torch.uint8), 4, **place),
}
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
every_backend = pytest.mark.parametrize("implementation", backend.ALL, ids=str)


# --- words -----------------------------------------------------------------------------------------------------------

# Random123 1.14, tests/kat_vectors: philox4x32 10, counter, key, result.
VECTORS = [
    ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0_A4093822,
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), VECTORS)
def test_known_answers_of_the_reference(counter: tuple[int, ...], key: int, words: str) -> None:
    found = reference.philox([torch.tensor(c) for c in counter], key)
    assert " ".join(f"{int(w):08x}" for w in found) == words


@every_backend
@pytest.mark.parametrize(("counter", "key", "words"), VECTORS)
def test_known_answers(implementation: backend.Backend, counter: tuple[int, ...], key: int, words: str) -> None:
    block, word, low, high = counter
    sample = low | high << 32
    ids = torch.tensor([sample - (sample >> 63 << 64)])
    with implementation.active():
        found = [
            random.bits(
                (1, 1), generator=key, sample_ids=ids, step=word & 0xFFFFFF, draw=word >> 24,
                offset=block // 16 * 64 + 16 * k + block % 16,
            )
            for k in range(4)
        ]  # fmt: skip
    assert " ".join(f"{int(w) & 0xFFFFFFFF:08x}" for w in found) == words


# --- on nothing else -------------------------------------------------------------------------------------------------


@every_backend
@every_draw
def test_a_sample_does_not_depend_on_its_batch(draw: Callable[..., Tensor], implementation: backend.Backend) -> None:
    with implementation.active():
        for row in ((), (2,), (3, 7), (70,)):
            place = {"generator": 7, "step": 2, "draw": 1}
            whole = draw((9, *row), first_sample=5, **place)
            halves = [draw((4, *row), first_sample=5, **place), draw((5, *row), first_sample=9, **place)]
            assert torch.equal(whole, torch.cat(halves))
            order = torch.tensor([3, 8, 0, 0, 5])
            assert torch.equal(whole[order], draw((5, *row), sample_ids=5 + order, **place))
            strided = torch.stack([5 + order, order]).T.contiguous()[:, 0]
            assert not strided.is_contiguous()
            assert torch.equal(whole[order], draw((5, *row), sample_ids=strided, **place))


@every_backend
@every_draw
def test_a_part_of_a_sample_is_that_part(draw: Callable[..., Tensor], implementation: backend.Backend) -> None:
    with implementation.active():
        whole = draw((3, 700), generator=7)
        for first, n in ((1, 1), (3, 13), (15, 2), (64, 64), (63, 130), (640, 60), (31, 16)):
            assert torch.equal(whole[:, first : first + n], draw((3, n), generator=7, offset=first))


@every_draw
def test_tiers_and_the_reference_agree_bit_by_bit(draw: Callable[..., Tensor]) -> None:
    found = {}
    for implementation in backend.ALL:
        with implementation.active():
            found[str(implementation)] = draw((50, 1001), generator=2**63 + 1, first_sample=2**40, offset=9)
    first = next(iter(found.values()))
    for name, t in found.items():
        assert torch.equal(t, first), name


@every_draw
def test_threads_do_not_count(draw: Callable[..., Tensor]) -> None:
    before = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found += [draw((3, 100_003), generator=1), draw((100_003, 3), generator=1)]
    finally:
        torch.set_num_threads(before)
    for one, two in itertools.pairwise(found[::2]):
        assert torch.equal(one, two)
    for one, two in itertools.pairwise(found[1::2]):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["uniform", "normal", "logistic", "gumbel"])
def test_dtypes_hold_the_same_numbers(name: str) -> None:
    x = DRAWS[name]((20, 3000), generator=1)
    assert torch.equal(DRAWS[name]((20, 3000), generator=1, dtype=torch.float64), x.double())
    for dtype in (torch.bfloat16, torch.float16):
        y = DRAWS[name]((20, 3000), generator=1, dtype=dtype)
        if name == "uniform":  # rounded down
            assert (y.double() <= x.double()).all()
            assert y.max() < 1
            assert torch.equal(torch.where(y.double() < x.double(), y.nextafter(y.new_tensor(2.0)), y).double() > x,
                               y.double() < x.double())  # fmt: skip
        else:
            assert torch.equal(y, x.to(dtype))


def test_every_part_of_the_place_counts() -> None:
    place = {"generator": 3, "first_sample": 4, "step": 5, "draw": 6, "offset": 7}
    base = random.bits((5, 40), **place)
    for name, other in (("generator", 4), ("generator", 3 + 2**32), ("generator", 3 + 2**63), ("step", 6), ("draw", 7)):
        assert (random.bits((5, 40), **place | {name: other}) != base).all(), name
    for bit in (3, 20, 31, 32, 45, 62):
        assert (random.bits((5, 40), **place | {"first_sample": 4 + 2**bit}) != base).all()
    for bit in (7, 20, 33):
        assert (random.bits((5, 40), **place | {"offset": 7 + 2**bit}) != base).all()


def test_neighbouring_seeds_do_not_overlap() -> None:
    """No 128-bit block of one is found in another: the cipher under another key."""
    words = [random.bits((4, 4096), generator=seed) for seed in (0, 1, 2, 2**32, 2**63)]
    tiles = torch.cat([w.unflatten(1, (-1, 4, 16)).movedim(2, -1).reshape(-1, 4) for w in words])
    assert len(tiles.unique(dim=0)) == len(tiles) == 5 * 4 * 1024


# --- seeds -----------------------------------------------------------------------------------------------------------


@every_backend
@every_draw
def test_sources_of_seeds(draw: Callable[..., Tensor], implementation: backend.Backend) -> None:
    with implementation.active():
        generator = torch.Generator().manual_seed(3)
        seed = random.seed_of(torch.Generator().manual_seed(3))
        first, second = draw((40, 5), generator=generator), draw((40, 5), generator=generator)
        assert torch.equal(first, draw((40, 5), generator=seed))
        assert not torch.equal(first, second)  # it advances
        torch.manual_seed(3)
        assert torch.equal(draw((40, 5)), first)
        assert torch.equal(draw((40, 5)), second)


def test_a_seed_is_one_draw_of_64_bits() -> None:
    torch.manual_seed(3)
    seeds = [random.seed_of(None) for _ in range(1000)]
    torch.manual_seed(3)
    expected = torch.empty(1000, dtype=torch.int64)
    for i in range(1000):
        expected[i] = torch.empty((), dtype=torch.int64).random_(-(2**63), None)
    assert seeds == [int(v) % 2**64 for v in expected]
    assert max(seeds) >= 2**63
    assert random.seed_of(2**64 - 1) == 2**64 - 1


def test_explicit_noise_draws_nothing() -> None:
    state = torch.get_rng_state()
    dequantize(torch.zeros(2, 3, dtype=torch.uint8), 2, 0.5)
    random.normal((2, 3), generator=1)
    assert torch.equal(state, torch.get_rng_state())


def test_a_compiled_function_draws_anew() -> None:
    function = torch.compile(lambda: random.normal((3,)) - random.normal((3,)), fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    found = [function(), function()]
    torch.manual_seed(0)
    for one in found:  # two draws each, neither merged nor repeated
        assert torch.equal(one, random.normal((3,)) - random.normal((3,)))


def test_seeds_that_are_none() -> None:
    for wrong in (True, 1.0, "1"):
        with pytest.raises(TypeError, match=r"expected generator to be a torch.Generator, an int seed or None, got"):
            random.normal((2,), generator=wrong)


# --- errors and gradients --------------------------------------------------------------------------------------------


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"normal: expected a shape of at least one dimension.* got \(\)"):
        random.normal(())
    with pytest.raises(ValueError, match=r"expected sample_ids of shape \(3,\), got \(2,\)"):
        random.normal((3,), sample_ids=torch.arange(2))
    with pytest.raises(ValueError, match="expected sample_ids on meta, got cpu"):
        random.normal((2,), sample_ids=torch.arange(2), device="meta")
    with pytest.raises(ValueError, match="expected sample_ids on cpu, got meta"):
        random.bernoulli(torch.ones(2), sample_ids=torch.arange(2, device="meta"))
    with pytest.raises(TypeError, match="expected sample_ids as an int64 tensor, got list"):
        random.normal((2,), sample_ids=[0, 1])
    for high, error in ((0, ValueError), (2**32 + 1, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="expected high"):
            random.integers(high, (2,))
    assert random.normal((2,), device="meta").device.type == "meta"


def test_draws_need_no_gradient() -> None:
    p = torch.full((3, 4), 0.5, requires_grad=True)
    for mode in ("reference", None):
        with backends.use(mode):
            assert not random.bernoulli(p).requires_grad
            assert not random.categorical(p).requires_grad


def test_documentation() -> None:
    """Each function lists its keywords; the module's documentation says what they mean."""
    names = set(random.__all__) - {"Source", "seed_of"}
    assert names | {"dequantize"} == DRAWS.keys()
    for name in names:
        assert "`pygen.random`" in inspect.getdoc(getattr(random, name)), name
        for argument in ("generator", "first_sample", "sample_ids", "step", "draw", "offset"):
            assert inspect.signature(getattr(random, name)).parameters[argument].kind is inspect.Parameter.KEYWORD_ONLY
            assert f"    {argument}:" in random.__doc__


@pytest.mark.skipif(not _ext.tiers(), reason="no native modules")
def test_expanded_probabilities_are_not_copied() -> None:
    p = torch.tensor([[0.1], [0.9]])
    expected = random.bernoulli(p.expand(2, 50_000).contiguous(), generator=1)
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        found = random.bernoulli(p.expand(2, 50_000), generator=1)
    allocated = sum(max(0, e.nbytes()) for e in profile.kineto_results.events() if e.name() == "[memory]")
    assert torch.equal(found, expected)
    assert allocated < 2 * found.nbytes


def test_ids_at_the_ends() -> None:
    last = (1 << 63) - 1
    for implementation in backend.ALL:
        with implementation.active():
            one = random.bits((1, 5), generator=1, first_sample=last)
            assert torch.equal(one, random.bits((1, 5), generator=1, sample_ids=torch.tensor([last])))
            with pytest.raises(ValueError, match="samples below 2\\^63, got 2 from"):
                random.bits((2, 5), generator=1, first_sample=last)
            with pytest.raises(ValueError, match=r"sample_ids of shape \(2,\), got \(0,\)"):
                random.bits((2, 5), generator=1, sample_ids=torch.empty(0, dtype=torch.int64))
            assert random.normal((0, 70), sample_ids=torch.empty(0, dtype=torch.int64)).stride() == (70, 1)


def test_types() -> None:
    x = torch.zeros(2, 3, dtype=torch.uint8)
    calls: list[tuple[Callable[[], Tensor], type[Exception], str]] = [
        (lambda: random.bernoulli(0.5), TypeError, "expected p as a tensor, got float"),  # type: ignore[arg-type]
        (lambda: random.categorical([[0.5]]), TypeError, "expected logits as a tensor, got list"),  # type: ignore[arg-type]
        (lambda: random.bits((1.5, 2)), TypeError, "expected shape as a sequence of integers"),  # type: ignore[arg-type]
        (lambda: random.bits(5), TypeError, "expected shape as a sequence of integers, got 5"),  # type: ignore[arg-type]
        (lambda: random.bits((1 << 70,)), ValueError, "expected sizes below 2\\^63"),
        (lambda: random.bits((1, 2), offset=1 << 70), ValueError, "expected offset in"),
        (lambda: dequantize([1, 2], 4), TypeError, "expected x as a tensor, got list"),  # type: ignore[arg-type]
        (lambda: dequantize(x, 4.0), TypeError, "expected levels as an integer, got 4.0"),  # type: ignore[arg-type]
        (lambda: dequantize(x, 1 << 70), ValueError, "expected levels in"),
        (lambda: dequantize(x, 4, "a"), TypeError, "expected noise as a tensor or a number"),  # type: ignore[arg-type]
        (lambda: dequantize(x, 4, True), TypeError, "expected noise as a tensor or a number"),
        (lambda: dequantize(x, 4, 1.0), ValueError, r"expected noise in \[0, 1\), got 1.0"),
        (lambda: dequantize(x, 4, scale="2"), TypeError, "expected scale as a number"),  # type: ignore[arg-type]
    ]
    for call, error, words in calls:
        with pytest.raises(error, match=words):
            call()


def test_weights_are_as_exact_as_said() -> None:  # measured 2^-23.0
    logits = torch.linspace(-22, 0, 1 << 16)[:, None].mul(torch.tensor([1.0, 0.0]))
    exact = logits.double().exp() * 2**30
    assert ((reference.weights(logits) - exact).abs() <= exact * 2**-22 + 0.5).all()
