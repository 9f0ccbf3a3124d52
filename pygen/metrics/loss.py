"""The Frechet distance as a training loss."""

from __future__ import annotations

import torch
from torch import Tensor

from .._arguments import check_integer
from .frechet import FrechetReference, _features


class FeatureQueue:
    """The most recent features of a training run, without gradient: what a batch's distance is measured together with.

    size: how many features are kept, >= 1; the oldest leave first. NaN is kept as well, and makes NaN of every distance
        until it has left.
    """

    def __init__(self, size: int) -> None:
        check_integer("size", size, 1)
        self.size = size
        self._rows: Tensor | None = None  # [size, d], written in turns
        self._next, self._count = 0, 0

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"FeatureQueue(size={self.size}, held={len(self)})"

    def push(self, features: Tensor) -> None:
        """Adds features [N, d], in place of the oldest; of more than `size` the last ones."""
        if not isinstance(features, Tensor):
            raise TypeError(f"expected features as a tensor [N, d], got {type(features).__name__}")
        features = features.detach()
        if features.dim() != 2:
            raise ValueError(f"expected features [N, d], got {tuple(features.shape)}")
        if self._rows is None:
            self._rows = features.new_empty(self.size, features.shape[1])
        held = self._rows
        if features.shape[1] != held.shape[1] or features.dtype != held.dtype or features.device != held.device:
            raise ValueError(
                f"expected features [N, {held.shape[1]}] of {held.dtype} on {held.device} as held, "
                f"got {tuple(features.shape)} of {features.dtype} on {features.device}"
            )
        features = features[-self.size :]
        first = min(len(features), self.size - self._next)
        held[self._next : self._next + first] = features[:first]
        held[: len(features) - first] = features[first:]
        self._next = (self._next + len(features)) % self.size
        self._count = min(self.size, self._count + len(features))

    def latest(self, count: int) -> Tensor:
        """The `count` features pushed last, or all there are, in no particular order."""
        count = min(count, self._count)
        if self._rows is None or count <= 0:
            return torch.empty(0, 0)
        start = self._next - count
        return (
            torch.cat([self._rows[start:], self._rows[: self._next]]) if start < 0 else self._rows[start : self._next]
        )


def frechet_loss(features: Tensor, reference: FrechetReference, *, queue: FeatureQueue | None = None) -> Tensor:
    """The Frechet distance of a batch of features to a reference, as a loss.

    With the features' mean m and centred features X [N, d], S = X' X / (N - 1), and the reference's factor L::

        |m - mu|^2 + tr S + tr sigma - 2 |B|_*     B = L' X' / sqrt(N - 1)

    |B|_* is the nuclear norm; its gradient is B's polar factor P, so the loss has a gradient without a covariance, a
    root or an inverse: (2 / sqrt(N - 1)) (X / sqrt(N - 1) - (L P)') with the column means taken off, plus
    2 (m - mu) / N.
    FastFID (Mathiasen and Hvilshoj 2020, arXiv 2009.14075) has the value for N < d from the eigenvalues of a square,
    with half the digits.

    features: [N, d], N >= 2, above or below d; float32 or float64; half precision is computed in float32.
    reference: what they should look like; its factor is computed at the first call and kept.
    queue: further features that count as samples of the same population, the latest of the steps before; N is then
        the size of the whole population. The features get the gradient, and are pushed into the queue afterwards.
        Before there are enough, the population is smaller.

    Returns a tensor [] in the dtype of the arithmetic; NaN for NaN in a feature. Differentiable once with respect to
    features; twice raises
    NotImplementedError. Where S is singular (N <= d) it is a subgradient. In float32 the loss is good to about 1e-6 of
    tr sigma + tr S. No host synchronisation once the factor is there. Takes 4 d^2 N operations, and the polar factor
    of a d x N matrix (`pygen.ops.polar`), for N > d too. Under torch.autocast the products stay as they are; on CUDA
    those of float32 are TF32's where `torch.backends.cuda.matmul.allow_tf32`, off by default, allows it.

    Raises ValueError for shapes, TypeError for dtypes.
    """
    if not isinstance(reference, FrechetReference):
        raise TypeError(f"expected reference as a FrechetReference, got {type(reference).__name__}")
    features = _features("features", features)
    population = features
    if queue is not None and len(queue):
        held = queue.latest(queue.size - len(features))
        population = torch.cat([features, held]) if len(held) else features
    loss = reference.to_features(population)
    if queue is not None:
        queue.push(features)
    return loss
