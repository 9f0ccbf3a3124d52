"""FrechetInceptionDistance against torchmetrics' own, among other metrics, over processes, and without the peer."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pygen.integrations.torchmetrics import FrechetInceptionDistance
from pygen.metrics import Inception

from ..metrics import peers
from ..training.test_kills import ENVIRONMENT

SIZE = (3, 2, 2)


class Net(nn.Module):
    """Features of tiny images, some far from 0 beside their spread."""

    def __init__(self, d: int = 6, offset: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(12, d)
        self.register_buffer("offset", torch.tensor(offset))

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1).to(self.linear.weight.dtype) / 255) + self.offset


def batches(count: int = 5, n: int = 20, high: int = 255) -> list[Tensor]:
    generator = torch.Generator().manual_seed(high)
    return [torch.randint(0, high, (n, *SIZE), dtype=torch.uint8, generator=generator) for _ in range(count)]


def fed(metric: Any, count: int = 5, n: int = 20) -> Any:
    for real, fake in zip(batches(count, n), batches(count, n, 200), strict=True):
        metric.update(real, real=True)
        metric.update(fake, real=False)
    return metric


def ours(**options: Any) -> FrechetInceptionDistance:
    return FrechetInceptionDistance(options.pop("feature", None) or Net(), input_img_size=SIZE, **options)


# --- the peer ---------------------------------------------------------------------------------------------------------


def theirs(**options: Any) -> Any:
    module = pytest.importorskip("torchmetrics.image.fid")
    return module.FrechetInceptionDistance(options.pop("feature", None) or Net(), input_img_size=SIZE, **options)


@pytest.mark.peer
def test_signature() -> None:
    peer = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance
    for name in ("__init__", "update", "compute", "reset"):
        expected, found = (
            inspect.signature(getattr(kind, name)).parameters for kind in (peer, FrechetInceptionDistance)
        )
        assert list(expected) == list(found)
        assert [p.default for p in expected.values()] == [p.default for p in found.values()]
        assert [p.kind for p in expected.values()] == [p.kind for p in found.values()]


@pytest.mark.peer
def test_values_and_states() -> None:
    a, b = fed(ours()), fed(theirs())
    torch.testing.assert_close(a.compute(), b.compute(), rtol=1e-4, atol=0)
    assert a.compute().dtype == b.compute().dtype == torch.float32
    for side in ("real", "fake"):
        for what in ("sum", "cov_sum", "num_samples"):
            mine, other = (getattr(metric, f"{side}_features_{what}") for metric in (a, b))
            assert mine.dtype == other.dtype
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


@pytest.mark.peer
def test_dtypes() -> None:
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        values = [fed(metric.set_dtype(dtype)).compute() for metric in (ours(), theirs())]
        assert values[0].dtype == values[1].dtype == dtype
        torch.testing.assert_close(*values, rtol=tolerance, atol=0)
    half = fed(ours().set_dtype(torch.bfloat16)).compute()  # the peer has no eigenvalues then
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), fed(ours()).compute().double(), rtol=0.05, atol=0)


@pytest.mark.peer
@pytest.mark.parametrize(("antialias", "resize"), [(True, "torchmetrics"), (False, "torch-fidelity")])
@pytest.mark.parametrize("normalize", [False, True])
def test_inception(tmp_path: Path, antialias: bool, resize: str, normalize: bool) -> None:
    """The network of an int is Inception, which test_inception.py compares; here that options and rounding reach it."""
    pytest.importorskip("torchmetrics")
    torch.save(peers.state(), tmp_path / "weights.pth")
    path = str(tmp_path / "weights.pth")
    a = FrechetInceptionDistance(64, normalize=normalize, feature_extractor_weights_path=path, antialias=antialias)
    b = theirs(feature=Inception(path, taps=64, resize=resize))
    for real in (True, False):
        x = torch.randint(0, 255 if real else 200, (4, 3, 16, 16), dtype=torch.uint8)
        a.update((x.float() + 0.5) / 255 if normalize else x, real=real)
        b.update(x, real=real)
    torch.testing.assert_close(a.real_features_sum, b.real_features_sum, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(a.fake_features_cov_sum, b.fake_features_cov_sum, rtol=1e-5, atol=1e-6)


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_a_metric_among_metrics() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    assert isinstance(ours(), torchmetrics.Metric)
    both = torchmetrics.MetricCollection({"a": ours(), "b": ours(feature=Net(4)), "c": ours()})
    for x, y in zip(batches(), batches(5, 20, 200), strict=True):
        both.update(x, real=True)
        both.update(y, real=False)
    found = both.compute()
    expected = fed(ours()).compute()
    torch.testing.assert_close(found["a"], expected)
    torch.testing.assert_close(found["c"], expected)
    assert found["b"] != expected
    both.reset()
    assert both["a"].real_features_num_samples == 0

    one, two = fed(ours(), 3), fed(ours(), 5)
    one.merge_state(two)
    assert one.real_features_num_samples == 160
    three = fed(fed(ours(), 3), 5)
    torch.testing.assert_close(one.compute(), three.compute())
    assert one.metric_state.keys() == {"real_features_moments", "fake_features_moments"}

    kept = fed(ours())
    kept.persistent(True)
    other = ours()
    other.persistent(True)
    other.load_state_dict(kept.state_dict())
    torch.testing.assert_close(other.compute(), kept.compute())
    with pytest.raises(ValueError, match="Unexpected keyword"):
        ours(nonsense=1)


# --- with the peer, and without ---------------------------------------------------------------------------------------


def check() -> None:
    """All that a metric does by itself."""
    metric = fed(ours())
    value = metric.compute()
    assert value.shape == ()
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.to("cpu")):
        assert torch.equal(other.compute(), value)
        assert other.real_features_num_samples == 100
    changed = copy.deepcopy(metric)
    changed.update(batches(1)[0], real=True)
    assert (changed.real_features_num_samples, metric.real_features_num_samples) == (120, 100)
    assert metric.state_dict().keys() == {f"inception.{name}" for name in Net().state_dict()}

    for convert in (
        metric.half,
        metric.double,
        metric.float,
        lambda: metric.to(torch.float16),
        lambda: metric.to("cpu"),
    ):
        convert()
        assert metric.real_features_moments.dtype == torch.float64
    metric.reset()
    assert metric.real_features_moments.dtype == torch.float64
    assert not metric.real_features_moments.any()

    # Statistics of features whose mean is 10^4 of their spread: the distance is that of the features less the mean.
    far, near = fed(ours(feature=Net(offset=0.0).double())), fed(ours(feature=Net(offset=1e4).double()))
    torch.testing.assert_close(far.compute(), near.compute(), rtol=1e-7, atol=0)
    same = ours()
    for x in batches(2, 2):  # four samples of six features
        same.update(x, real=True)
        same.update(x, real=False)
    assert same.compute().abs() < 1e-6

    for bad in (torch.nan, torch.inf):
        broken = fed(ours())
        broken.update(torch.full((2, *SIZE), bad), real=False)
        assert broken.compute().isnan()
        assert broken.compute().dtype == torch.float32

    keeping = fed(ours(reset_real_features=False))
    first = keeping.compute()
    batch = batches(1, 20, 100)[0]
    batch_value = keeping(batch, real=False)
    alone = fed(ours())
    alone.fake_features_moments.zero_()
    alone.update(batch, real=False)
    torch.testing.assert_close(batch_value, alone.compute())
    assert (keeping.real_features_num_samples, keeping.fake_features_num_samples) == (100, 120)
    keeping.reset()
    assert (keeping.real_features_num_samples, keeping.fake_features_num_samples) == (100, 0)
    for fake in batches(5, 20, 200):
        keeping.update(fake, real=False)
    assert torch.equal(keeping.compute(), first)

    with pytest.raises(
        RuntimeError, match="expected at least 2 samples, real and generated, for a distance, got 0 and 0"
    ):
        ours().compute()
    single = ours()
    single.update(batches(1)[0], real=True)
    single.update(batches(1, 1)[0], real=False)
    with pytest.raises(RuntimeError, match="got 20 and 1"):
        single.compute()
    with pytest.raises(RuntimeError, match="got 20 and 0"):
        ours()(batches(1)[0], real=True)
    wrong = ours()
    wrong.inception = nn.Sequential(nn.Flatten(), Slice())
    with pytest.raises(ValueError, match=r"expected features \[N, 6\], got \(20, 3\)"):
        wrong.update(batches(1)[0], real=True)


class Slice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3].float()


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_it_works() -> None:
    check()


def test_it_works_without_torchmetrics() -> None:
    script = (
        "import sys; sys.modules['torchmetrics'] = None\n"
        "from tests.integrations import test_torchmetrics as tests\n"
        "from pygen.integrations import torchmetrics as ours\n"
        "assert ours._Base is ours._Module\n"
        "tests.check()\n"
        "try: tests.ours(sync_on_compute=False)\n"
        "except TypeError as error: assert 'sync_on_compute: arguments of torchmetrics.Metric need' in str(error)\n"
        "try: tests.ours().plot()\n"
        "except ImportError as error: assert 'plot needs torchmetrics' in str(error)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_number_of_features() -> None:
    told = Net()
    told.num_features = torch.tensor(6)
    told.forward = None
    assert FrechetInceptionDistance(told).real_features_sum.shape == (6,)
    told.num_features = 6
    assert FrechetInceptionDistance(told).real_features_sum.shape == (6,)
    told.num_features = "6"
    with pytest.raises(TypeError, match="expected num_features of feature as an int or a tensor, got str"):
        FrechetInceptionDistance(told)


def test_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected feature to be 64, 192, 768 or 2048, got 2"):
        FrechetInceptionDistance(2)
    with pytest.raises(TypeError, match="expected feature as an int or a module, got str"):
        FrechetInceptionDistance("2048")
    with pytest.raises(ValueError, match="expected normalize as a bool, got 1"):
        FrechetInceptionDistance(normalize=1)
    with pytest.raises(ValueError, match="expected reset_real_features as a bool, got 'no'"):
        FrechetInceptionDistance(reset_real_features="no")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("PYGEN_INCEPTION", raising=False)
    with pytest.raises(FileNotFoundError, match="expected Inception's weights"):
        FrechetInceptionDistance()


# --- processes --------------------------------------------------------------------------------------------------------


def processes(without: bool) -> None:
    """Each of three processes sees a part, the last no generated images; all get the distance of the whole."""
    from pygen import ranks

    with ranks.group():
        metric = ours()
        for i, (real, fake) in enumerate(zip(batches(), batches(5, 20, 200), strict=True)):
            if i % 3 == ranks.rank():
                metric.update(real, real=True)
            if i % 2 == ranks.rank():
                metric.update(fake, real=False)
        own = metric.real_features_num_samples.item()
        torch.testing.assert_close(metric.compute(), whole(without).compute())
        assert metric.real_features_num_samples == own


def whole(without: bool) -> FrechetInceptionDistance:
    """What has seen all, and asks no other process."""
    metric = ours() if without else ours(sync_on_compute=False)
    metric._to_sync = False
    return fed(metric)


@pytest.mark.parametrize("without", [False, True])
def test_processes(tmp_path: Path, without: bool) -> None:
    (tmp_path / "script.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        f"if {without}: sys.modules['torchmetrics'] = None\n"
        "from tests.integrations.test_torchmetrics import processes\n"
        f"processes({without})\n"
    )
    if not without:
        pytest.importorskip("torchmetrics")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    done = subprocess.run(
        [*run, str(tmp_path / "script.py")], env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
