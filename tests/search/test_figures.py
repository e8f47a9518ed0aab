"""Which images the pictures of a trial may show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sctune.data.split import Split, make_split
from sctune.manage.figures import figure_files


def split_of(root: Path, setting: str, selection: str = "auto", n_anomalies: int = 6, **more: Any) -> Split:
    known = "spot" if setting == "hard" else None
    return make_split(root, setting, n_anomalies, known, 42, selection, **more)


CASES = [
    ("general", "extra", 6),
    ("general", "seen", 6),
    ("general", "proxy", 3),
    ("hard", "auto", 4),
    ("hard", "extra", 4),
    ("anomaly-free", "auto", 1),
]


@pytest.mark.parametrize(("setting", "selection", "n_anomalies"), CASES)
@pytest.mark.parametrize("limit", [3, 200])
def test_no_test_file_without_test(
    image_folder: Path, setting: str, selection: str, n_anomalies: int, limit: int
) -> None:
    split = split_of(image_folder, setting, selection, n_anomalies)
    groups = figure_files(split, setting, limit, 0, test=False)
    assert list(groups) == ["normal", "seen", "unseen"]
    shown = [file for files in groups.values() for file in files]
    assert len(set(shown)) == len(shown), "no image is in two groups"
    assert set(shown) <= set(split.development)
    assert not set(shown) & set(split.test)
    assert all(len(files) <= limit for files in groups.values())
    # no group is empty that has images
    held_out = [file for file in split.selection if file.label == 0]
    trained = [file for file in split.train if file.label == 1]
    assert len(groups["normal"]) == min(limit, len(held_out)) > 0
    assert set(groups["normal"]) <= set(held_out)
    assert len(groups["seen"]) == min(limit, len(trained))
    assert set(groups["seen"]) <= set(trained)
    assert (len(groups["seen"]) > 0) == (setting != "anomaly-free")


def test_unseen_are_the_anomalies_of_the_development_pool_that_were_not_trained_on(image_folder: Path) -> None:
    for selection in ("extra", "seen", "proxy"):
        split = split_of(image_folder, "general", selection, 8)
        unseen = set(figure_files(split, "general", 200, 0, test=False)["unseen"])
        anomalies = {file for file in split.development if file.label == 1}
        assert unseen == anomalies - set(split.train)
        assert unseen >= {file for file in split.selection if file.label == 1}
        assert unseen


@pytest.mark.parametrize("setting", ["hard", "anomaly-free"])
def test_where_the_development_pool_has_no_other_class_unseen_needs_the_test_pool(
    image_folder: Path, setting: str
) -> None:
    split = split_of(image_folder, setting, n_anomalies=4)
    assert figure_files(split, setting, 200, 0, test=False)["unseen"] == ()
    opened = figure_files(split, setting, 200, 0, test=True)
    assert set(opened["unseen"]) == {file for file in split.test if file.label == 1}
    if setting == "hard":
        assert {file.kind for file in opened["unseen"]} == {"scratch", "patch"}
        assert {file.kind for file in opened["seen"]} == {"spot"}
    # only the unseen come from there
    assert not set(opened["normal"] + opened["seen"]) & set(split.test)


def test_a_source_unit_that_was_trained_on_is_not_unseen(image_folder: Path) -> None:
    # anomalies of one number are one unit over all defects; of the unit of three, two are trained on
    split = split_of(image_folder, "general", "proxy", 2, group=r"((?:train|test)/good/\d+|\d+)\.png")
    trained = {file.group for file in split.train if file.label == 1}
    left = {file for file in split.development if file.label == 1} - set(split.train)
    unseen = figure_files(split, "general", 200, 0, test=False)["unseen"]
    assert {file.group for file in left} & trained, "the unit was cut"
    assert set(unseen) == {file for file in left if file.group not in trained} != set()


def test_a_limit_draws_by_the_seed_and_keeps_all_types(image_folder: Path) -> None:
    split = split_of(image_folder, "general", "extra", 6)
    first = figure_files(split, "general", 6, 0, test=True)
    assert first == figure_files(split, "general", 6, 0, test=True)
    other = figure_files(split, "general", 6, 1, test=True)
    assert first["normal"] != other["normal"]
    assert {file.kind for file in first["unseen"]} == {"spot", "scratch", "patch"}
    assert list(first["unseen"]) == sorted(first["unseen"], key=lambda file: file.path)


def test_a_study_that_selects_on_test_images_shows_no_unseen_ones_by_itself(image_folder: Path) -> None:
    split = split_of(image_folder, "general", "test", 6)
    assert figure_files(split, "general", 200, 0, test=False)["unseen"] == ()
