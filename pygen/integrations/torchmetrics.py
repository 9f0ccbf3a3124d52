"""torchmetrics' FrechetInceptionDistance, over pygen's statistics, distance and network.

With torchmetrics installed the class is a `torchmetrics.Metric`; without it a module of the same behaviour.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn

from .. import ops, ranks
from ..metrics import Inception, StreamingMoments, frechet_distance

_STATES = ("real_features_moments", "fake_features_moments")
_ROWS = 3  # of a state above its scatter: the number of samples (in each element), shift, total


class _Module(nn.Module):
    """What of `torchmetrics.Metric` is needed where it is not installed."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        if kwargs:
            raise TypeError(f"expected no {', '.join(kwargs)}: arguments of torchmetrics.Metric need torchmetrics")
        self._defaults: dict[str, Tensor] = {}
        self._to_sync = True

    def add_state(self, name: str, default: Tensor, dist_reduce_fx: Callable[[Tensor], Tensor]) -> None:
        self._defaults[name] = default.clone()
        self.register_buffer(name, default, persistent=False)

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    def compute(self) -> Tensor:
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """`update`, and what `compute` gives for this batch alone (and what `reset` keeps)."""
        self.update(*args, **kwargs)
        kept = {state: getattr(self, state).clone() for state in _STATES}
        self.reset()
        self._to_sync = False
        try:
            self.update(*args, **kwargs)
            return self.compute()
        finally:
            self._to_sync = True
            for state, value in kept.items():
                setattr(self, state, value)

    def reset(self) -> None:
        for state, default in self._defaults.items():
            setattr(self, state, default.to(getattr(self, state).device, copy=True))

    def _synchronised(self, state: str) -> Tensor:
        """A state of all processes together."""
        own: Tensor = getattr(self, state)
        if ranks.world() == 1 or not self._to_sync:
            return own
        gathered = [torch.empty_like(own) for _ in range(ranks.world())]
        distributed.all_gather(gathered, own)
        return _merged(torch.stack(gathered))

    def _plot(self, val: Any, ax: Any) -> Any:
        raise ImportError("plot needs torchmetrics: pip install torchmetrics")


if TYPE_CHECKING:
    _Base = _Module
else:
    try:
        from torchmetrics import Metric
    except ImportError:
        _Base = _Module
    else:

        class _Base(Metric):
            def _synchronised(self, state: str) -> Tensor:
                return getattr(self, state)  # by Metric, before it calls compute


def _as_torchmetrics(what: str) -> tuple[property, property]:
    """One of torchmetrics' states, of real and of generated images: raw sums, made from ours."""

    def read(state: str) -> property:
        def value(self: nn.Module) -> Tensor:
            counts, shift, total, scatter = _parts(getattr(self, state))
            if what == "num_samples":
                return counts[0].long()
            if what == "sum":
                return total + counts * shift
            crossed = torch.outer(shift, total)
            squares = scatter.tril() + scatter.tril(-1).mT
            return squares + crossed + crossed.mT + counts[0] * torch.outer(shift, shift)

        return property(value)

    real, fake = map(read, _STATES)
    return real, fake


class FrechetInceptionDistance(_Base):
    """`torchmetrics.image.fid.FrechetInceptionDistance` (1.9.0), argument for argument.

    >>> import torch
    >>> from pygen.integrations.torchmetrics import FrechetInceptionDistance
    >>> fid = FrechetInceptionDistance(torch.nn.Flatten(), input_img_size=(1, 2, 2), normalize=True)
    >>> fid.update(torch.rand(100, 1, 2, 2), real=True)
    >>> fid.update(torch.rand(100, 1, 2, 2), real=False)
    >>> 0 < fid.compute() < 0.1
    tensor(True)

    feature: 64, 192, 768 or 2048, features of `pygen.metrics.Inception`; or a module whose output for a batch is
        [N, d]. A module tells d by its attribute num_features, or else by a random image of `input_img_size`.
    reset_real_features: False keeps the statistics of real images at `reset`.
    normalize: images are floats in [0, 1], which are rounded down to uint8; else uint8. A module gets them as they are.
    input_img_size: of the image that a module is asked with: float32 with `normalize`, else uint8.
    feature_extractor_weights_path: as `weights` of `Inception`, which says where they are looked for; never downloaded.
    antialias: scale images as torchmetrics does from version 1.8 on; False: as torch-fidelity does.
    kwargs: those of `torchmetrics.Metric`; without torchmetrics there are none.

    What differs: no other package is needed; the distance is `frechet_distance`, right for any number of samples,
    faster, and NaN only where features are; sums are of features less a shift, near their mean, in float64 whatever
    `set_dtype` says.
    Therefore the states are two, `real_features_moments` and `fake_features_moments` [3 + d, d] (number of samples,
    shift, total and lower triangle of the scatter, as in `StreamingMoments`), which `sync` and `merge_state` merge by a
    reduction of their own. What torchmetrics calls real_features_sum, real_features_cov_sum, real_features_num_samples,
    and likewise fake_..., can be read, but not set: a state_dict with persistent states does not fit the other class.
    With reset_real_features=False `forward` runs the network twice, and counts real images once.

    Errors are as there: RuntimeError for fewer than 2 samples of either kind, ValueError and TypeError for arguments;
    FileNotFoundError where there are no weights.
    """

    higher_is_better: bool = False
    is_differentiable: bool = False
    plot_lower_bound: float = 0.0
    feature_network: str = "inception"

    real_features_moments: Tensor
    fake_features_moments: Tensor

    real_features_sum, fake_features_sum = _as_torchmetrics("sum")
    real_features_cov_sum, fake_features_cov_sum = _as_torchmetrics("cov_sum")
    real_features_num_samples, fake_features_num_samples = _as_torchmetrics("num_samples")

    def __init__(
        self,
        feature: int | nn.Module = 2048,
        reset_real_features: bool = True,
        normalize: bool = False,
        input_img_size: tuple[int, int, int] = (3, 299, 299),
        feature_extractor_weights_path: str | None = None,
        antialias: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("normalize", normalize), ("reset_real_features", reset_real_features)):
            if not isinstance(value, bool):
                raise ValueError(f"expected {name} as a bool, got {value!r}")
        self.normalize, self.reset_real_features = normalize, reset_real_features
        self.used_custom_model = isinstance(feature, nn.Module)
        if isinstance(feature, nn.Module):
            self.inception = feature
            d = _features(feature, input_img_size, normalize)
        elif isinstance(feature, int):
            if feature not in (64, 192, 768, 2048):
                raise ValueError(f"expected feature to be 64, 192, 768 or 2048, got {feature}")
            resize = "torchmetrics" if antialias else "torch-fidelity"
            self.inception, d = Inception(feature_extractor_weights_path, taps=feature, resize=resize), feature
        else:
            raise TypeError(f"expected feature as an int or a module, got {type(feature).__name__}")
        for state in _STATES:
            self.add_state(state, torch.zeros(_ROWS + d, d, dtype=torch.float64), dist_reduce_fx=_merged)
        self.orig_dtype = torch.get_default_dtype()  # of the features, and of the result

    @property
    def full_state_update(self) -> bool:
        """Whether `forward` must not merge states: those that stay at `reset` would count twice."""
        return not self.reset_real_features

    def update(self, imgs: Tensor, real: bool) -> None:
        """Adds a batch of images, real or generated."""
        features = self.inception((imgs * 255).byte() if self.normalize and not self.used_custom_model else imgs)
        features = features.detach()
        self.orig_dtype = features.dtype
        if features.dim() == 1:
            features = features[None]
        state = self.real_features_moments if real else self.fake_features_moments
        if features.dim() != 2 or features.shape[1] != state.shape[1]:
            raise ValueError(f"expected features [N, {state.shape[1]}], got {tuple(features.shape)}")
        if len(features):
            counts, shift, total, scatter = _parts(state)
            mean = features.double().mean(0).nan_to_num(0, 0, 0)
            shift.copy_(torch.where(counts > 0, shift, mean))  # without a look at the count, which may be on a GPU
            ops.accumulate_moments(features, shift, total, scatter)
            counts += len(features)

    def compute(self) -> Tensor:
        """The distance, a scalar in the dtype of the features; NaN where one of these was NaN or infinite."""
        real, fake = (_moments(self._synchronised(state)) for state in _STATES)
        if real.count < 2 or fake.count < 2:
            raise RuntimeError(
                f"expected at least 2 samples, real and generated, for a distance, got {real.count} and {fake.count}"
            )
        statistics = *real.statistics(), *fake.statistics()
        if all(part.isfinite().all() for part in statistics):
            distance = torch.as_tensor(frechet_distance(*statistics))
        else:
            distance = statistics[0].new_tensor(torch.nan)
        return distance.to(self.orig_dtype)

    def reset(self) -> None:
        """Forgets the samples seen, but real ones if `reset_real_features` is False."""
        real = self.real_features_moments
        super().reset()
        if not self.reset_real_features:
            self.real_features_moments = real

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """As every metric of torchmetrics."""
        return self._plot(val, ax)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """Moves, but the sums stay float64."""
        kept = {state: getattr(self, state) for state in _STATES}
        super()._apply(fn, *args, **kwargs)  # type: ignore[no-untyped-call]
        for state, value in kept.items():
            setattr(self, state, value.to(getattr(self, state).device))
            self._defaults[state] = torch.zeros_like(value)
        return self


def _features(module: nn.Module, size: tuple[int, int, int], normalize: bool) -> int:
    """The number of a module's features."""
    given = getattr(module, "num_features", None)
    if given is not None:
        if not isinstance(given, (int, Tensor)):
            raise TypeError(f"expected num_features of feature as an int or a tensor, got {type(given).__name__}")
        return int(given)
    image = torch.rand(1, *size) if normalize else torch.randint(0, 255, (1, *size), dtype=torch.uint8)
    with torch.no_grad():
        return int(module(image).shape[-1])


# --- states -----------------------------------------------------------------------------------------------------------


def _parts(state: Tensor) -> tuple[Tensor, ...]:
    """Number of samples [d], shift [d], total [d] and scatter [d, d], as views."""
    return (*state[:_ROWS].unbind(), state[_ROWS:])


def _moments(state: Tensor) -> StreamingMoments:
    counts, shift, total, scatter = _parts(state)
    moments = StreamingMoments(state.shape[1])
    moments.load_state_dict({"count": int(counts[0]), "shift": shift, "total": total, "scatter": scatter})
    return moments


def _merged(states: Tensor) -> Tensor:
    """One state for several, [k, 3 + d, d]."""
    first, *others = (_moments(state) for state in states)
    for other in others:
        first.merge(other)
    sums = first.state_dict()
    merged = torch.empty_like(states[0])
    for part, name in zip(_parts(merged), ("count", "shift", "total", "scatter"), strict=True):
        part.copy_(torch.as_tensor(sums[name]))
    return merged
