"""Metric-learning losses."""

import torch
from torch.nn import functional


def margin_triplet_loss(
    anchor: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, margin: float
) -> torch.Tensor:
    """Mean hinge of squared distances, for embeddings `[N, D]` of length 1; a scalar in [0, 4 + margin].

    Schroff, Kalenichenko, Philbin: "FaceNet: a unified embedding for face recognition and clustering" (CVPR 2015).
    """
    near = (anchor - positive).square().sum(dim=1)
    far = (anchor - negative).square().sum(dim=1)
    return functional.relu(near - far + margin).mean()
