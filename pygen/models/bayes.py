"""What a density of samples and labels is good for besides samples: classification and outliers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..random import Source
from .model import Model


def classify(
    model: Model,
    x: Tensor,
    *,
    prior: Tensor | None = None,
    context: Tensor | None = None,
    generator: Source = None,
) -> Tensor:
    """p(y | x) = p(x | y) p(y) / sum over y, [B, num_classes]: Bayes' rule over a model's labels.

    prior: p(y) [num_classes], in any unit; None: equally likely. As many passes as there are labels. generator: source
    of the dequantisation noise, where the model uses any. Differentiable as `model.log_prob` is.

    Raises ValueError for a model without labels, and for a prior of another shape, with negative or infinite elements,
    or 0 throughout.
    """
    posterior = model.log_posterior(x, context=context, generator=generator)  # for labels that are equally likely
    if prior is not None:
        prior = torch.as_tensor(prior, device=posterior.device)
        if prior.shape != posterior.shape[1:]:
            raise ValueError(f"expected prior [{posterior.shape[1]}], one for each label, got {list(prior.shape)}")
        if not bool(((prior >= 0) & prior.isfinite()).all()) or not float(prior.sum()) > 0:
            raise ValueError(f"expected prior >= 0 and finite, with some above 0, got {prior.tolist()}")
        posterior = posterior + prior.log().to(posterior)
    return posterior.softmax(1)


@torch.no_grad()
def outlier_score(model: Model, x: Tensor, *, context: Tensor | None = None, generator: Source = None) -> Tensor:
    """-log2 p(x) per dimension [B], without labels: higher for what the model has seen less of.

    A density is high for smooth images whether or not they are of the kind it was trained on (Nalisnick et al. 2019,
    arXiv 1810.09136): compare with scores of held-out data of the same kind, not with a fixed number.
    """
    return model.bits_per_dim(x, context=context, generator=generator)
