"""Which turns, mirrors, shifts and colours fit a part: do changed normal images still look normal?

A Gaussian is fitted to a part of the development pool's normal images, and others are scored as they are and changed.
Both sides are held out: against images that were fitted every fresh one looks odd, changed or not. No anomalous image
and no test image is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sctune.augment.changes import changed, move, quarter_turned
from sctune.config import AugmentConfig, TrialConfig
from sctune.data.batches import stream
from sctune.data.decode import Decoding
from sctune.data.depth import with_range
from sctune.data.images import ImageCache
from sctune.data.split import split_for
from sctune.errors import DataError
from sctune.methods.base import TaskImages
from sctune.methods.pixels import to_images, to_pixels
from sctune.methods.registry import fresh_method
from sctune.metrics.delong import Placements
from sctune.paths import cache_folder
from sctune.train.memory import keep_freed_memory
from sctune.train.runtime import resolve_device
from sctune.train.trainer import task_of

LIMIT = 0.6
"""AUROC of changed against unchanged normal images up to which a change fits.

Between two normal distributions of one width it is a shift of 0.36 standard deviations: where 1 % of the normal images
are false alarms, 2.5 % of the changed ones are, and an anomaly that stands out with an AUROC of 0.88 lies 1.66 away.
"""

MOST, LEAST = 200, 15
"""Held-out normal images: a third of all, within these bounds."""

BATCH = 32
Z = 1.96
"""Half the width of a 95 % interval, in standard errors."""

Make = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Fit:
    """How far normal images that were changed stand out from unchanged ones; low, high: 95 % interval of the AUROC."""

    setting: str
    auroc: float
    low: float
    high: float

    @property
    def fits(self) -> bool:
        return self.low <= 0.5 or self.auroc < LIMIT

    @property
    def line(self) -> str:
        if self.fits:
            verdict = "fits" if self.auroc < LIMIT else "fits, as far as so few images tell"
        else:
            verdict = "does not fit: this part never looks so"
        return f"{self.setting}: AUROC {self.auroc:.3f} ({self.low:.3f} to {self.high:.3f}); {verdict}"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "fits": self.fits}


@dataclass(frozen=True)
class Fitting:
    """fitted, held: numbers of normal images; rows: one for each change that was tried."""

    name: str
    fitted: int
    held: int
    rows: tuple[Fit, ...]

    @property
    def lines(self) -> list[str]:
        head = f"{self.name}: Gaussian of {self.fitted} normal images, {self.held} others as they are and changed"
        return [head, *(row.line for row in self.rows)]

    def to_dict(self) -> dict[str, Any]:
        content = {"format_version": 1, "name": self.name, "fitted": self.fitted, "held": self.held, "limit": LIMIT}
        return {**content, "changes": [row.to_dict() for row in self.rows]}


def fitting_changes(config: TrialConfig) -> Fitting:
    """Every change of `CHANGES` on a configuration's data; its method and labelled anomalies are not looked at.

    Raises DataError for fewer than 45 normal images, and what reading data and weights raises.
    """
    free = {"data.setting": "anomaly-free", "data.known_class": None, "data.selection": "auto"}
    config = config.override({"method.name": "gaussian", **free})
    split = split_for(config, task_of(config))
    config = with_range(config, split)
    paths = [file.path for file in split.development if file.label == 0]
    cached = ImageCache(cache_folder()).array(split.root, paths, Decoding.of(config.data), config.data.skip_corrupt)
    rows = np.array([cached.index[path] for path in paths if path in cached.index], int)
    held = min(MOST, len(rows) // 3)
    if held < LEAST:
        raise DataError(f"{len(rows)} normal images are too few to hold some out; {3 * LEAST} are needed")
    order = torch.randperm(len(rows), generator=stream(config.data.partition_seed, "fitting")).numpy()
    device = resolve_device(config.runtime.device)
    keep_freed_memory(device)
    method = fresh_method(config, device)
    method.prepare(TaskImages(cached.array, np.sort(rows[order[held:]]), np.zeros(0, int)))
    method.run_epoch(0, lambda: False)
    images = cached.array[np.sort(rows[order[:held]])]
    plain = method.score(images)
    found = [
        compared(setting, plain, method.score(_changed(images, make, config.data.partition_seed, setting)))
        for setting, make in CHANGES.items()
    ]
    name = "/".join(filter(None, (config.data.source, config.data.category)))
    return Fitting(name, len(rows) - held, held, tuple(found))


def compared(setting: str, plain: np.ndarray, altered: np.ndarray) -> Fit:
    """Scores [N] of the same images, unchanged and changed.

    The error is DeLong's with an image's two placements added, as both come from one image (Obuchowski, Biometrics 53,
    1997).
    """
    labels = np.r_[np.zeros(len(plain)), np.ones(len(altered))]
    places = Placements.of(labels, np.r_[plain, altered])
    error = float((places.anomalous + places.normal).std(ddof=1)) / math.sqrt(len(plain))
    return Fit(setting, places.auroc, max(0.0, places.auroc - Z * error), min(1.0, places.auroc + Z * error))


def _changed(images: np.ndarray, make: Make, seed: int, setting: str) -> np.ndarray:
    parts = []
    for start in range(0, len(images), BATCH):
        pixels = to_pixels(images[start : start + BATCH], torch.device("cpu"))
        made = make(pixels, stream(seed, "fitting", setting, start))
        parts.append(to_images(made).numpy())
    return np.concatenate(parts)


def _augmented(config: AugmentConfig) -> Make:
    """By draws of its own for each image, as training makes them."""
    return lambda pixels, draws: changed(pixels, config, draws.initial_seed(), "fitting")[0]


def _quarter(pixels: Tensor, draws: torch.Generator) -> Tensor:
    # an image that stays as it is would say nothing
    return quarter_turned(pixels, torch.randint(1, 4, (len(pixels),), generator=draws))


def _mirrored(down: bool, across: bool) -> Make:
    return lambda pixels, draws: move(
        pixels, torch.tensor([[down, across]]).expand(len(pixels), 2), torch.zeros(len(pixels), 2, dtype=torch.long)
    )


CHANGES: dict[str, Make] = {
    "augment.rotation=quarter": _quarter,
    "augment.rotation=free": _augmented(AugmentConfig()),
    "augment.rotation=free, augment.rotation_fill=reflect": _augmented(AugmentConfig(rotation_fill="reflect")),
    "augment.flip=horizontal": _mirrored(False, True),
    "augment.flip=vertical": _mirrored(True, False),
    **{f"augment.shift={share}": _augmented(AugmentConfig(rotation="none", shift=share)) for share in (0.05, 0.1)},
    **{
        f"augment.brightness={share}": _augmented(AugmentConfig(rotation="none", brightness=share))
        for share in (0.1, 0.2)
    },
    **{f"augment.contrast={share}": _augmented(AugmentConfig(rotation="none", contrast=share)) for share in (0.1, 0.2)},
}
"""Setting -> what it makes of images [N, 3, S, S] in [0, 1]."""
