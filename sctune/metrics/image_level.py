"""Image-level metrics: pure functions of labels and scores; anomalous (1) is the positive class (METHODS 5.2)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, roc_auc_score

from sctune.errors import DataError, NonFiniteError
from sctune.metrics.ties import rounded, with_ties


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve in [0, 1] of labels [N] in {0, 1} and scores [N]; scores alike (`TIE`) count half.

    Raises DataError where one class is missing (undefined) and NonFiniteError for NaN or infinite scores.
    """
    return rounded(float(roc_auc_score(*_checked(labels, scores))))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Step-wise area under the precision-recall curve in [0, 1]; same arguments and errors as `auroc`."""
    return float(average_precision_score(*_checked(labels, scores)))


def false_alarms_at(labels: ArrayLike, scores: ArrayLike, recall: float) -> float:
    """Share in [0, 1] of the normal images at or above the score from which on `recall` of the anomalous are found.

    recall: in (0, 1]. Arguments and errors as `auroc`; lower is better.
    """
    y, s = _checked(labels, scores)
    anomalous = np.sort(s[y == 1])[::-1]
    # one part in 10**9 for what binary fractions leave over
    needed = max(1, math.ceil(recall * len(anomalous) - 1e-9))
    return float((s[y == 0] >= anomalous[needed - 1]).mean())


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    y, s = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if y.shape != s.shape:
        raise ValueError(f"{y.shape} labels and {s.shape} scores")
    if set(np.unique(y).tolist()) != {0, 1}:
        raise DataError(
            f"a metric needs normal and anomalous images, got {int((y == 0).sum())} normal and {int((y == 1).sum())} "
            "anomalous ones; add images or choose another --selection"
        )
    if not np.isfinite(s).all():
        raise NonFiniteError(f"{int((~np.isfinite(s)).sum())} of {len(s)} scores are not finite numbers")
    return y, with_ties(s)
