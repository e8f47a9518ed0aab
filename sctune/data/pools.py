"""Development and test pool: drawn once per study by the partition seed, never by a trial's seed (DESIGN 6).

Source units (`ImageFile.group`) are drawn whole, so that no unit is in both pools.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sctune.data.catalog import DataSet, ImageFile
from sctune.errors import DataError, nearest

Files = tuple[ImageFile, ...]
Amount = int | Literal["all"]

MARKED = "train"
HELD_OUT_SHARE = 0.15
"""Of the development normals, for the selection; for the calibration where none is asked for."""
HELD_OUT_LEAST = 10
NORMALS_LEAST = 3 * HELD_OUT_LEAST


@dataclass(frozen=True)
class Pools:
    """normals, anomalies: the development pool; test: the test pool, both labels; all sorted by path."""

    normals: Files
    anomalies: Files
    test: Files
    warnings: tuple[str, ...]


def generator(seed: int, purpose: str) -> np.random.RandomState:
    """A generator of its own for each purpose, so that draws with one seed do not follow each other."""
    return np.random.RandomState(int.from_bytes(hashlib.sha256(f"{purpose}:{seed}".encode()).digest()[:4], "big"))


def by_path(files: Iterable[ImageFile]) -> Files:
    return tuple(sorted(files, key=lambda file: file.path))


def units(files: Iterable[ImageFile]) -> set[str]:
    return {file.group for file in files}


def outside(files: Iterable[ImageFile], *taken: set[str]) -> Files:
    """The files whose source unit is in none of the sets."""
    return tuple(file for file in files if not any(file.group in names for names in taken))


def take_units(
    files: Sequence[ImageFile],
    count: int,
    random: np.random.RandomState,
    rank: Callable[[str], int] = lambda unit: 0,
) -> tuple[Files, Files]:
    """Draw whole source units until at least `count` files are taken: (taken, rest), each sorted by path.

    rank: units of lower rank are drawn first.
    """
    members: dict[str, list[ImageFile]] = {}
    for file in by_path(files):
        members.setdefault(file.group, []).append(file)
    names = sorted(members)
    order = sorted((names[row] for row in random.permutation(len(names))), key=rank)
    taken: list[ImageFile] = []
    for name in order:
        if len(taken) >= count:
            break
        taken += members[name]
    chosen = units(taken)
    return by_path(taken), outside(by_path(files), chosen)


def draw_pools(data: DataSet, setting: str, anomalies: Amount, known_class: str | None, partition_seed: int) -> Pools:
    """The two pools of a study. They do not depend on a trial's seed, the selection mode or a fold.

    general: anomalies + a quarter of the others are for development; hard: the whole known class is, and no other;
    anomaly-free: none is. Raises DataError where that leaves a pool empty or the known class does not exist.
    """
    normals, test_normals, warnings = split_normals(data, partition_seed)
    if setting == "general":
        developed, rest = _general(data, anomalies, units(normals), units(test_normals), partition_seed)
    elif setting == "hard":
        developed, rest = known_and_others(data, known_class)
    else:
        developed, rest = (), outside_training(data)
    test, dropped = drop_conflicts((*test_normals, *rest), (*normals, *developed))
    if setting != "anomaly-free" and not any(file.label for file in test):
        raise DataError(
            f"{data.name}: all {len(data.anomalies)} anomalies fall into the development pool, none is left for the "
            "test; lower data.n_anomalies or use finer source units (data.group)"
        )
    if all(file.label for file in test):
        raise DataError(
            f"{data.name}: every normal test image shares a source unit with the development pool, none is left for "
            "the test; use finer source units (data.group)"
        )
    if not data.anomalies:
        warnings += ("no anomalous images: the test pool cannot give an AUROC",)
    return Pools(normals, developed, test, warnings + dropped)


def split_normals(data: DataSet, partition_seed: int) -> tuple[Files, Files, tuple[str, ...]]:
    """Development and test normals: the data set's own split, else three quarters and one, drawn by unit."""
    marks = [file.split for file in data.normals]
    if None in marks and set(marks) != {None}:
        raise DataError(
            f"{data.name}: {marks.count(None)} of {len(marks)} normal images have no split; give all or none"
        )
    train = tuple(file for file in data.normals if file.split == MARKED)
    test = tuple(file for file in data.normals if file.split == "test")
    if train and test:
        return train, test, ()
    held = math.ceil(len(data.normals) / 4)
    test, train = take_units(data.normals, held, generator(partition_seed, "normals"))
    return train, test, (f"no test split of the normal images: {len(test)} of {len(marks)} are drawn for the test",)


def hold_out(
    data: DataSet, normals: Files, anomalies: Files, partition_seed: int, calibration_share: float = HELD_OUT_SHARE
) -> tuple[Files, Files, Files]:
    """Training, selection and calibration normals; source units without anomalies are held out first.

    calibration_share: of all normals. It changes neither the selection nor, but for more of them, the calibration.
    """
    if len(normals) < NORMALS_LEAST:
        raise DataError(
            f"{data.name}: {len(normals)} normal images to train on; {NORMALS_LEAST} are needed, because "
            f"{HELD_OUT_LEAST} each are held out for selection and calibration"
        )
    count, kept = (max(HELD_OUT_LEAST, round(share * len(normals))) for share in (HELD_OUT_SHARE, calibration_share))
    mixed = units(anomalies)
    random = generator(partition_seed, "held out")
    selection, rest = take_units(normals, count, random, lambda unit: unit in mixed)
    calibration, train = take_units(rest, kept, random, lambda unit: unit in mixed)
    if len(train) < HELD_OUT_LEAST or len(calibration) < HELD_OUT_LEAST:
        smaller = f" or a smaller data.calibration_share than {calibration_share:g}" if kept > count else ""
        raise DataError(
            f"{data.name}: {len(units(normals))} source units of normal images are too few to hold some out for "
            f"selection and calibration; use finer source units (data.group){smaller}"
        )
    return train, selection, calibration


def outside_training(data: DataSet) -> Files:
    """Anomalies that may be tested on: all but those that their maker marked for training."""
    return tuple(file for file in data.anomalies if file.split != MARKED)


def for_training(anomalies: Files) -> Files:
    """Anomalies that may be trained on: those marked for training where any is, else all."""
    return tuple(file for file in anomalies if file.split == MARKED) or anomalies


def known_and_others(data: DataSet, known_class: str | None) -> tuple[Files, Files]:
    """Hard setting: the known class, and the anomalies of all other classes (its own unused files in neither)."""
    if known_class not in data.kinds:
        raise DataError(f"{data.name} has no anomaly class {known_class!r}; {nearest(str(known_class), data.kinds)}")
    known = for_training(tuple(file for file in data.anomalies if file.kind == known_class))
    others = tuple(file for file in outside_training(data) if file.kind != known_class)
    if not others:
        raise DataError(f"{data.name}: the hard setting tests on other classes than {known_class!r}, and there is none")
    return known, others


def check_anomalies(data: DataSet) -> None:
    """Raises DataError where the general setting has too few anomalies, whatever is drawn."""
    if not data.anomalies:
        raise DataError(f"{data.name} has no anomalous images; use the anomaly-free setting (data.setting)")
    if len(data.anomalies) == 1:
        raise DataError(
            f"{data.name} has 1 anomalous image; the general setting needs 2, one to train on and one to test on: get "
            "another or use data.setting=anomaly-free"
        )


def drop_conflicts(test: Iterable[ImageFile], development: Iterable[ImageFile]) -> tuple[Files, tuple[str, ...]]:
    """The test files whose source unit is not in development, and one warning where some had to go."""
    files = by_path(test)
    kept = outside(files, units(development))
    gone = len(files) - len(kept)
    if not gone:
        return kept, ()
    return kept, (f"{gone} test images share a source unit with the development pool and are left out",)


def _general(
    data: DataSet, anomalies: Amount, normal_units: set[str], test_units: set[str], partition_seed: int
) -> tuple[Files, Files]:
    check_anomalies(data)
    total = len(data.anomalies)
    if any(file.split == MARKED for file in data.anomalies):
        return for_training(data.anomalies), outside_training(data)
    if anomalies == "all" or anomalies >= total:
        # a test needs anomalies too: cut them like the normals
        wanted = total - math.ceil(total / 4)
    else:
        wanted = anomalies + round((total - anomalies) / 4)

    def rank(unit: str) -> int:
        return 0 if unit in normal_units else 2 if unit in test_units else 1

    return take_units(data.anomalies, wanted, generator(partition_seed, "anomalies"), rank)
