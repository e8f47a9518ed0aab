"""Properties of every split on generated file lists: no source unit is cut, nothing is lost twice."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from sctune.data.catalog import DataSet, ImageFile
from sctune.data.split import Split, make_split, selection_subset
from sctune.errors import DataError

LISTS = ("train", "selection", "calibration", "test")


@st.composite
def data_sets(draw: st.DrawFn) -> DataSet:
    """60 to 120 normal and 12 to 140 anomalous files in source units, with or without a split of their maker's."""
    units = draw(st.sampled_from([60, 200, 900]))
    official = draw(st.booleans())
    shared = draw(st.sampled_from([0.5, 0.98]))
    # one drawn seed: hypothesis would else prefer lists of equal values, which are all refused
    rng = random.Random(draw(st.integers(0, 10**6)))
    files = []
    for number in range(draw(st.integers(60, 120))):
        split = rng.choice(["train", "train", "train", "test"]) if official else None
        files.append(ImageFile(f"n{number:03}", 0, "good", f"u{rng.randrange(units)}", split))  # type: ignore[arg-type]
    for number in range(draw(st.integers(12, 140))):
        group = f"u{rng.randrange(units)}" if rng.random() < shared else f"a{rng.randrange(units)}"
        files.append(ImageFile(f"a{number:03}", 1, rng.choice("xyz"), group, "test" if official else None))
    return DataSet("drawn", Path("/nowhere"), tuple(rng.sample(files, len(files))))


def check(split: Split, setting: str) -> None:
    units = {name: {file.group for file in getattr(split, name)} for name in LISTS}
    development = {file.group for file in split.development}
    assert development.isdisjoint(units["test"])
    for first, second in (("train", "selection"), ("train", "calibration"), ("selection", "calibration")):
        assert units[first].isdisjoint(units[second]), (first, second)
    for name in LISTS:
        paths = [file.path for file in getattr(split, name)]
        assert paths == sorted(set(paths))
    assert all(file.label == 0 for file in split.calibration)
    assert len([file for file in split.selection if file.label == 0]) >= 10
    assert any(file.label for file in split.train) or setting == "anomaly-free"


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=data_sets(),
    setting=st.sampled_from(["general", "hard", "anomaly-free"]),
    count=st.sampled_from([1, 4, 10, "all"]),
    mode=st.sampled_from(["auto", "extra", "seen", "proxy"]),
    partition_seed=st.integers(0, 3),
)
def test_no_unit_is_cut_and_no_seed_reaches_the_test(
    data: DataSet, setting: str, count: int, mode: str, partition_seed: int
) -> None:
    splits = []
    for seed in (42, 43, 44):
        try:
            split = make_split(
                data, setting, count, "x" if setting == "hard" else None, seed, mode, partition_seed=partition_seed
            )
        except DataError as problem:
            assert "\n" not in str(problem)
            continue
        check(split, setting)
        assert set(selection_subset(split, 5, partition_seed)) <= set(split.selection)
        splits.append(split)
    event(f"{len(splits)} splits")
    assert len({split.test for split in splits}) <= 1
    assert len({split.development for split in splits}) <= 1
