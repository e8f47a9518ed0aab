"""`sctune monitor`: do new images still look, and score, as the calibration normals did?

A drift is an alarm only where it is both certain (Kolmogorov-Smirnov test, Holm over the tests) and large (EFFECT), so
that neither a handful nor a million of images alarms for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from sctune.deploy.calibration import Calibration
from sctune.deploy.model import Model
from sctune.errors import ConfigError, DataError
from sctune.metrics.threshold import Rate, rate
from sctune.serve.measure import rate_document
from sctune.serve.predict import identity_of
from sctune.serve.table import Row, read_identity, read_table

ALPHA = 0.01
"""Chance that images from the same source alarm by any of the tests of a drift."""
EFFECT = 0.2
"""Least distance of two distributions that counts: for some value, a fifth more of the images lies below it (or above).

For a normal distribution this is a shift by half its standard deviation.
"""
NEW_SIZES = 0.05
"""Least share of images in a size that no calibration image had, beyond what the calibration's variety explains."""
COMPARED = ("score", "brightness", "contrast")


@dataclass(frozen=True)
class Drift:
    """One measure of the new images against the calibration's.

    distance: of the two distributions (Kolmogorov-Smirnov, 0 to 1); p: of equal ones, corrected for the number of
    tests; shift: difference of the medians in standard deviations of the calibration, None where these are 0.
    """

    name: str
    distance: float
    p: float
    median: float
    calibration_median: float
    shift: float | None
    alarm: bool


@dataclass(frozen=True)
class Sizes:
    """Share of new images in a size that is new; limit: share that is no alarm; most: the most frequent new sizes."""

    new: Rate
    limit: float
    most: tuple[tuple[str, int], ...]
    alarm: bool


@dataclass(frozen=True)
class AlarmRate:
    """Share of new images above the threshold; promised: what it may be; source: what promises that."""

    above: Rate
    promised: float
    source: str
    alarm: bool


@dataclass(frozen=True)
class Watched:
    """What `monitor` found. images: those compared; failed: those without a score, which are not."""

    model: str
    images: int
    failed: int
    calibration: int
    drifts: tuple[Drift, ...]
    sizes: Sizes
    alarm_rate: AlarmRate | None

    @property
    def alarm(self) -> bool:
        rates = self.alarm_rate is not None and self.alarm_rate.alarm
        return rates or self.sizes.alarm or any(drift.alarm for drift in self.drifts)

    def to_dict(self) -> dict[str, Any]:
        alarm_rate = None
        if self.alarm_rate is not None:
            alarm_rate = {**asdict(self.alarm_rate), "above": rate_document(self.alarm_rate.above)}
        return {
            "alarm": self.alarm,
            "model": self.model,
            "images": self.images,
            "failed": self.failed,
            "calibration_images": self.calibration,
            "drifts": [asdict(drift) for drift in self.drifts],
            "sizes": {**asdict(self.sizes), "new": rate_document(self.sizes.new)},
            "alarm_rate": alarm_rate,
            "advice": advice(self),
        }


def monitor(model: Model, rows: Iterable[Row]) -> Watched:
    """Compare rows of `predict` with the calibration images of the model; the labels are made anew.

    Raises ConfigError for a model without calibration images, DataError where no image has a score or a row lacks what
    is compared.
    """
    calibration = model.parts.calibration
    if calibration is None:
        raise ConfigError(
            f"{model.name} keeps no calibration images to compare with; `sctune recalibrate` gives it some"
        )
    every = list(rows)
    good = [row for row in every if row["score"] is not None]
    if not good:
        raise DataError(f"none of {len(every)} images has a score; there is nothing to compare")
    for row in good:
        lacking = [name for name in (*COMPARED, "width", "height") if row[name] is None]
        if lacking:
            raise DataError(f"{row['path']} has a score and no {lacking[0]}; give a table of `sctune predict`")
    scores = [row["score"] for row in good]
    return Watched(
        model=model.name,
        images=len(good),
        failed=len(every) - len(good),
        calibration=len(calibration),
        drifts=drifts({name: [row[name] for row in good] for name in COMPARED}, _columns(calibration)),
        sizes=sizes([(row["width"], row["height"]) for row in good], _pairs(calibration)),
        alarm_rate=_alarm_rate(model, calibration, scores),
    )


def rows_of_table(model: Model, table: Path) -> list[dict[str, Any]]:
    """Rows of a table of `predict`; raises DataError for one that another model made."""
    found, own = read_identity(table), identity_of(model)
    if found is not None and found.weights != own.weights:
        raise DataError(f"{table} holds scores of another model ({found.text}; not {own.text}); predict again")
    return list(read_table(table))


def drifts(new: Mapping[str, Sequence[float]], known: Mapping[str, Sequence[float]]) -> tuple[Drift, ...]:
    """Each measure of new images [N] against that of the calibration [M]."""
    tests = {name: stats.ks_2samp(np.asarray(new[name], float), np.asarray(known[name], float)) for name in new}
    corrected = holm([float(test.pvalue) for test in tests.values()])
    found = []
    for (name, test), p in zip(tests.items(), corrected, strict=True):
        distance = float(test.statistic)
        median, before = float(np.median(new[name])), float(np.median(known[name]))
        spread = float(np.std(known[name]))
        shift = (median - before) / spread if spread else None
        found.append(Drift(name, distance, p, median, before, shift, p < ALPHA and distance >= EFFECT))
    return tuple(found)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p values that hold for all tests together, in the order given."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, number in enumerate(sorted(range(len(p_values)), key=lambda number: p_values[number])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[number]))
        corrected[number] = highest
    return corrected


def sizes(new: Sequence[tuple[int, int]], known: Sequence[tuple[int, int]]) -> Sizes:
    """New (width, height) pairs against those of the calibration.

    The share of sizes that occur once in the calibration tells how many of the next images have a new one by its own
    variety (Good and Turing); its upper bound is allowed.
    """
    before = Counter(known)
    unknown = Counter(pair for pair in new if pair not in before)
    share = rate(unknown.total(), len(new))
    once = sum(count == 1 for count in before.values())
    # a single image of another size among hundreds is no variety
    limit = NEW_SIZES + (rate(once, len(known)).high if once > 1 else 0.0)
    most = tuple((f"{width} x {height}", count) for (width, height), count in unknown.most_common(3))
    return Sizes(share, limit, most, share.low > limit)


def monitor_lines(found: Watched) -> list[str]:
    """For people: what was compared, and what to do."""
    lines = [f"{found.images} images against {found.calibration} calibration images of {found.model}"]
    for drift in found.drifts:
        shift = "" if drift.shift is None else f", median {drift.shift:+.2f} standard deviations"
        lines.append(f"{_mark(drift.alarm)} {drift.name}: distance {drift.distance:.3f} (p {drift.p:.2g}){shift}")
    most = ", ".join(f"{count} of {size}" for size, count in found.sizes.most)
    lines.append(f"{_mark(found.sizes.alarm)} size: new in {found.sizes.new}{f': {most}' if most else ''}")
    rates = found.alarm_rate
    if rates is None:
        lines.append("   labels: the model has no threshold")
    else:
        lines.append(
            f"{_mark(rates.alarm)} called anomalous: {rates.above}; {rates.source} at most {100 * rates.promised:.2g} %"
        )
    if found.failed:
        lines.append(f"   without a score, and left out: {found.failed}")
    return [*lines, *advice(found)]


def advice(found: Watched) -> list[str]:
    """What to do about it, one line each."""
    drifted = {drift.name for drift in found.drifts if drift.alarm}
    lines = []
    if drifted & {"brightness", "contrast"} or found.sizes.alarm:
        lines.append("look at the images first: light, exposure, focus, camera or its settings have changed")
    if "score" in drifted or (found.alarm_rate is not None and found.alarm_rate.alarm):
        lines.append(
            "look at the images with the highest scores (`sctune predict --heat-maps`): if they are defects, the "
            "parts have changed and not the model; if they are good, `sctune recalibrate` with good new ones"
        )
    if found.alarm:
        lines.append(
            "where a change stays, `sctune recalibrate` sets the threshold anew; whether defects are still found, only "
            "`sctune evaluate` on labelled new images tells"
        )
        return lines
    return ["no alarm: the new images look and score as the calibration images did"]


def _alarm_rate(model: Model, calibration: Calibration, scores: Sequence[float]) -> AlarmRate | None:
    threshold = model.threshold
    if threshold is None:
        return None
    above = rate(int(threshold.anomalous(scores).sum()), len(scores))
    if threshold.bound is not None:
        promised, source = threshold.bound, "the threshold promises for good images"
    else:
        promised = rate(int(threshold.anomalous(calibration.scores).sum()), len(calibration)).high
        source = "the calibration images have"
    return AlarmRate(above, promised, source, above.low > promised)


def _columns(calibration: Calibration) -> dict[str, Sequence[float]]:
    return {"score": calibration.scores, "brightness": calibration.brightness, "contrast": calibration.contrast}


def _pairs(calibration: Calibration) -> list[tuple[int, int]]:
    return [(int(width), int(height)) for width, height in zip(calibration.width, calibration.height, strict=True)]


def _mark(alarm: bool) -> str:
    return "!!" if alarm else "ok"
