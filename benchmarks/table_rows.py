"""From the lines of recorded trainings to a table: those configurations and seeds that are through, in arrays."""

from __future__ import annotations

import base64
import platform
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
from measure_common import HARDWARE, Row

from sctune.errors import DataError
from sctune.search.simulate.table import About, RecordedTable

ABOUT = "about"
"""Key of the first row, which says what all others are of."""
KEPT = ("all", "last", "none")


def encoded(rows: Sequence[Sequence[float]]) -> str:
    """float32 [E, N], little endian."""
    return base64.b64encode(np.array(rows, "<f4").tobytes()).decode()


def _decoded(text: str, epochs: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(epochs, -1)


def rectangle(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Numbers of configurations and seeds that all have a training: those that make the most trainings.

    Seeds in the order in which they came; a configuration that failed with one of them is in no table.
    """
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    failed = {row["number"] for row in rows if row["failed"]}
    has = {(row["number"], row["seed"]) for row in rows}
    numbers = sorted({number for number, _ in has} - failed)
    best: tuple[list[int], list[int]] = ([], [])
    for count in range(1, len(seeds) + 1):
        whole = [number for number in numbers if all((number, seed) in has for seed in seeds[:count])]
        if len(whole) * count >= len(best[0]) * len(best[1]):
            best = whole, seeds[:count]
    return best


def table_of(rows: Sequence[Row], keep: str) -> RecordedTable:
    """keep: of KEPT, after which epochs the scores are kept. Raises DataError where there is nothing yet."""
    about = next((row for row in rows if row["key"] == ABOUT), None)
    trained = [row for row in rows if row["key"] != ABOUT]
    numbers, seeds = rectangle(trained)
    if about is None or len(numbers) < 2 or len(seeds) < 2:
        raise DataError("there are not two configurations with the same two seeds yet; train on")
    held = {(row["number"], row["seed"]): row for row in trained}
    grid = [[held[number, seed] for seed in seeds] for number in numbers]
    epochs = max(len(row["values"]) for line in grid for row in line)
    scores, labels, earlier = _images(grid, keep)
    return RecordedTable(
        About(
            **{name: about[name] for name in ("name", "space", "config", "profile", "objective", "selection")},
            configurations=[line[0]["params"] for line in grid],
            seeds=seeds,
            tasks=[row["tasks"] for row in grid[0]],
            recorded=_recorded(about, trained),
        ),
        np.array([[_filled(row["values"], epochs) for row in line] for line in grid]),
        np.array([[_filled(row["seconds"], epochs) for row in line] for line in grid], np.float32),
        np.array([[row["memory_mb"] for row in line] for line in grid], np.float32),
        labels,
        scores,
        earlier,
    )


def _images(
    grid: Sequence[Sequence[Row]], keep: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scores after the last epoch, labels, and scores after the epochs before where all are as long."""
    scores: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray] = {}
    earlier: dict[str, np.ndarray] = {}
    for place, first in enumerate(grid[0]) if keep != "none" else ():
        labels |= {key: np.array(list(digits), np.int8) for key, digits in first["labels"].items()}
        rows = [line[place] for line in grid]
        for key in first["scores"]:
            found = [_decoded(row["scores"][key], len(row["values"])) for row in rows]
            scores[key] = np.stack([one[-1] for one in found])
            if keep == "all" and len({len(one) for one in found}) == 1:
                earlier[key] = np.stack([one[:-1] for one in found]).astype(np.float16)
    return scores, labels, earlier


def _filled(values: Sequence[float], epochs: int) -> list[float]:
    return [*values, *[np.nan] * (epochs - len(values))]


def _recorded(about: Row, rows: Sequence[Row]) -> Row:
    failed = Counter(row["number"] for row in rows if row["failed"])
    return {
        "packed": datetime.now(UTC).date().isoformat(),
        "hardware": HARDWARE,
        "data": about["data"],
        "versions": {name: version(name) for name in ("torch", "numpy", "optuna")}
        | {"python": platform.python_version()},
        "cpu_seconds": round(float(np.median([row["cpu_seconds"] for row in rows])), 1),
        "trainings": len(rows),
        "failed": sorted(failed),
    }
