"""The model of a command, with the threshold that was asked for, and what tells it from another one."""

from __future__ import annotations

import math
from dataclasses import replace

from sctune.deploy.locate import open_model
from sctune.deploy.model import Model
from sctune.errors import ConfigError
from sctune.metrics.threshold import Threshold, conformal_threshold


def opened(
    where: str,
    tracking_uri: str | None = None,
    device: str = "auto",
    threshold: float | None = None,
    wanted: float | None = None,
) -> Model:
    """`open_model`, deciding at `threshold`, or at the one for the false-alarm rate `wanted` in (0, 1).

    Raises ConfigError for both at once, for a threshold that is no number, and for a rate where the model keeps no
    calibration images.
    """
    if threshold is not None and wanted is not None:
        raise ConfigError("--threshold and --false-alarm-rate say the same thing; give one of them")
    if threshold is not None and not math.isfinite(threshold):
        raise ConfigError(f"--threshold {threshold}: give a finite number")
    model = open_model(where, tracking_uri, device)
    if threshold is not None:
        return with_threshold(model, Threshold(threshold, "given"))
    if wanted is None:
        return model
    if model.parts.calibration is None:
        raise ConfigError(
            f"--false-alarm-rate {wanted:g}: {where} keeps no calibration images; give --threshold, or make them with "
            "`sctune recalibrate`"
        )
    return with_threshold(model, conformal_threshold(model.parts.calibration.scores, wanted))


def with_threshold(model: Model, threshold: Threshold) -> Model:
    """The same model, deciding at another threshold."""
    return Model(model.method, model.config, replace(model.parts, threshold=threshold))
