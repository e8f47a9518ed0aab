"""What a search improves: a figure of labels and scores, which way is better, and how sure the figure is.

`--objective NAME` chooses one. Another package adds one by an entry point of the group `sctune.objectives`, named as
the objective and leading to a sub-class of `Objective` (docs/extending.md).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from sctune.errors import ConfigError, nearest
from sctune.metrics import resampling
from sctune.metrics.delong import Placements
from sctune.plugins import load_plugin, plugin_names

Array = np.ndarray

DEFAULT = "auroc"
"""What studies, reports and confirmations of a time without a choice were made by; it stands where none is named."""

GROUP = "sctune.objectives"
RECALL = 0.95
"""Share of the anomalous images that are found at the threshold of `fpr95`."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


def metric_of(name: str) -> str:
    """The metric under which an objective of this name stands in reports, tables and MLflow."""
    return f"selection_{name}"


class Objective(ABC):
    """One figure of labels [N] in {0, 1} (1 is anomalous) and scores [N] (finite, higher is more anomalous).

    name: lower-case letters, digits and `_`; label: for people, and the figure's short name in MLflow; direction: as
    Optuna says it; about: one line of help.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    about: ClassVar[str] = ""

    @property
    def metric(self) -> str:
        """Its name in reports, tables and MLflow."""
        return metric_of(self.name)

    @property
    def is_default(self) -> bool:
        return self.name == DEFAULT

    @property
    def stated(self) -> dict[str, str]:
        """{"objective": name} for documents, which leave the default one out: those of before said nothing either."""
        return {} if self.is_default else {"objective": self.name}

    @property
    def flattered(self) -> str:
        """How the best of several values errs, in words."""
        return "too high" if self.direction == "maximize" else "too low"

    def merit(self, value: float) -> float:
        """Higher is better: the one place where a direction is turned."""
        return value if self.direction == "maximize" else -value

    def best(self, values: Iterable[float]) -> float:
        return max(values, key=self.merit)

    def worst(self, values: Iterable[float]) -> float:
        return min(values, key=self.merit)

    @abstractmethod
    def value(self, labels: ArrayLike, scores: ArrayLike) -> float:
        """The figure; raises DataError where a class is missing, NonFiniteError for scores that are no numbers."""

    def standard_error(self, labels: ArrayLike, scores: ArrayLike) -> float:
        """Over other images of the same classes; raises ValueError where a class is missing."""
        truth, values = _checked(labels, scores)
        return float(np.std(self.resampled(truth, values, resampling.within_classes(truth)), ddof=1))

    def difference(self, labels: ArrayLike, first: ArrayLike, second: ArrayLike) -> tuple[float, float]:
        """The figure of `first` minus that of `second` on the same images, and its paired standard error.

        What is hard for both cancels. Raises ValueError where a class is missing.
        """
        (truth, one), (_, other) = _checked(labels, first), _checked(labels, second)
        counts = resampling.within_classes(truth)
        gaps = self.resampled(truth, one, counts) - self.resampled(truth, other, counts)
        return self.value(truth, one) - self.value(truth, other), float(np.std(gaps, ddof=1))

    def resampled(self, labels: Array, scores: Array, counts: Array) -> Array:
        """The figure [B] of resamples: counts [B, N] says how often each image is in them, at least one of each class.

        Image by image drawn anew, which a figure with a faster way should not do: standard errors take 500 of them.
        """
        rows = (np.repeat(np.arange(labels.size), row) for row in counts)
        return np.array([self.value(labels[drawn], scores[drawn]) for drawn in rows])

    def __repr__(self) -> str:
        return f"<objective {self.name}>"


class Auroc(Objective):
    """Area under the ROC curve; standard errors by DeLong, in closed form."""

    name = DEFAULT
    label = "AUROC"
    about = "area under the ROC curve"

    def value(self, labels: ArrayLike, scores: ArrayLike) -> float:
        from sctune.metrics.image_level import auroc  # scikit-learn takes a second, which no other command waits for

        return auroc(labels, scores)

    def standard_error(self, labels: ArrayLike, scores: ArrayLike) -> float:
        return Placements.of(labels, scores).error

    def difference(self, labels: ArrayLike, first: ArrayLike, second: ArrayLike) -> tuple[float, float]:
        return Placements.of(labels, first).difference(Placements.of(labels, second))

    def resampled(self, labels: Array, scores: Array, counts: Array) -> Array:
        return resampling.weighted_auroc(labels, scores, counts)


class AveragePrecision(Objective):
    """Step-wise area under the precision-recall curve; it changes with the share of anomalies among the images."""

    name = "ap"
    label = "AP"
    about = "average precision"

    def value(self, labels: ArrayLike, scores: ArrayLike) -> float:
        from sctune.metrics.image_level import average_precision

        return average_precision(labels, scores)

    def resampled(self, labels: Array, scores: Array, counts: Array) -> Array:
        return resampling.weighted_average_precision(labels, scores, counts)


class FalseAlarms(Objective):
    """Share of the normal images that are called anomalous where 95 % of the anomalous ones are found."""

    name = "fpr95"
    label = "FPR95"
    direction = "minimize"
    about = "false alarms where 95 % of the anomalies are found; lower is better"

    def value(self, labels: ArrayLike, scores: ArrayLike) -> float:
        from sctune.metrics.image_level import false_alarms_at

        return false_alarms_at(labels, scores, RECALL)

    def resampled(self, labels: Array, scores: Array, counts: Array) -> Array:
        return resampling.weighted_false_alarms(labels, scores, counts, RECALL)


AUROC, AP, FPR95 = Auroc(), AveragePrecision(), FalseAlarms()

_BUILT_IN: dict[str, Objective] = {one.name: one for one in (AUROC, AP, FPR95)}


def objective_names() -> tuple[str, ...]:
    """All objectives that can be asked for: sctune's own, then those of other packages."""
    return (*_BUILT_IN, *plugin_names(GROUP, but=_BUILT_IN))


def is_shipped(name: str) -> bool:
    """Whether an objective is sctune's own, in [0, 1]; those of other packages have units of their own."""
    return name in _BUILT_IN


def find_objective(name: str) -> Objective:
    """Raises ConfigError for a name that nothing is known by, and for another package's that cannot be used."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    return _loaded(name)


@lru_cache
def _loaded(name: str) -> Objective:
    if name not in objective_names():
        raise ConfigError(
            f"unknown objective {name!r}; {nearest(name, objective_names())}, or install the package that brings it"
        )
    return _made(name, load_plugin(GROUP, name))


def _made(name: str, kind: Any) -> Objective:
    where = f"objective {name!r} of another package"
    try:
        made = kind()
    except Exception as problem:  # whatever another package's code raises
        raise ConfigError(f"{where} cannot be made: {type(problem).__name__}: {problem}; mend its package") from None
    if not isinstance(made, Objective):
        raise ConfigError(f"{where} is a {type(made).__name__}; it must be a sub-class of sctune's Objective")
    if made.name != name or not _NAME.fullmatch(made.name):
        raise ConfigError(
            f"{where} calls itself {made.name!r}; its name must be that of its entry point, in lower-case letters, "
            "digits and _"
        )
    if made.direction not in ("maximize", "minimize"):
        raise ConfigError(f"{where} has direction {made.direction!r}; write maximize or minimize")
    return made


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[Array, Array]:
    truth, values = np.asarray(labels).astype(int), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.all() or not truth.any():
        raise ValueError(f"labels need both classes in one row, got {truth.shape} with {int(truth.sum())} ones")
    if values.shape != truth.shape or not np.isfinite(values).all():
        raise ValueError(f"scores must be {truth.size} finite numbers, got shape {values.shape}")
    return truth, values
