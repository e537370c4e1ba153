"""Learned whitening: a linear head for a network that is taken as it is, fitted in closed form.

Features of a network trained for something else vary in directions that say nothing about the classes of interest.
Divide each direction by how much it varies *within* a class, and distances begin to mean what they should. In image
retrieval this is due to Mikolajczyk and Matas, "Improving descriptors for fast tree matching by optimal linear
projection" (ICCV 2007); Radenović, Tolias and Chum, "Fine-tuning CNN image retrieval with no human annotation"
(TPAMI 2018, section 3.3), use it as a network's last layer, as we do.
"""

import torch
from torch import Tensor


def learned_whitening(features: Tensor, labels: Tensor, dim: int, shrinkage: float = 1.0) -> tuple[Tensor, Tensor]:
    """Weight and bias of the linear layer ``f -> P (f - m)`` that whitens the variation within classes.

    With ``m`` the mean of the features and ``S`` their covariance within classes, drawn towards a multiple of the
    identity, ``P`` is ``S^(-1/2)`` followed by the leading ``dim`` principal directions of what comes out.

    Args:
        features: ``[n, F]``, finite.
        labels: Class numbers ``[n]``; at least one class must have two features.
        dim: How many directions to keep, at most F.
        shrinkage: How far S is drawn towards the identity, in units of its mean eigenvalue; above 0, since S has no
            inverse where n is small. A few hundred features want about 1.

    Returns:
        Weight ``[dim, F]`` and bias ``[dim]``, float64.

    Raises:
        ValueError: The shapes do not fit, no class has two features, or an argument is out of its range.
    """
    features = features.double()
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"features {tuple(features.shape)}, labels {tuple(labels.shape)}: expected [n, F] and [n]")
    if not 1 <= dim <= features.shape[1]:
        raise ValueError(f"dim={dim}: expected 1 to {features.shape[1]}, the number of coordinates of a feature")
    if not 0 < shrinkage < torch.inf:
        raise ValueError(f"shrinkage={shrinkage}: expected a finite number above 0")
    covariance = _covariance_within(features, labels)
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    variances, directions = torch.linalg.eigh(covariance + shrinkage * covariance.trace() / len(covariance) * identity)
    whitening = directions / variances.sqrt()  # [F, F], a direction a column
    mean = features.mean(0)
    _, leading = torch.linalg.eigh(torch.cov(((features - mean) @ whitening).T))  # rising
    weight = (whitening @ leading.flip(1)[:, :dim]).T
    return weight, -weight @ mean


def _covariance_within(features: Tensor, labels: Tensor) -> Tensor:
    """``[F, F]``: of each feature around the mean of its class."""
    _, classes, counts = labels.unique(return_inverse=True, return_counts=True)
    if counts.max() < 2:
        raise ValueError("no class has two features: what varies within a class is unknown")
    means = features.new_zeros(len(counts), features.shape[1]).index_add_(0, classes, features) / counts[:, None]
    around = features - means[classes]
    if not around.any():
        raise ValueError("the features of each class are all alike: nothing varies within a class")
    return around.T @ around / len(around)
