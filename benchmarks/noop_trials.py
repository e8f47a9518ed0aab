"""The trials of bench_search.py, bench_growth.py, bench_scale.py and bench_hosts.py: they report and do nothing else.

A module of its own and light, so that Ray's workers import it, the same for every arm of the benchmark.
"""

from __future__ import annotations

import os
import time
from typing import Any

from ray import tune

from sctune.report import EPOCH, OBJECTIVE, REPORT, VALUE, EpochReport

EPOCHS = 8
N_SCORES = 100

EPOCH_S = "SCTUNE_BENCH_EPOCH_S"
"""Environment variable of the nodes: seconds that an epoch of a SleepTrial takes."""

_SCORES = [0.123456789 * (image % 7) for image in range(N_SCORES)]


class NoopTrial(tune.Trainable):
    """EPOCHS reports, each as large as those of sctune's own trials: four metrics and the scores of N_SCORES images."""

    def setup(self, config: dict[str, Any]) -> None:
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        value = 0.5 + 0.4 * self.threshold + 0.001 * self.epoch
        metrics = {OBJECTIVE: value, "loss": 1.0 - value, "lr": 2e-4, "seconds": 0.01}
        report = {EPOCH: self.epoch, "epochs": EPOCHS, OBJECTIVE: value, "metrics": metrics}
        return {**report, "scores": {"seed42": _SCORES}, "done": self.epoch == EPOCHS}

    def _begin(self, config: dict[str, Any]) -> None:
        self.epoch = 0
        self.threshold = float(config.get("params", config)["augment.threshold"])


class StudyNoopTrial(NoopTrial):
    """The same for sctune's arm, in the form that its searcher reads."""

    def setup(self, config: dict[str, Any], spec: dict[str, Any] | None = None) -> None:
        """spec: sctune hands over what all trials share; unused."""
        super().setup(config)

    def step(self) -> dict[str, Any]:
        told = super().step()
        report = EpochReport(told[EPOCH], EPOCHS, told["metrics"], told["scores"])
        return {VALUE: report.value, REPORT: report, "done": told["done"]}


class SleepTrial(StudyNoopTrial):
    """An epoch takes its time and no processor."""

    def step(self) -> dict[str, Any]:
        time.sleep(float(os.environ[EPOCH_S]))
        return super().step()
