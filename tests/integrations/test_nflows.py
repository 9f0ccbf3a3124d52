"""The drop-in for nflows' splines, beside nflows and normflows: functions, and flows whose splines are replaced."""

from __future__ import annotations

import inspect
import pickle
import runpy
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen import ops
from pygen.integrations import nflows as ours

pytestmark = pytest.mark.peer

NAMES = ("unconstrained_rational_quadratic_spline", "rational_quadratic_spline")
HOMES = ("nflows.transforms.splines.rational_quadratic", "normflows.utils.splines")


def parameters(bins: int, more: int, shape: tuple[int, ...] = (50, 3)) -> list[Tensor]:
    return [torch.randn(*shape, k, dtype=torch.float64) for k in (bins, bins, bins + more)]


def results(function: Callable[..., Any], *tensors: Tensor) -> list[Tensor]:
    """Values and gradients."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    y, logabsdet = function(*leaves)
    return [y, logabsdet, *torch.autograd.grad((y.square() + logabsdet).sum(), leaves)]


def same(a: list[Tensor], b: list[Tensor]) -> None:
    for found, expected in zip(a, b, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("name", NAMES)
def test_signatures(home: str, name: str) -> None:
    theirs = inspect.signature(getattr(pytest.importorskip(home), name))
    mine = inspect.signature(getattr(ours, name))
    assert [(p.name, p.default) for p in mine.parameters.values()] == [
        (p.name, p.default) for p in theirs.parameters.values()
    ]


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("options", [{}, {"tail_bound": 3.0, "min_bin_width": 0.02, "min_derivative": 0.1}])
def test_with_tails(home: str, inverse: bool, options: dict[str, Any]) -> None:
    theirs = pytest.importorskip(home).unconstrained_rational_quadratic_spline
    tensors = [2 * torch.randn(50, 3, dtype=torch.float64), *parameters(8, -1)]
    same(
        results(lambda *t: ours.unconstrained_rational_quadratic_spline(*t, inverse=inverse, **options), *tensors),
        results(lambda *t: theirs(*t, inverse=inverse, **options), *tensors),
    )


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("inverse", [False, True])
def test_without_tails(home: str, inverse: bool) -> None:
    theirs = pytest.importorskip(home).rational_quadratic_spline
    tensors = [torch.rand(50, 3, dtype=torch.float64), *parameters(5, 1)]
    same(
        results(lambda *t: ours.rational_quadratic_spline(*t, inverse), *tensors),
        results(lambda *t: theirs(*t, inverse), *tensors),
    )


def test_errors_are_theirs() -> None:
    base = pytest.importorskip("nflows.transforms.base")
    x, given = torch.tensor([[1.5, 0.5, 0.2]]), [t.float()[:1] for t in parameters(4, 1)]
    for error in (base.InputOutsideDomain, ops.InputOutsideDomain, ValueError):  # whatever a caller knows
        with pytest.raises(error, match=r"within \[0, 1\]") as caught:
            ours.rational_quadratic_spline(x, *given)
    again = pickle.loads(pickle.dumps(caught.value))  # as processes pass it on
    assert type(again) is type(caught.value)
    assert str(again) == str(caught.value)
    with pytest.raises(ValueError, match="min_width"):
        ours.rational_quadratic_spline(x / 2, *given, min_bin_width=0.3)
    with pytest.raises(RuntimeError, match="mirrored tails are not implemented"):
        ours.unconstrained_rational_quadratic_spline(x, *given, tails="mirrored")


def test_errors_without_nflows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "nflows.transforms.base", raising=False)
    given = [t.float()[:1] for t in parameters(4, 1)]
    with pytest.raises(ops.InputOutsideDomain):
        ours.rational_quadratic_spline(torch.full((1, 3), 2.0), *given)
    monkeypatch.setattr(ours, "_HOMES", ("no_such_library",))
    with pytest.raises(ImportError, match="expected nflows or normflows to be installed"):
        ours.patch()


# --- patched libraries ------------------------------------------------------------------------------------------------


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the op is called."""
    calls: list[int] = []
    spline = ops.rational_quadratic_spline
    monkeypatch.setattr(ops, "rational_quadratic_spline", lambda *a, **k: calls.append(1) or spline(*a, **k))
    return calls


def coupling() -> torch.nn.Module:
    transforms, nets = pytest.importorskip("nflows.transforms"), pytest.importorskip("nflows.nn.nets")
    return transforms.PiecewiseRationalQuadraticCouplingTransform(  # type: ignore[no-any-return]
        torch.arange(4) % 2, lambda i, o: nets.ResidualNet(i, o, 16), num_bins=6, tails="linear", tail_bound=2.0
    )


def autoregressive() -> torch.nn.Module:
    transforms = pytest.importorskip("nflows.transforms")
    return transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(  # type: ignore[no-any-return]
        4, 16, num_bins=6, tails="linear", tail_bound=2.0
    )


def of_normflows() -> torch.nn.Module:
    flows = pytest.importorskip("normflows.flows")
    return flows.CircularCoupledRationalQuadraticSpline(4, 1, 16, [0], num_bins=6, tail_bound=2.0)  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [coupling, autoregressive, of_normflows])
def test_flows(make: Callable[[], torch.nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    flow, x = make().double(), torch.randn(20, 4, dtype=torch.float64)

    def run() -> list[Tensor]:
        flow.zero_grad()
        leaf = x.clone().requires_grad_()
        y, logabsdet = flow(leaf)
        (y.square().sum() + logabsdet.sum()).backward()
        back = flow.inverse(y.detach())[0]
        return [y, logabsdet, leaf.grad, back.detach(), *(p.grad for p in flow.parameters() if p.grad is not None)]

    expected, calls = run(), counted(monkeypatch)
    with ours.patch():
        same(run(), expected)
    many = len(calls)
    same(run(), expected)
    assert len(calls) == many
    assert many or make is of_normflows  # whose tails are a list: theirs computes


def test_patch_is_undone() -> None:
    nflows, splines = (pytest.importorskip(f"nflows.transforms.{name}") for name in ("autoregressive", "splines"))
    normflows = pytest.importorskip("normflows.utils.splines")
    caller = types.ModuleType("caller")
    places = [(m, name) for m in (nflows, splines, normflows, caller) for name in NAMES]
    for name in NAMES:
        setattr(caller, name, getattr(splines, name))
    sys.modules["caller"] = caller
    try:
        before = [getattr(*place) for place in places]
        patched = ours.patch()
        assert all(getattr(*place) is not old for place, old in zip(places, before, strict=True))
        with ours.patch():
            pass
        patched.undo()
        patched.undo()
        assert [getattr(*place) for place in places] == before
    finally:
        del sys.modules["caller"]


def test_patches_that_overlap() -> None:
    """Whichever is undone first: of threads, say."""
    splines = pytest.importorskip("nflows.transforms.splines")
    before = [getattr(splines, name) for name in NAMES]
    first, second = ours.patch(), ours.patch()
    first.undo()
    assert all(getattr(splines, name) is not old for name, old in zip(NAMES, before, strict=True))
    second.undo()
    assert [getattr(splines, name) for name in NAMES] == before
    with second:
        assert splines.rational_quadratic_spline is not before[1]
    assert [getattr(splines, name) for name in NAMES] == before


def test_what_was_imported_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under another name, where nobody finds it to put the library's own back."""
    splines = pytest.importorskip("nflows.transforms.splines")
    calls, tensors = counted(monkeypatch), [torch.randn(50, 3, dtype=torch.float64), *parameters(8, -1)]
    with ours.patch():
        kept = splines.unconstrained_rational_quadratic_spline
        kept(*tensors)
        assert len(calls) == 1
    kept(*tensors)
    assert len(calls) == 1


def test_compiled_whole() -> None:
    """As nflows' own splines are not; layers with bounds of their own, too."""
    pytest.importorskip("nflows")
    torch._dynamo.reset()
    x = torch.randn(20, 4)
    with ours.patch():
        for bound in (2.0, 3.0, 4.0):
            layer: Any = coupling()
            layer.tail_bound = bound
            y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)[0]
            torch.testing.assert_close(y, layer(x)[0])


def test_what_is_not_covered_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    splines = pytest.importorskip("normflows.utils.splines")
    calls = counted(monkeypatch)
    x, given = torch.randn(50, 3, dtype=torch.float64), parameters(8, -1)
    bound = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    expected = splines.unconstrained_rational_quadratic_spline(x, *given, tail_bound=bound)
    with ours.patch():
        found = splines.unconstrained_rational_quadratic_spline(x, *given, tail_bound=bound)
        assert not calls
        splines.unconstrained_rational_quadratic_spline(x, *(t.float() for t in given))
        assert not calls
        circular = splines.unconstrained_rational_quadratic_spline(x, *parameters(8, 0), tails="circular")
        assert len(calls) == 1
    same(list(found), list(expected))
    assert circular[0].shape == x.shape


def test_the_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nflows")
    monkeypatch.setattr(sys, "argv", ["nflows_spline_flow.py", "--steps", "3"])
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "nflows_spline_flow.py"), run_name="__main__")
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("nflows ")
    assert second.startswith("patched ")
    assert first.split("nats:")[1] == second.split("nats:")[1]
    assert last.endswith("times as fast")
