"""How fast a model is on this machine, images decoded and scored one by one, and many at once."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sctune.deploy.model import Model

WARM_UP = 3


@dataclass(frozen=True)
class Speed:
    """median, p95: milliseconds from an image's bytes to its score, one at a time; throughput: images a second."""

    median_ms: float
    p95_ms: float
    throughput: float
    images: int
    device: str
    machine: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        return (
            f"{self.median_ms:.0f} ms an image (95 % within {self.p95_ms:.0f} ms), {self.throughput:.0f} images a "
            f"second, measured with {self.images} images on {self.device}, {self.machine}"
        )


def measure(model: Model, images: Sequence[bytes]) -> Speed:
    """Time a model on encoded images, one at least; those of the warm-up are not counted."""
    for image in images[:WARM_UP]:
        model.score([model.prepare(image).pixels])
    times = []
    for image in images:
        start = time.perf_counter()
        model.score([model.prepare(image).pixels])
        times.append(1000 * (time.perf_counter() - start))
    start = time.perf_counter()
    model.score([model.prepare(image).pixels for image in images])
    together = time.perf_counter() - start
    device = str(model.method.device)
    return Speed(
        median_ms=float(np.median(times)),
        p95_ms=float(np.percentile(times, 95)),
        throughput=len(images) / together,
        images=len(images),
        device=device,
        machine=f"{platform.machine()} with {os.cpu_count()} cores",
    )
