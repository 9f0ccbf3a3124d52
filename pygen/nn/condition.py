"""What a model is conditioned on: a label, a context vector, both or nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._arguments import check_integer


class Condition(nn.Module):
    """One vector [B, features] of a label y [B] and a context [B, context_features]; None where there is neither.

    With `area` (H, W) the context is a map [B, context_features, H, W], and so is what comes of it, the label's part
    alike at every place.

    num_classes: labels are 0 .. num_classes - 1; None for a model without labels.
    context_features: width of the context; 0 for a model without one.
    embedding: width of a label's learned embedding.

    Labels out of range raise ValueError on the CPU. On a GPU, where looking would stall the stream, and under
    torch.compile, they make that sample's vector NaN.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        context_features: int = 0,
        embedding: int = 32,
        *,
        area: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if num_classes is not None:
            check_integer("num_classes", num_classes, 1)
        check_integer("context_features", context_features, 0)
        check_integer("embedding", embedding, 1)
        self.num_classes = num_classes
        self.context_features = context_features
        self.area = () if area is None else area
        self.embedding = None if num_classes is None else nn.Embedding(num_classes, embedding)
        self.features = context_features + (0 if num_classes is None else embedding)

    def forward(self, batch: int, y: Tensor | None, context: Tensor | None) -> Tensor | None:
        y, context = self.check(batch, y, context)
        parts = []
        if self.embedding is not None and y is not None:
            inside = y.clamp(0, self.embedding.num_embeddings - 1)
            label = self.embedding(inside)  # [B, embedding]
            label = torch.where((y == inside)[:, None], label, torch.nan)
            parts.append(label[..., None, None].expand(-1, -1, *self.area) if self.area else label)
        if context is not None:
            parts.append(context)
        return torch.cat(parts, 1) if parts else None  # [B, features, *area]

    def check(self, batch: int, y: Tensor | None, context: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Labels as int64 and context, once both are what the model takes."""
        if self.embedding is not None:
            y = self._check_labels(batch, y)
        elif y is not None:
            raise ValueError("expected no labels: the model has none (num_classes=None)")
        if self.context_features:
            context = self._check_context(batch, context)
        elif context is not None:
            raise ValueError("expected no context: the model takes none (context_features=0)")
        return y, context

    def _check_labels(self, batch: int, y: Tensor | None) -> Tensor:
        if y is None:
            raise ValueError(
                f"expected labels y of shape ({batch},): the model has {self.num_classes} classes, got None"
            )
        if not isinstance(y, Tensor) or y.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
            raise TypeError(f"expected labels y as an integer tensor, got {getattr(y, 'dtype', type(y).__name__)}")
        if y.shape != (batch,):
            raise ValueError(f"expected labels y of shape ({batch},), got {tuple(y.shape)}")
        y = y.long()
        if y.device.type == "cpu" and batch and not torch.compiler.is_compiling():
            low, high = int(y.min()), int(y.max())
            if low < 0 or high >= (self.num_classes or 0):
                raise ValueError(f"expected labels in [0, {self.num_classes}), got {low if low < 0 else high}")
        return y

    def _check_context(self, batch: int, context: Tensor | None) -> Tensor:
        expected = (batch, self.context_features, *self.area)
        if context is None:
            raise ValueError(f"expected context of shape {expected}, got None")
        if context.shape != expected:
            raise ValueError(f"expected context of shape {expected}, got {tuple(context.shape)}")
        if not context.is_floating_point():
            raise TypeError(f"expected a floating-point context, got {context.dtype}")
        return context
