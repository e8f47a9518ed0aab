"""What scores of labelled images are worth: each number with its standard error or its exact interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sctune.metrics.objective import AP, AUROC, Objective
from sctune.metrics.resampling import RESAMPLES
from sctune.metrics.threshold import Rate, escape_rate, false_alarm_rate


def measures(labels: ArrayLike, scores: ArrayLike, threshold: float | None) -> dict[str, Any]:
    """Metrics of labels [N] in {0, 1} and scores [N]; None for what a missing class or threshold leaves undefined.

    auroc, average_precision, f1: {"value", "se"}; confusion: counts; escape_rate, false_alarm_rate: `rate_document`.
    """
    truth, values = np.asarray(labels).astype(int), np.asarray(scores, dtype=np.float64)
    both = 0 < truth.sum() < len(truth)
    found: dict[str, Any] = {
        "images": {"normal": int((truth == 0).sum()), "anomalous": int(truth.sum())},
        "auroc": _figure(AUROC, truth, values) if both else None,
        "average_precision": _figure(AP, truth, values) if both else None,
        "threshold": threshold,
    }
    empty = dict.fromkeys(("f1", "confusion", "escape_rate", "false_alarm_rate"))
    return found | (empty if threshold is None else _at_threshold(truth, values, threshold))


def per_kind(
    labels: ArrayLike, scores: ArrayLike, kinds: Sequence[str], threshold: float | None
) -> list[dict[str, Any]]:
    """One entry per kind of anomaly, sorted by name: its images against all normal ones."""
    truth, values, names = np.asarray(labels).astype(int), np.asarray(scores, np.float64), np.asarray(kinds)
    rows = []
    for kind in sorted(set(names[truth == 1].tolist())):
        own = (truth == 1) & (names == kind)
        part = own | (truth == 0)
        both = bool((truth == 0).any())
        row = {
            "kind": kind,
            "images": int(own.sum()),
            "median_score": float(np.median(values[own])),
            "auroc": _figure(AUROC, truth[part], values[part]) if both else None,
            "escape_rate": None,
        }
        if threshold is not None:
            row["escape_rate"] = rate_document(escape_rate(truth[own], values[own], threshold))
        rows.append(row)
    return rows


def rate_document(rate: Rate) -> dict[str, Any]:
    """Count, total, value and the exact 95 % interval low .. high."""
    return {**asdict(rate), "value": rate.value}


def rate_text(document: Mapping[str, Any] | None) -> str:
    """As `str(Rate)`; a dash for None."""
    if document is None:
        return "-"
    return str(Rate(document["count"], document["total"], document["low"], document["high"]))


def number_text(document: Mapping[str, float] | None) -> str:
    """Value and standard error; a dash for None."""
    return "-" if document is None else f"{document['value']:.4f} +- {document['se']:.4f}"


def _at_threshold(truth: np.ndarray, values: np.ndarray, threshold: float) -> dict[str, Any]:
    called = values > threshold
    found, escaped = int((called & (truth == 1)).sum()), int((~called & (truth == 1)).sum())
    alarms, passed = int((called & (truth == 0)).sum()), int((~called & (truth == 0)).sum())
    return {
        "f1": _f1(found, escaped, alarms, passed),
        "confusion": {"found": found, "escaped": escaped, "false_alarms": alarms, "passed": passed},
        "escape_rate": rate_document(escape_rate(truth, values, threshold)) if found + escaped else None,
        "false_alarm_rate": rate_document(false_alarm_rate(truth, values, threshold)) if alarms + passed else None,
    }


def _f1(found: int, escaped: int, alarms: int, passed: int) -> dict[str, float] | None:
    anomalies, normals = found + escaped, alarms + passed
    if not anomalies:
        return None
    draws = np.random.default_rng(0)
    # a resample within the classes is two binomial draws
    hits = draws.binomial(anomalies, found / anomalies, RESAMPLES)
    wrong = draws.binomial(normals, alarms / normals, RESAMPLES) if normals else np.zeros(RESAMPLES, int)
    spread = np.std(2 * hits / (hits + wrong + anomalies), ddof=1)
    return _number(2 * found / (found + alarms + anomalies), float(spread))


def _figure(of: Objective, truth: np.ndarray, values: np.ndarray) -> dict[str, float]:
    return _number(of.value(truth, values), of.standard_error(truth, values))


def _number(value: float, se: float) -> dict[str, float]:
    return {"value": value, "se": se}
