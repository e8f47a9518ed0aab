"""What a task trains on, selects by, calibrates with and tests on (DESIGN 6, METHODS 5.1).

A trial's seed re-draws inside the development pool only. `selection="test"` is the paper's protocol to the letter.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from sctune.config import Task, TrialConfig
from sctune.data.catalog import DataSet, ImageFile, open_dataset
from sctune.data.duplicates import kept_together
from sctune.data.pools import (
    HELD_OUT_SHARE,
    Amount,
    Files,
    by_path,
    check_anomalies,
    draw_pools,
    drop_conflicts,
    for_training,
    generator,
    hold_out,
    known_and_others,
    outside,
    outside_training,
    split_normals,
    take_units,
    units,
)
from sctune.data.selection import MODES, cross_folds, resolve_mode, seen_folds, stratified
from sctune.errors import DataError, nearest

LISTS = ("train", "selection", "calibration", "test")
SETTINGS = ("general", "hard", "anomaly-free")


@dataclass(frozen=True)
class Split:
    """The files of one task, each list sorted by path; paths are relative to root.

    mode: extra, seen, cross, proxy or test; reason: one sentence why. makers: whether the objective includes the proxy
    makers on the selection normals. development: all that trials of the study may ever read, whatever their seed.
    folds: folds that modes `seen` and `cross` really have (0 in others); in `seen` at most one per anomaly type where
    there are two. content: `data_digest` of the development files, where it was published with them and the files need
    not be on this machine (`published`).
    """

    root: Path
    mode: str
    reason: str
    train: Files
    selection: Files
    calibration: Files
    test: Files
    makers: bool
    warnings: tuple[str, ...]
    development: Files
    folds: int = 0
    content: str | None = None

    @property
    def pools(self) -> list[dict[str, list[str]]]:
        """Name -> paths of pools that must share no image; in mode `test` the test images select."""
        names = ("train", "selection", "calibration") if self.mode != "test" else ("train", "calibration")
        inner = {name: [file.path for file in getattr(self, name)] for name in names}
        tested = [file.path for file in self.test]
        held = set(tested)
        outer = {"test": tested, "development": [file.path for file in self.development if file.path not in held]}
        return [inner, outer]

    @property
    def digest(self) -> str:
        """SHA-256 of the four lists, labels and kinds included; the same on every machine."""
        lists = {name: [[file.path, file.label, file.kind] for file in getattr(self, name)] for name in LISTS}
        return hashlib.sha256(json.dumps(lists, sort_keys=True).encode()).hexdigest()

    def summary(self) -> dict[str, int]:
        """Numbers of images by list and label, for the dry run and the tracking."""
        counts = {}
        for name in LISTS:
            labels = [file.label for file in getattr(self, name)]
            counts[f"{name}_normals"] = labels.count(0)
            counts[f"{name}_anomalies"] = labels.count(1)
        return counts


@dataclass(frozen=True)
class _Request:
    """The arguments of make_split, the data set opened."""

    data: DataSet
    setting: str
    anomalies: Amount
    known_class: str | None
    seed: int
    selection: str
    partition_seed: int
    fold: int | None
    folds: int
    every: bool
    calibration_share: float

    def check(self) -> None:
        if self.selection not in MODES:
            raise DataError(f"unknown selection mode {self.selection!r}; {nearest(self.selection, MODES)}")
        if self.setting not in SETTINGS:
            raise DataError(f"unknown setting {self.setting!r}; {nearest(self.setting, SETTINGS)}")
        if self.setting != "anomaly-free" and self.anomalies != "all" and self.anomalies < 1:
            raise DataError(f"data.n_anomalies={self.anomalies}: the {self.setting} setting trains on 1 at least")
        if self.every and self.selection == "test":
            raise DataError(
                "data.anomalies=all trains on the whole development pool, and data.selection=test knows no such pool; "
                "use data.n_anomalies=all there"
            )
        if self.calibration_share != HELD_OUT_SHARE and self.selection == "test":
            raise DataError(
                f"data.calibration_share={self.calibration_share:g}: data.selection=test holds no image out to "
                "calibrate with; leave it at its default there"
            )

    def fewer(self, used: int) -> tuple[str, ...]:
        """The one warning when fewer anomalies than asked for can be trained on."""
        if self.every or self.anomalies == "all" or self.setting == "anomaly-free" or used >= self.anomalies:
            return ()
        total = len(self.data.anomalies)
        return (f"{self.anomalies} anomalies asked for, {used} can be trained on (of {total}); all of them are used",)


def make_split(
    root: str | Path | DataSet,
    setting: str,
    anomalies: Amount,
    known_class: str | None,
    seed: int,
    selection: str,
    *,
    partition_seed: int = 0,
    fold: int | None = None,
    folds: int = 2,
    category: str | None = None,
    group: str | None = None,
    every: bool = False,
    calibration_share: float = HELD_OUT_SHARE,
) -> Split:
    """The split of one task.

    root: a data set or its source (`open_dataset`); setting: general, hard (with known_class) or anomaly-free;
    anomalies: how many are trained on, or "all"; seed: draws which; selection: one of MODES. fold: in modes seen and
    cross the fold held out, 0 .. folds - 1, None for the first. In the general setting a quarter of the anomalies stays
    in the test pool even when all are asked for. every: all anomalies of the pool that `anomalies` draws are trained
    on, none is spare. calibration_share: of the development normals, held out to calibrate with. Raises DataError.
    """
    data = root if isinstance(root, DataSet) else open_dataset(str(root), category, group)
    request = _Request(
        data, setting, anomalies, known_class, seed, selection, partition_seed, fold, folds, every, calibration_share
    )
    request.check()
    split = _paper_split(request) if selection == "test" else _pooled_split(request)
    if fold is not None and split.mode not in ("seen", "cross"):
        raise DataError(f"fold {fold} goes with selection mode seen or cross; this split has mode {split.mode}")
    return replace(split, warnings=data.notes + split.warnings)


def split_for(config: TrialConfig, task: Task, data: DataSet | None = None) -> Split:
    """The split of one task of a trial; data: its data set, where the caller has opened it."""
    if data is None:
        data = open_dataset(task.source, task.category, config.data.group)
    if config.data.allow_duplicates:
        data = kept_together(data)
    return make_split(
        data,
        task.setting,
        config.for_task(task).n_anomalies,
        task.known_class,
        task.seed,
        config.data.selection,
        partition_seed=config.data.partition_seed,
        fold=task.fold,
        folds=task.folds or 2,
        every=config.data.anomalies == "all",
        calibration_share=config.data.calibration_share,
    )


def selection_subset(split: Split, limit: int | None, partition_seed: int) -> Files:
    """What is scored after each epoch: at most `limit` selection images per class, sorted by path; None: all.

    Drawn by the partition seed, anomalies in proportion to their kinds.
    """
    if limit is None:
        return split.selection
    normals = [file for file in split.selection if file.label == 0]
    anomalies = [file for file in split.selection if file.label == 1]
    random = generator(partition_seed, "scored")
    return by_path(stratified(normals, limit, random) + stratified(anomalies, limit, random))


def _paper_split(request: _Request) -> Split:
    data, anomalies = request.data, request.anomalies
    normals, test_normals, warnings = split_normals(data, request.partition_seed)
    seen: Files = ()
    rest = outside_training(data)
    if request.setting == "general":
        check_anomalies(data)
    if request.setting != "anomaly-free":
        pool = for_training(data.anomalies)
        if request.setting == "hard":
            pool, rest = known_and_others(data, request.known_class)
        listed = sorted(pool, key=_layout_order)
        drawn = [listed[row] for row in np.random.RandomState(request.seed).permutation(len(listed))]
        seen = tuple(drawn if anomalies == "all" else drawn[:anomalies])
        rest = tuple(file for file in rest if file not in set(seen))
    train = by_path((*normals, *seen))
    test, dropped = drop_conflicts((*test_normals, *rest), train)
    if {file.label for file in test} != {0, 1}:
        lacking = "anomalous" if any(file.label == 0 for file in test) else "normal"
        raise DataError(
            f"{data.name}: data.selection=test with data.n_anomalies={anomalies} leaves no {lacking} image to test on; "
            "train on fewer anomalies or choose another selection mode"
        )
    return Split(
        root=data.root,
        mode="test",
        reason="asked for: the paper's protocol, which selects on the test images",
        train=train,
        selection=test,
        calibration=(),
        test=test,
        makers=False,
        warnings=warnings + request.fewer(len(seen)) + dropped,
        development=by_path((*train, *test)),
    )


def _layout_order(file: ImageFile) -> tuple[str, str]:
    # the order of the sorted paths that the file has, or would have, in the MVTec layout (METHODS 5.1)
    return f"test/{file.kind}/{PurePosixPath(file.path).name}", file.path


def _pooled_split(request: _Request) -> Split:
    data, setting, anomalies = request.data, request.setting, request.anomalies
    pools = draw_pools(data, setting, anomalies, request.known_class, request.partition_seed)
    train, chosen, calibration = hold_out(
        data, pools.normals, pools.anomalies, request.partition_seed, request.calibration_share
    )
    wanted = len(pools.anomalies) if anomalies == "all" or request.every else anomalies
    trainable = outside(pools.anomalies, units(chosen), units(calibration))
    parts: list[Files] = []
    held: Files = ()
    if request.selection == "cross":
        # the same for every seed, so that their scores of held-out images can be averaged
        parts = cross_folds(outside(trainable, units(train)), request.folds, request.partition_seed)
        held = _fold(parts, request.fold) if parts else ()
        trainable = outside(trainable, units(held))
    drawn, _ = take_units(trainable, wanted, generator(request.seed, "seen"))
    seen = drawn[:wanted]
    if setting != "anomaly-free" and not seen:
        raise DataError(f"{data.name}: no anomaly is left to train on; use finer source units (data.group)")
    warnings = pools.warnings + request.fewer(len(seen))
    # an anomaly must not select beside a training image of its own source unit
    spare = outside(pools.anomalies, units(drawn), units(train), units(calibration))
    if request.selection != "cross":
        parts = seen_folds(outside(seen, units(train)), request.folds, request.seed)
    mode, reason = resolve_mode(request.selection, setting, len(seen), len(spare), len(parts))
    picked = spare if mode == "extra" else _fold(parts, request.fold) if mode == "seen" else held
    return Split(
        root=data.root,
        mode=mode,
        reason=reason,
        train=by_path((*train, *outside(seen, units(picked)))),
        selection=by_path((*chosen, *picked)),
        calibration=calibration,
        test=pools.test,
        makers=mode == "proxy" or setting == "hard",
        warnings=warnings,
        development=by_path((*pools.normals, *pools.anomalies)),
        folds=len(parts) if mode in ("seen", "cross") else 0,
    )


def _fold(parts: list[Files], fold: int | None) -> Files:
    if fold is not None and not 0 <= fold < len(parts):
        raise DataError(f"fold {fold} does not exist: the anomalies give {len(parts)} folds, counted from 0")
    return parts[fold or 0]
