"""Inception: the peers' features, the files of weights, what is refused."""

from __future__ import annotations

import copy
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pygen.metrics import Inception
from pygen.metrics.inception import TAPS, WEIGHTS, find_weights

from . import peers

EVERY = tuple(TAPS)


@cache
def inception(resize: str = "pytorch-fid") -> Inception:
    return Inception(peers.state(), taps=EVERY, resize=resize)


@cache
def images(height: int = 48, width: int = 64) -> Tensor:
    """Four smooth images uint8, whose features differ, as those of noise do not."""
    coarse = torch.rand(4, 3, 4, 5, generator=torch.Generator().manual_seed(1)) * 255
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255).to(torch.uint8)


@cache
def features(resize: str = "pytorch-fid") -> dict[int | str, Tensor]:
    return dict(zip(EVERY, inception(resize)(images()), strict=True))


def assert_same_features(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    error = (ours - theirs).norm()
    assert error <= 1e-5 * theirs.norm()  # measured worst: 4e-7
    assert error <= 3e-5 * (theirs - theirs.mean(0)).norm()  # of what tells the images apart; measured worst: 6e-6


# --- the peers --------------------------------------------------------------------------------------------------------


@pytest.mark.peer
def test_torch_fidelity() -> None:
    names = [str(tap) for tap in EVERY]
    for tap, theirs in zip(EVERY, peers.torch_fidelity_network(*names)(images()), strict=True):
        assert_same_features(features("torch-fidelity")[tap], theirs)


@pytest.mark.peer
def test_pytorch_fid() -> None:
    theirs = peers.pytorch_fid_network()(images() / 255)
    for tap, maps in zip((64, 192, 768, 2048), theirs, strict=True):
        assert_same_features(features()[tap], F.adaptive_avg_pool2d(maps, 1)[:, :, 0, 0])


@pytest.mark.peer
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(48, 64), (500, 400)])
def test_torchmetrics(antialias: bool, size: tuple[int, int]) -> None:
    x = images(*size)[:2]
    ours = Inception(peers.state(), taps=768, resize="torchmetrics" if antialias else "torch-fidelity")(x)
    assert_same_features(ours, peers.torchmetrics_network(antialias)(x))


@pytest.mark.peer
def test_clean_fid() -> None:
    """Its resizing before the network, whose input it makes (x - 128) / 128."""
    resizer = peers.clean_fid().build_resizer("clean")
    x = torch.stack([torch.from_numpy(resizer(image.permute(1, 2, 0).numpy())).permute(2, 0, 1) for image in images()])
    theirs = peers.pytorch_fid_network(resize_input=False, normalize_input=False)((x - 128) / 128)
    assert_same_features(features("clean-fid")[2048], theirs[-1][:, :, 0, 0])


@pytest.mark.peer
def test_peers_parameters_are_ours() -> None:
    theirs = {key: x.shape for key, x in peers.torch_fidelity_network("64").state_dict().items()}
    assert {key: x.shape for key, x in peers.state().items()} == {
        key: shape for key, shape in theirs.items() if not key.endswith("num_batches_tracked")
    }
    assert_same_features(Inception(peers.torch_fidelity_network("64").state_dict())(images()), features()[2048])


# --- taps, inputs -----------------------------------------------------------------------------------------------------


def test_taps() -> None:
    for tap in EVERY:
        assert features()[tap].shape == (4, TAPS[tap])
    x = images()[:2]
    for tap in (64, 2048, "logits"):
        torch.testing.assert_close(Inception(peers.state(), taps=tap)(x), features()[tap][:2])
    assert isinstance(Inception(peers.state(), taps=[64])(x), tuple)
    first, last = Inception(peers.state(), taps=[192, 64])(x)  # in the order asked for
    assert (first.shape, last.shape) == ((2, 192), (2, 64))


def test_bias_of_the_logits() -> None:
    difference = features()["logits"] - features()["logits_unbiased"]
    torch.testing.assert_close(difference, peers.state()["fc.bias"].expand(4, -1), rtol=0, atol=1e-6)


def test_layers_behind_the_last_tap_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Inception(peers.state(), taps=64)
    for stage in network.stages[1:]:
        monkeypatch.setattr(stage, "forward", None)
    assert network(images()[:1]).shape == (1, 64)


@pytest.mark.parametrize("resize", ["pytorch-fid", "torch-fidelity", "torchmetrics", "clean-fid"])
def test_floats_and_lists(resize: str) -> None:
    network = Inception(peers.state(), taps=64, resize=resize)
    x = images()[:2]
    expected = network(x)
    torch.testing.assert_close(network(x / 255), expected)
    torch.testing.assert_close(network(x.contiguous(memory_format=torch.channels_last)), expected)
    other = images(30, 20)[2]
    torch.testing.assert_close(network([x[0], other, x[1]])[::2], expected)
    torch.testing.assert_close(network([x[0], other])[1:], network(other[None]))


def test_is_differentiable_in_the_images() -> None:
    network = Inception(peers.state(), taps=64)
    x = (images(20, 20)[:1] / 255).requires_grad_()
    network(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().min() > 0
    assert all(p.grad is None for p in network.parameters())


def test_dtype_is_that_of_the_weights() -> None:
    network = Inception(peers.state(), taps=64).double()
    assert network(images()[:1]).dtype == torch.float64
    torch.testing.assert_close(network(images()[:1]).float(), features()[64][:1])
    network.bfloat16()  # images are scaled in float32
    assert network(images()[:1]).dtype == torch.bfloat16
    torch.testing.assert_close(network(images()[:1]).float(), features()[64][:1], rtol=0.05, atol=0.01)


def test_compiles_as_one_graph() -> None:
    network = Inception(peers.state(), taps=[64, "logits"])
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images()[:1]), network(images()[:1]))


def test_copies() -> None:
    network = Inception(peers.state(), taps=64)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(images()[:1]), network(images()[:1]))


def test_weights_stay_the_callers() -> None:
    state = dict(peers.state())
    network = Inception(state, taps="logits")
    network.fc.weight.zero_()
    assert state["fc.weight"].abs().max() > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("resize", ["pytorch-fid", "torch-fidelity", "torchmetrics", "clean-fid"])
def test_on_a_gpu(resize: str) -> None:
    network = Inception(peers.state(), taps=EVERY, resize=resize).cuda()
    with torch.backends.cudnn.flags(allow_tf32=False):
        found = network(images().cuda())
    for tap, there in zip(EVERY, found, strict=True):
        assert_same_features(there.cpu(), features(resize)[tap])


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3, 8, 8),
        torch.zeros(1, 1, 8, 8),
        torch.zeros(1, 4, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 3, 8, 8, dtype=torch.int64),
    ],
)
def test_other_shapes_and_dtypes(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected images \[N, 3, H, W\], uint8 or floats in \[0, 1\], got"):
        inception()(x)


@pytest.mark.parametrize("value", [-1.0, 255.0])
def test_floats_beyond_the_unit_interval(value: float) -> None:
    with pytest.raises(ValueError, match=r"expected images of floats in \[0, 1\], got"):
        inception()(torch.full((1, 3, 8, 8), value))


def test_no_images() -> None:
    assert inception()(torch.zeros(0, 3, 8, 8))[3].shape == (0, 2048)
    with pytest.raises(ValueError, match="expected images, got an empty list"):
        inception()([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(taps=128), "expected taps out of 64, 192, 768, 2048, logits_unbiased, logits, got 128"),
        (dict(taps=[64, "2048"]), "got '2048'"),
        (dict(taps=[]), "got none"),
        (dict(resize="bicubic"), "expected resize to be one of pytorch-fid, .*, got 'bicubic'"),
    ],
)
def test_unknown_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Inception(peers.state(), **options)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch hub's folder of checkpoints, empty, and no variable."""
    monkeypatch.delenv("PYGEN_INCEPTION", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("old", [False, True])
def test_from_a_file(tmp_path: Path, old: bool) -> None:
    """As both peers save: with or without the counts of batches, and in the format before zip."""
    path = tmp_path / WEIGHTS[old]
    state = dict(peers.state())
    if not old:
        state["Conv2d_1a_3x3.bn.num_batches_tracked"] = torch.tensor(0)
    torch.save(state, path, _use_new_zipfile_serialization=not old)
    assert torch.equal(Inception(path, taps=64)(images()), features()[64])


def test_where_weights_are_looked_for(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in reversed(WEIGHTS):
        (hub / name).touch()
        assert find_weights() == hub / name
    mine, hers = tmp_path / "mine.pth", tmp_path / "hers.pth"
    mine.touch()
    hers.touch()
    monkeypatch.setenv("PYGEN_INCEPTION", str(mine))
    assert find_weights() == mine
    assert find_weights(hers) == hers
    monkeypatch.setenv("PYGEN_INCEPTION", "")
    assert find_weights() == hub / WEIGHTS[0]


def test_missing_weights(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = f"{WEIGHTS[0]} or {WEIGHTS[1]}"
    with pytest.raises(FileNotFoundError, match=f"{names}, in {hub}, found neither; pass the path .* PYGEN_INCEPTION"):
        Inception()
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/a: expected Inception's weights, {names}"):
        Inception(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}: expected Inception's weights"):
        Inception(tmp_path)
    monkeypatch.setenv("PYGEN_INCEPTION", str(tmp_path / "b"))
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/b, which PYGEN_INCEPTION names: expected"):
        Inception()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


@pytest.mark.parametrize("content", [b"", b"no weights", b"hello", "truncated", [1, 2], {"x": Evil()}])
def test_other_files(tmp_path: Path, content: object, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(dict(list(peers.state().items())[:3]) if content == "truncated" else content, path)
        if content == "truncated":
            path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=f"^{path}: expected the weights of FID's Inception network, .*, got "):
        Inception(path)
    if content in (b"hello", b"no weights") or isinstance(content, dict):
        with pytest.raises(ValueError, match=r"got a file of something else$"):
            Inception(path)
    assert capsys.readouterr().out == ""


def test_other_parameters(tmp_path: Path) -> None:
    state = dict(peers.state())
    del state["Mixed_5b.branch1x1.conv.weight"]
    state |= {"AuxLogits.fc.weight": torch.zeros(1), "AuxLogits.fc.bias": torch.zeros(1)}
    torch.save(state, tmp_path / "w.pth")
    message = (
        f"^{tmp_path}/w.pth: expected the parameters of FID's Inception network, got a state dict without 1 of them "
        r"\(Mixed_5b.branch1x1.conv.weight\) and with 2 others \(AuxLogits.fc.weight, ...\)"
    )
    with pytest.raises(ValueError, match=message):
        Inception(tmp_path / "w.pth")


@pytest.mark.parametrize("value", [torch.zeros(1000, 2048), 1.0])
def test_parameters_of_another_shape(value: object) -> None:
    with pytest.raises(ValueError, match=r"^weights: expected fc.weight of shape \[1008, 2048\], got"):
        Inception({**peers.state(), "fc.weight": value})
