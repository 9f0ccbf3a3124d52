"""What every model shares: the training loss, likelihoods, Bayes over labels, checkpoints."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..nn import Condition
from ..nn._arguments import check_integer
from ..random import Source

M = TypeVar("M", bound="Model")


class Model(nn.Module):
    """A density over tensors of one shape, perhaps given a label y and a context vector.

    A subclass implements `_prepare` and `_log_density`, which every likelihood here is made of.

    config: the constructor's arguments; a checkpoint keeps them.
    shape: shape of one sample, without the batch.
    num_classes: labels are 0 .. num_classes - 1; None for a model without labels.
    context_features: width of the context [B, context_features]; 0 for a model without one.
    """

    def __init__(
        self,
        config: dict[str, Any],
        shape: tuple[int, ...],
        num_classes: int | None,
        context_features: int,
    ) -> None:
        super().__init__()
        check_integer("len(shape)", len(shape), 1)
        for size in shape:
            check_integer("every size in shape", size, 1)
        self.config = config
        self.shape = shape
        self.condition = Condition(num_classes, context_features)

    @property
    def num_classes(self) -> int | None:
        return self.condition.num_classes

    def _prepare(self, x: Tensor, generator: Source) -> Tensor:
        """Checks a batch and turns it into what `_log_density` takes; draws the noise, if any."""
        raise NotImplementedError

    def _log_density(self, v: Tensor, condition: Tensor | None) -> Tensor:
        """log p(v | condition), [B] nats."""
        raise NotImplementedError

    # --- likelihoods -------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, y: Tensor | None = None, *, context: Tensor | None = None) -> Tensor:
        """Training loss: mean negative `log_prob` in nats per dimension (bits per dimension times ln 2), a scalar."""
        log_prob = self.log_prob(x, y, context=context)
        if len(log_prob) == 0:
            raise ValueError("expected a batch of at least one sample to train on, got an empty one")
        return -log_prob.mean() / math.prod(self.shape)

    def log_prob(
        self, x: Tensor, y: Tensor | None = None, *, context: Tensor | None = None, generator: Source = None
    ) -> Tensor:
        """log p(x | y, context), [B] nats; the class says whether exact or a bound.

        Without y, a model with labels gives log p(x | context), marginal over equally likely labels: as many passes as
        there are labels.
        generator: source of the dequantisation noise, where a model uses any.
        """
        if y is None and self.num_classes is not None:
            joint = self.class_log_prob(x, context=context, generator=generator)
            return joint.logsumexp(1) - math.log(self.num_classes)
        return self._log_density(self._prepare(x, generator), self._given(len(x), y, context))

    def bits_per_dim(
        self, x: Tensor, y: Tensor | None = None, *, context: Tensor | None = None, generator: Source = None
    ) -> Tensor:
        """-log2 p(x | y, context) per dimension, [B]."""
        log_prob = self.log_prob(x, y, context=context, generator=generator)
        return -log_prob / (math.prod(self.shape) * math.log(2))

    def class_log_prob(self, x: Tensor, *, context: Tensor | None = None, generator: Source = None) -> Tensor:
        """log p(x | y, context) for every label y, [B, num_classes] nats. All labels see the same noise."""
        if self.num_classes is None:
            raise ValueError("expected a model with labels, got num_classes=None")
        v = self._prepare(x, generator)
        labels = torch.arange(self.num_classes, device=x.device)
        densities = [self._log_density(v, self._given(len(x), y.expand(len(x)), context)) for y in labels]
        return torch.stack(densities, 1)

    def log_posterior(self, x: Tensor, *, context: Tensor | None = None, generator: Source = None) -> Tensor:
        """log p(y | x, context) by Bayes' rule for labels that are equally likely beforehand, [B, num_classes]."""
        return self.class_log_prob(x, context=context, generator=generator).log_softmax(1)

    # --- arguments ---------------------------------------------------------------------------------------------------

    def _check_shape(self, name: str, x: Tensor, shape: tuple[int, ...]) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"expected {name} as a tensor, got {type(x).__name__}")
        if x.shape[1:] != shape or x.dim() != len(shape) + 1:
            expected = ", ".join(map(str, ("B", *shape)))
            raise ValueError(f"expected {name} of shape [{expected}], got {list(x.shape)}")

    def _given(self, batch: int, y: Tensor | None, context: Tensor | None) -> Tensor | None:
        """The condition [B, F] in the model's dtype, or None."""
        condition: Tensor | None = self.condition(batch, y, context)
        return None if condition is None else condition.to(self._like.dtype)

    @property
    def _like(self) -> Tensor:
        """A parameter: the dtype and device to compute with."""
        return next(self.parameters())

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file, the configuration as JSON in its header; whole or not at all."""
        path = Path(path)
        header = json.dumps({"model": type(self).__name__, "config": self.config})
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        data = _safetensors().torch.save(tensors, {"pygen": header})
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls: type[M], path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> M:
        """Reads what `save` wrote: the model as it was, in its dtype, in eval mode.

        Raises FileNotFoundError, IsADirectoryError, and ValueError for a file that is no checkpoint, or one of another
        class.
        """
        if Path(path).is_dir():
            raise IsADirectoryError(f"{path}: expected a pygen checkpoint (safetensors), got a directory")
        safetensors = _safetensors()
        try:
            with safetensors.safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {})["pygen"])
                name, config = header["model"], header["config"]
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected a pygen checkpoint (safetensors), got {error!r}") from error
        if name != cls.__name__:
            raise ValueError(f"{path}: expected a checkpoint of {cls.__name__}, got one of {name}")
        with torch.device("meta"):
            model = cls(**config)
        model.load_state_dict(tensors, assign=True)
        return model.to(device).eval()


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("checkpoints need safetensors: pip install pygen[train]") from error
    return safetensors
