"""A recorded table: configurations x seeds x epochs, trained once, by which searches are simulated.

One file of numpy's, `.npz`, which numpy alone reads (`allow_pickle=False`):

- `about`: JSON (see `About`);
- `values` [C, S, E]: the objective after each epoch, in its own units; NaN after the last epoch of a configuration;
- `seconds` [C, S, E]: CPU time of each epoch in one thread, scoring included; `memory_mb` [C, S]: the most that the
  training held;
- `labels/KEY` [N]: of the selection images of a task; `scores/KEY` [C, N]: their scores after the last epoch, and
  `earlier/KEY` [C, E - 1, N] as float16 after the epochs before, where they were kept. A KEY may end in `:maker`, for
  the images that a maker of pseudo anomalies made.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from sctune.config import TrialConfig
from sctune.errors import DataError
from sctune.files import whole_file
from sctune.metrics.objective import Objective, find_objective
from sctune.report import EpochReport
from sctune.search.space.definition import Space, Values
from sctune.search.space.finite import FiniteSpace, confined

FORMAT_VERSION = 1
LABELS, SCORES, EARLIER = "labels/", "scores/", "earlier/"

Array = np.ndarray


class About(BaseModel):
    """What a table is of. space, config, profile, objective: as in a study's manifest. configurations: as the space
    gives them, in the order in which they were drawn. seeds: with the keys of each one's tasks in tasks. selection: the
    mode. recorded: day, machine and versions, for people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: Literal[1] = 1
    name: str
    space: dict[str, Any]
    config: dict[str, Any]
    profile: str
    objective: str
    configurations: list[dict[str, Any]]
    seeds: list[int]
    tasks: list[list[str]]
    selection: str
    recorded: dict[str, Any] = {}


@dataclass(frozen=True)
class RecordedTable:
    """See the head of this file. labels, scores, earlier: by key, of what was kept."""

    about: About
    values: Array
    seconds: Array
    memory_mb: Array
    labels: Mapping[str, Array]
    scores: Mapping[str, Array]
    earlier: Mapping[str, Array]

    @property
    def epochs(self) -> int:
        """Of a training to the end."""
        return int(self.values.shape[2])

    @cached_property
    def lengths(self) -> Array:
        """Epochs of each configuration [C]."""
        return np.isfinite(self.values[:, 0]).sum(axis=1)

    @cached_property
    def objective(self) -> Objective:
        """Raises ConfigError where it is another package's, which is not installed here."""
        return find_objective(self.about.objective)

    @cached_property
    def space(self) -> FiniteSpace:
        whole = Space.from_dict(self.about.space, TrialConfig.load(self.about.config))
        return confined(whole, [_as_drawn(whole, values) for values in self.about.configurations])

    @cached_property
    def ends(self) -> Array:
        """Merits after the last epoch [C, S]: higher is better."""
        last = np.take_along_axis(self.values, self.lengths[:, None, None] - 1, axis=2)[..., 0]
        return np.vectorize(self.objective.merit, otypes=[float])(last)

    def report(self, configuration: int, seed: int, epoch: int) -> EpochReport:
        """Of a training: places of the configuration and the seed, and the epoch, 1 .. its length. Scores come with the
        last one.
        """
        length = int(self.lengths[configuration])
        metrics = {
            self.objective.metric: float(self.values[configuration, seed, epoch - 1]),
            "seconds": float(self.seconds[configuration, seed, epoch - 1]),
        }
        scores = self._scores(configuration, seed) if epoch == length else {}
        return EpochReport(epoch, length, metrics, scores, self.about.objective)

    def _scores(self, configuration: int, seed: int) -> dict[str, list[float]]:
        own = self.about.tasks[seed]
        return {key: rows[configuration].tolist() for key, rows in self.scores.items() if key.partition(":")[0] in own}

    def labels_of(self, seeds: Sequence[int]) -> dict[str, list[int]]:
        """Task key -> labels of the scored images, of the seeds at these places; empty where scores were not kept."""
        keys = [key for seed in seeds for key in self.about.tasks[seed]]
        return {key: self.labels[key].tolist() for key in keys if key in self.labels}

    def save(self, path: Path) -> None:
        """Written whole or not at all."""
        arrays = {"values": self.values, "seconds": self.seconds, "memory_mb": self.memory_mb}
        for prefix, rows in ((LABELS, self.labels), (SCORES, self.scores), (EARLIER, self.earlier)):
            arrays |= {f"{prefix}{key}": row for key, row in rows.items()}
        about = np.array(self.about.model_dump_json())
        with whole_file(path) as part, part.open("wb") as stream:
            # numpy takes its own option for one of the arrays
            np.savez_compressed(stream, about=about, **arrays)  # type: ignore[arg-type]


def _as_drawn(space: Space, values: Mapping[str, Any]) -> Values:
    """In the order in which the space draws them."""
    return {one.name: values[one.name] for one in space.parameters if one.name in values}


def load_table(path: Path) -> RecordedTable:
    """Raises DataError in one line where there is none that this sctune can read."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        version = json.loads(str(arrays["about"])).get("format_version")
        if version != FORMAT_VERSION:
            raise DataError(f"{path} has format_version {version!r}, this sctune reads {FORMAT_VERSION}; update it")
        about = About.model_validate_json(str(arrays["about"]))
        table = RecordedTable(
            about, arrays["values"], arrays["seconds"], arrays["memory_mb"], *(_under(arrays, p) for p in _PREFIXES)
        )
        _check(table, path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as problem:
        line = str(problem).splitlines()[0] if not isinstance(problem, ValidationError) else problem.errors()[0]["msg"]
        raise DataError(f"{path} is no recorded table: {line}; benchmarks/record_table.py makes one") from None
    return table


_PREFIXES = (LABELS, SCORES, EARLIER)


def _under(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _check(table: RecordedTable, path: Path) -> None:
    shape = (len(table.about.configurations), len(table.about.seeds))
    shapes = (
        table.values.shape[:2],
        table.seconds.shape[:2],
        table.memory_mb.shape,
        (shape[0], len(table.about.tasks)),
    )
    if any(one != shape for one in shapes) or table.values.shape != table.seconds.shape or 0 in table.values.shape:
        raise ValueError(f"its arrays are not of {shape[0]} configurations and {shape[1]} seeds")
    if (table.lengths < 1).any() or (np.isfinite(table.values) != _within(table)).any():
        raise ValueError("an epoch in the middle of a training has no value")


def _within(table: RecordedTable) -> Array:
    return np.broadcast_to(np.arange(table.epochs) < table.lengths[:, None, None], table.values.shape)
