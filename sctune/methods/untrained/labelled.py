"""What a few labelled anomalies add to a density: the directions in which they lie, away from the normal images."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from sctune.methods.density import Gaussian, Rows

SHRINKAGE = 1e-3
"""`C` of the logistic regression: what a normal image adds to its loss, beside half the squared length of the weights.

Whitened features of ImageNet networks are hundreds of numbers; without a strong penalty ten anomalies are separated
by any of them."""


def differences(density: Gaussian, rows: Rows) -> Rows:
    """Whitened differences [N, D] of feature rows [N, D]."""
    with torch.inference_mode():
        found: Rows = density(torch.from_numpy(rows)).numpy()
    return found


def push_direction(anomalies: Rows) -> Rows:
    """Unit vector [D] along the mean whitened difference of anomalies [A, D]; zeros where there are none.

    The product with a whitened difference is that with precision x mean anomaly (Fisher's discriminant with the
    covariance of the normal images), up to a factor.
    """
    if not len(anomalies):
        return np.zeros(anomalies.shape[1])
    mean = anomalies.mean(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12))


def logistic_direction(normals: Rows, anomalies: Rows) -> Rows:
    """Weights [D] of a shrunk logistic regression, both classes of equal weight; zeros where there are no anomalies."""
    if not len(anomalies):
        return np.zeros(anomalies.shape[1])
    labels = np.r_[np.zeros(len(normals)), np.ones(len(anomalies))]
    model = LogisticRegression(C=SHRINKAGE, class_weight="balanced", max_iter=500)
    return np.asarray(model.fit(np.concatenate([normals, anomalies]), labels).coef_[0], dtype=np.float64)


def directions(density: Gaussian, normals: Rows, anomalies: Rows, logistic: bool) -> Rows:
    """Push and logistic [D, 2] from feature rows of normals [N, D] and anomalies [A, D]; zeros for what is not there.

    logistic: whether it is wanted.
    """
    away = differences(density, anomalies)
    second = logistic_direction(differences(density, normals), away) if logistic else np.zeros(away.shape[1])
    return np.stack([push_direction(away), second], axis=1)


def terms(lengths: Tensor, away: Tensor, along: Tensor) -> Tensor:
    """Distance, push and logistic [N, 3] from distances [N], whitened differences [N, D] and directions [D, 2]."""
    return torch.cat([lengths[:, None], away @ along], dim=1)
