"""Which images a final form and the single model call wrongly: escapes before and after, and false alarms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sctune.errors import DataError
from sctune.metrics.threshold import conformal_threshold


class Verdict(NamedTuple):
    """A score, and the threshold above which it is called anomalous."""

    score: float
    threshold: float

    @property
    def anomalous(self) -> bool:
        return self.score > self.threshold

    @property
    def above(self) -> float:
        return self.score - self.threshold


@dataclass(frozen=True)
class Judged:
    """An image, normal (label 0) or anomalous (1), as the single model and as the final form calls it."""

    path: str
    label: int
    single: Verdict
    final: Verdict


@dataclass(frozen=True)
class Escapes:
    """Of `anomalous` images: found: escapes of the single model alone; both; lost: of the final form alone. alarms:
    of `normal` images, those that either calls anomalous. The worst come first: escapes by the lowest score, found ones
    by that of the single model; alarms by the highest.
    """

    normal: int
    anomalous: int
    found: tuple[Judged, ...]
    both: tuple[Judged, ...]
    lost: tuple[Judged, ...]
    alarms: tuple[Judged, ...]

    @property
    def single(self) -> int:
        """Escapes of the single model."""
        return len(self.found) + len(self.both)

    @property
    def final(self) -> int:
        """Escapes of the final form."""
        return len(self.both) + len(self.lost)


def sorted_out(rows: Iterable[Judged]) -> Escapes:
    """Who lets what through."""
    of: tuple[list[Judged], list[Judged]] = ([], [])
    for row in rows:
        of[row.label].append(row)
    normal, anomalous = of
    escaped = {
        missed: [row for row in anomalous if (row.single.anomalous, row.final.anomalous) == missed]
        for missed in ((False, True), (False, False), (True, False))
    }
    alarms = [row for row in normal if row.single.anomalous or row.final.anomalous]
    return Escapes(
        normal=len(normal),
        anomalous=len(anomalous),
        found=tuple(sorted(escaped[False, True], key=lambda row: row.single.above)),
        both=tuple(sorted(escaped[False, False], key=lambda row: row.final.above)),
        lost=tuple(sorted(escaped[True, False], key=lambda row: row.final.above)),
        alarms=tuple(sorted(alarms, key=lambda row: -max(row.single.above, row.final.above))),
    )


def judged(
    paths: Sequence[str], labels: ArrayLike, single: ArrayLike, final: ArrayLike, at: tuple[float, float]
) -> list[Judged]:
    """Images by their scores [N] from both; at: the thresholds of the single model and of the final form."""
    columns = zip(paths, *(np.asarray(column).tolist() for column in (labels, single, final)), strict=True)
    return [Judged(path, int(label), Verdict(a, at[0]), Verdict(b, at[1])) for path, label, a, b in columns]


Fold = tuple[Sequence[str], NDArray[np.int_], NDArray[np.float64], NDArray[np.float64]]
"""Paths, labels, and the scores [N] of the single model and of the final form."""


def judged_by_folds(folds: Iterable[Fold], rate: float) -> list[Judged]:
    """Held-out images of folds, whose models have no calibration images.

    Each threshold is that of `rate` on the fold's own normal images. An image of several folds is there once, as it
    comes nearest to an alarm. Raises DataError for a fold without normal images.
    """
    found: dict[str, Judged] = {}
    for paths, labels, single, final in folds:
        normal = labels == 0
        if not normal.any():
            raise DataError("a fold has no normal images to set a threshold by")
        at = tuple(conformal_threshold(scores[normal], rate).value for scores in (single, final))
        for row in judged(paths, labels, single, final, (at[0], at[1])):
            before = found.get(row.path)
            if before is None or _nearness(row) > _nearness(before):
                found[row.path] = row
    return list(found.values())


def _nearness(row: Judged) -> float:
    return max(row.single.above, row.final.above)


def counts_line(escapes: Escapes, form: str) -> str:
    """Both in words. form: name of the final form."""
    alarms: Mapping[str, int] = {
        "single model": sum(row.single.anomalous for row in escapes.alarms),
        form: sum(row.final.anomalous for row in escapes.alarms),
    }
    told = " and ".join(f"{count} with the {name}" for name, count in alarms.items())
    return (
        f"of {escapes.anomalous} anomalous images the single model lets {escapes.single} escape, the {form} "
        f"{escapes.final} ({len(escapes.found)} found, {len(escapes.lost)} lost); false alarms of {escapes.normal}: "
        f"{told}"
    )
