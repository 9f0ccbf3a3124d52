"""The Inception network of FID: the TensorFlow graph of 2015-12-05 in plain PyTorch, with its published weights."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data._files import reading
from . import resize as resizers

WEIGHTS = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
VARIABLE = "PYGEN_INCEPTION"
TAPS: dict[int | str, int] = {64: 64, 192: 192, 768: 768, 2048: 2048, "logits_unbiased": 1008, "logits": 1008}
# How images are scaled, and the brightest pixel when they are.
RESIZES: dict[str, tuple[Callable[[Tensor, resizers.Size], Tensor], int]] = {
    "pytorch-fid": (resizers.bilinear, 1),
    "torch-fidelity": (resizers.bilinear_tf1, 255),
    "torchmetrics": (resizers.bilinear_antialias, 255),
    "clean-fid": (resizers.bicubic_antialias, 255),
}
_SIZE = (299, 299)
_EPS = 1e-3  # of the batch norms
_SLACK = 0.01  # that floats may lie beyond [0, 1]: a generator's rounding, a filter's overshoot

Weights = str | os.PathLike[str] | Mapping[str, Tensor]


class Inception(nn.Module):
    """Features of images by the network that FID, KID and the Inception score are defined by.

    weights: path of one of the two published files of the same weights, pytorch-fid's
    `pt_inception-2015-12-05-6726825d.pth` or torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`, or the state
    dict in it. None: the path in the variable PYGEN_INCEPTION, else either file in `torch.hub.get_dir()`/checkpoints,
    where the peers keep theirs. Nothing is downloaded.

    taps: the features, one of `TAPS` or several: 64 and 192, after the two max pools, and 768, before the auxiliary
    classifier, all averaged over space; 2048, what FID is computed from; "logits", or "logits_unbiased" without the
    last layer's bias, as the Inception score has them. Layers behind the last tap are not computed.

    resize: whose way to 299 x 299 pixels (`pygen.metrics.resize`), on which a distance depends visibly: "pytorch-fid",
    "torch-fidelity" (as TensorFlow did; torchmetrics with antialias=False), "torchmetrics" (antialias=True) or
    "clean-fid". pytorch-fid then gives the network 2 x - 1 for x in [0, 1], the others (x - 128) / 128 for 0 .. 255.

    `inception(x)`: x [N, 3, H, W] is uint8 (0 .. 255) or floats in [0, 1], not rounded (torchmetrics' normalize=True
    rounds down to uint8); or a list of N such images [3, H, W] of different sizes. Returns [N, d] for one tap, a tuple
    in the order of `taps` for several, in the dtype of the weights. Differentiable in x; the weights are constants.

    Batch norms are folded into the convolutions when the weights are loaded, and activations are channels_last. On GPUs
    `torch.backends.cudnn.allow_tf32`, which is on by default, applies here as it does to the peers.

    Raises FileNotFoundError where there are no weights, ValueError for a file with other parameters, for unknown taps,
    for images of another shape or dtype, and, on the CPU, for floats beyond [0, 1].
    """

    mixed_sizes = True  # a batch may be a list: see `extract_features`

    def __init__(
        self,
        weights: Weights | None = None,
        *,
        taps: int | str | Sequence[int | str] = 2048,
        resize: str = "pytorch-fid",
    ) -> None:
        super().__init__()
        self.single = isinstance(taps, (int, str))
        self.taps: tuple[int | str, ...] = (taps,) if isinstance(taps, (int, str)) else tuple(taps)
        unknown = [tap for tap in self.taps if tap not in TAPS]
        if unknown or not self.taps:
            got = ", ".join(map(repr, unknown)) or "none"
            raise ValueError(f"expected taps out of {', '.join(map(str, TAPS))}, got {got}")
        if resize not in RESIZES:
            raise ValueError(f"expected resize to be one of {', '.join(RESIZES)}, got {resize!r}")
        self.resize = resize
        with torch.device("meta"):
            self.stages = nn.ModuleList(_stages())
            self.fc = nn.Linear(2048, 1008)
        if isinstance(weights, Mapping):
            self._load(weights, "weights")
        else:
            path = find_weights(weights)
            self._load(_read(path), path)
        self.eval()

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
        if isinstance(images, Tensor):
            x = self._scaled(images)
        else:
            if not images:
                raise ValueError("expected images, got an empty list")
            x = torch.cat([self._scaled(image[None]) for image in images])
        x = x.contiguous(memory_format=torch.channels_last)
        found: dict[int | str, Tensor] = {}
        for tap, stage in zip((64, 192, 768, 2048), self.stages, strict=True):
            x = stage(x)
            if tap in self.taps or tap == 2048:
                found[tap] = x.mean((2, 3))
            if found.keys() >= set(self.taps):
                break
        if "logits" in self.taps:
            found["logits"] = self.fc(found[2048])
        if "logits_unbiased" in self.taps:
            found["logits_unbiased"] = F.linear(found[2048], self.fc.weight)
        return found[self.taps[0]] if self.single else tuple(found[tap] for tap in self.taps)

    def _scaled(self, x: Tensor) -> Tensor:
        """Images as the network wants them: [N, 3, 299, 299], in about [-1, 1]."""
        if x.dim() != 4 or x.shape[1] != 3 or not (x.dtype == torch.uint8 or x.is_floating_point()):
            raise ValueError(f"expected images [N, 3, H, W], uint8 or floats in [0, 1], got {list(x.shape)} {x.dtype}")
        resize, brightest = RESIZES[self.resize]
        dtype = self.fc.weight.dtype
        wide = torch.promote_types(dtype, torch.float32)
        if x.dtype == torch.uint8:
            x = x.to(wide) / 255 if brightest == 1 else x.to(wide)
        else:
            if x.device.type == "cpu" and x.numel() and not torch.compiler.is_compiling():
                low, high = x.detach().aminmax()
                if low < -_SLACK or high > 1 + _SLACK:
                    raise ValueError(f"expected images of floats in [0, 1], got {low:.4g} .. {high:.4g}")
            x = x.to(wide) * brightest
        x = resize(x, _SIZE)
        return (2 * x - 1 if brightest == 1 else (x - 128) / 128).to(dtype)

    # --- weights ------------------------------------------------------------------------------------------------------

    def _load(self, state: Mapping[str, Any], source: object) -> None:
        """Takes the parameters of a peer's network, batch norms folded: (w x - mean) g / sqrt(var + eps) + b."""
        expected = parameters()
        missing = [key for key in expected if key not in state]
        unknown = [key for key in state if key not in expected and not key.endswith(".num_batches_tracked")]
        if missing or unknown:
            raise ValueError(
                f"{source}: expected the parameters of FID's Inception network, got a state dict without "
                f"{len(missing)} of them{_first(missing)} and with {len(unknown)} others{_first(unknown)}"
            )
        for key, shape in expected.items():
            if not isinstance(state[key], Tensor) or state[key].shape != shape:
                got = list(state[key].shape) if isinstance(state[key], Tensor) else f"a {type(state[key]).__name__}"
                raise ValueError(f"{source}: expected {key} of shape {list(shape)}, got {got}")
        for conv in _convolutions(self):
            scale, shift, mean, var = (state[f"{conv.name}.bn.{key}"].double() for key in _BATCH_NORM)
            scale = scale / (var + _EPS).sqrt()
            weight = state[f"{conv.name}.conv.weight"].double() * scale[:, None, None, None]
            conv.weight = _constant(weight.contiguous(memory_format=torch.channels_last))
            conv.bias = _constant(shift - mean * scale)
        self.fc.weight, self.fc.bias = _constant(state["fc.weight"]), _constant(state["fc.bias"])


def find_weights(weights: str | os.PathLike[str] | None = None) -> Path:
    """The file that `Inception(weights)` reads, by a path; raises FileNotFoundError, which says how to pass one."""
    names = " or ".join(WEIGHTS)
    given = (os.environ.get(VARIABLE) or None) if weights is None else weights
    if given is not None:
        path = Path(given).expanduser()
        if not path.is_file():
            origin = f", which {VARIABLE} names" if weights is None else ""
            raise FileNotFoundError(f"{path}{origin}: expected Inception's weights, {names}, found no file there")
        return path
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"expected Inception's weights, {names}, in {folder}, found neither; pass the path of either file, or set "
        f"{VARIABLE} to it: nothing is downloaded"
    )


def _read(path: Path) -> Mapping[str, Any]:
    with reading(path, "the weights of FID's Inception network, saved by torch"):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, LookupError):  # torch runs any file as a pickle: text fails by KeyError: 101
            raise ValueError("a file of something else") from None
        if not isinstance(state, Mapping):
            raise ValueError(f"a {type(state).__name__}")
    return state


def parameters() -> dict[str, torch.Size]:
    """Names and shapes of the parameters and statistics that weights must have, as the peers name them."""
    shapes = {"fc.weight": torch.Size([1008, 2048]), "fc.bias": torch.Size([1008])}
    with torch.device("meta"):
        for conv in _convolutions(nn.ModuleList(_stages())):
            shapes[f"{conv.name}.conv.weight"] = conv.weight.shape
            shapes |= {f"{conv.name}.bn.{key}": conv.weight.shape[:1] for key in _BATCH_NORM}
    return shapes


def _convolutions(network: nn.Module) -> list[_Conv]:
    return [module for module in network.modules() if isinstance(module, _Conv)]


def _constant(x: Tensor) -> nn.Parameter:
    return nn.Parameter(x.detach().float().clone(), requires_grad=False)


def _first(names: Sequence[str]) -> str:
    return f" ({names[0]}{', ...' if len(names) > 1 else ''})" if names else ""


# --- the network (Szegedy et al., "Rethinking the Inception architecture for computer vision", 2015) ------------------

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


class _Conv(nn.Conv2d):
    """Convolution, batch norm, ReLU. name: the peers', before .conv and .bn. padding: None keeps the image's size."""

    def __init__(
        self,
        name: str,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int | None = None,
    ) -> None:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        same = (height // 2, width // 2) if padding is None else (padding, padding)
        super().__init__(inputs, outputs, (height, width), stride, same)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x), inplace=True)


class _Concat(nn.ModuleList):
    """Branches over the same input, their channels one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], 1)


_chain = nn.Sequential


def _average() -> nn.Module:
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)  # TensorFlow's mean is over the pixels that there are


def _stages() -> list[nn.Module]:
    """The layers up to the tap 64, from there to 192, to 768, and to 2048, whose average over space is left out."""
    return [
        _chain(
            _Conv("Conv2d_1a_3x3", 3, 32, 3, 2, 0),
            _Conv("Conv2d_2a_3x3", 32, 32, 3, 1, 0),
            _Conv("Conv2d_2b_3x3", 32, 64, 3),
            nn.MaxPool2d(3, 2),
        ),
        _chain(_Conv("Conv2d_3b_1x1", 64, 80), _Conv("Conv2d_4a_3x3", 80, 192, 3, 1, 0), nn.MaxPool2d(3, 2)),
        _chain(
            _mixed_a("Mixed_5b", 192, 32),
            _mixed_a("Mixed_5c", 256, 64),
            _mixed_a("Mixed_5d", 288, 64),
            _mixed_b("Mixed_6a", 288),
            _mixed_c("Mixed_6b", 128),
            _mixed_c("Mixed_6c", 160),
            _mixed_c("Mixed_6d", 160),
            _mixed_c("Mixed_6e", 192),
        ),
        _chain(
            _mixed_d("Mixed_7a", 768),
            _mixed_e("Mixed_7b", 1280, _average()),
            # The published graph has a maximum here, where the paper and its other blocks have a mean.
            _mixed_e("Mixed_7c", 2048, nn.MaxPool2d(3, 1, 1)),
        ),
    ]


def _named(block: str) -> Callable[..., _Conv]:
    return lambda branch, *sizes: _Conv(f"{block}.{branch}", *sizes)


def _mixed_a(name: str, n: int, pooled: int) -> nn.Module:
    conv = _named(name)
    return _Concat([
        conv("branch1x1", n, 64),
        _chain(conv("branch5x5_1", n, 48), conv("branch5x5_2", 48, 64, 5)),
        _chain(conv("branch3x3dbl_1", n, 64), conv("branch3x3dbl_2", 64, 96, 3), conv("branch3x3dbl_3", 96, 96, 3)),
        _chain(_average(), conv("branch_pool", n, pooled)),
    ])  # fmt: skip


def _mixed_b(name: str, n: int) -> nn.Module:
    conv = _named(name)
    return _Concat([
        conv("branch3x3", n, 384, 3, 2, 0),
        _chain(
            conv("branch3x3dbl_1", n, 64), conv("branch3x3dbl_2", 64, 96, 3), conv("branch3x3dbl_3", 96, 96, 3, 2, 0)
        ),
        nn.MaxPool2d(3, 2),
    ])  # fmt: skip


def _mixed_c(name: str, m: int) -> nn.Module:
    conv, n, across, down = _named(name), 768, (1, 7), (7, 1)
    return _Concat([
        conv("branch1x1", n, 192),
        _chain(conv("branch7x7_1", n, m), conv("branch7x7_2", m, m, across), conv("branch7x7_3", m, 192, down)),
        _chain(
            conv("branch7x7dbl_1", n, m),
            conv("branch7x7dbl_2", m, m, down), conv("branch7x7dbl_3", m, m, across),
            conv("branch7x7dbl_4", m, m, down), conv("branch7x7dbl_5", m, 192, across),
        ),
        _chain(_average(), conv("branch_pool", n, 192)),
    ])  # fmt: skip


def _mixed_d(name: str, n: int) -> nn.Module:
    conv = _named(name)
    return _Concat([
        _chain(conv("branch3x3_1", n, 192), conv("branch3x3_2", 192, 320, 3, 2, 0)),
        _chain(
            conv("branch7x7x3_1", n, 192), conv("branch7x7x3_2", 192, 192, (1, 7)),
            conv("branch7x7x3_3", 192, 192, (7, 1)), conv("branch7x7x3_4", 192, 192, 3, 2, 0),
        ),
        nn.MaxPool2d(3, 2),
    ])  # fmt: skip


def _mixed_e(name: str, n: int, pool: nn.Module) -> nn.Module:
    conv, across, down = _named(name), (1, 3), (3, 1)
    return _Concat([
        conv("branch1x1", n, 320),
        _chain(
            conv("branch3x3_1", n, 384),
            _Concat([conv("branch3x3_2a", 384, 384, across), conv("branch3x3_2b", 384, 384, down)]),
        ),
        _chain(
            conv("branch3x3dbl_1", n, 448), conv("branch3x3dbl_2", 448, 384, 3),
            _Concat([conv("branch3x3dbl_3a", 384, 384, across), conv("branch3x3dbl_3b", 384, 384, down)]),
        ),
        _chain(pool, conv("branch_pool", n, 192)),
    ])  # fmt: skip
