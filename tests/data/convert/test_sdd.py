"""SDD: thirds at floor(H/3) and floor(2H/3), their masks, the 75/25 rule, and parts that no split cuts."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import train_test_split

from sctune.data.catalog import open_dataset
from sctune.data.convert import Manifest, known_sets, prepare
from sctune.data.split import make_split
from sctune.errors import DataError

SDD = next(one for one in known_sets() if one.name == "sdd")
HEIGHTS = (31, 32, 33)
"""Of the parts 0, 1, 2, 3, ... in turn."""


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.fixture
def made(raw_folders: dict[str, Path], tmp_path: Path) -> tuple[Path, Manifest]:
    return tmp_path / "sdd", prepare("sdd", raw_folders["sdd"], tmp_path / "sdd", allow_counts=True)


def test_thirds_put_together_are_the_image(made: tuple[Path, Manifest], raw_folders: dict[str, Path]) -> None:
    out, manifest = made
    paths = {Path(record.path).name: out / record.path for record in manifest.files}
    assert len(paths) == 3 * 8 * 3
    for part in range(8):
        thirds = [pixels(paths[f"kos02_Part{part}_{number}.png"]) for number in range(3)]
        height = HEIGHTS[part % 3]
        assert [len(third) for third in thirds] == {31: [10, 10, 11], 32: [10, 11, 11], 33: [11, 11, 11]}[height]
        whole = pixels(raw_folders["sdd"] / "kos02" / f"Part{part}.jpg")
        np.testing.assert_array_equal(np.concatenate(thirds), whole)
        assert thirds[0].ndim == 2


def test_a_third_is_anomalous_where_its_mask_is_not_zero(
    made: tuple[Path, Manifest], raw_folders: dict[str, Path]
) -> None:
    out, manifest = made
    anomalous = {Path(record.path).stem: record for record in manifest.files if record.kind != "good"}
    # one pixel row on either side of the cut, of grey value 1, makes both thirds of kos01_Part1 anomalous
    assert sorted(anomalous) == ["kos01_Part0_1", "kos01_Part1_1", "kos01_Part1_2", "kos02_Part0_1", "kos03_Part0_1"]
    for name, record in anomalous.items():
        assert record.path == f"test/defect/{name}.png" and record.mask == f"ground_truth/defect/{name}_mask.png"
        mask = pixels(out / str(record.mask))
        assert mask.shape == pixels(out / record.path).shape and set(np.unique(mask)) == {0, 255}
    label = pixels(raw_folders["sdd"] / "kos01" / "Part1_label.bmp")
    assert label.shape == (32, 20)
    joined = [pixels(out / str(anomalous[f"kos01_Part1_{third}"].mask)) for third in (1, 2)]
    np.testing.assert_array_equal(np.concatenate(joined), (label[10:] > 0) * np.uint8(255))


def test_the_normals_are_split_as_scikit_learn_splits_the_sorted_names(made: tuple[Path, Manifest]) -> None:
    _, manifest = made
    normal = {Path(record.path).name: record.split for record in manifest.files if record.kind == "good"}
    train, test = train_test_split(sorted(normal), test_size=0.25, random_state=42)
    assert {name for name, split in normal.items() if split == "test"} == set(test)
    assert {name for name, split in normal.items() if split == "train"} == set(train)


def test_units_stand_in_the_manifest_and_are_found_by_its_expression(made: tuple[Path, Manifest]) -> None:
    out, manifest = made
    unit = re.compile(str(manifest.group))
    for record in manifest.files:
        match = unit.search(record.path)
        assert match and match[1] == record.unit
        assert record.source == f"{str(record.unit).replace('_', '/')}.jpg"
        assert record.group is None, "the paper's split cuts parts"
    assert any("parts both in training and test: 17" in note for note in manifest.notes)
    grouped = open_dataset(str(out), group=manifest.group)
    assert len({file.group for file in grouped.files}) == 24


def full_tree(make: Callable[..., Path], root: Path) -> Path:
    """399 parts in 50 folders, 52 with a defect, 54 defective thirds."""
    make(root, folders=50, parts=8, heights=(12,))
    shutil.copyfile(root / "kos50" / "Part0_label.bmp", root / "kos50" / "Part1_label.bmp")
    label = np.zeros((12, 20), np.uint8)
    label[7:9] = 255
    Image.fromarray(label).save(root / "kos02" / "Part0_label.bmp")
    (root / "kos50" / "Part7.jpg").unlink()
    (root / "kos50" / "Part7_label.bmp").unlink()
    return root


@pytest.fixture
def full(makers: dict[str, Callable[..., Path]], tmp_path: Path) -> Path:
    return full_tree(makers["sdd"], tmp_path / "KolektorSDD")


def test_full_counts_and_the_papers_split(full: Path, tmp_path: Path) -> None:
    manifest = prepare("sdd", full, tmp_path / "out")
    assert manifest.counts == {"test/defect": 54, "test/good": 286, "train/good": 857}
    assert manifest.differences == ()
    data = open_dataset(str(tmp_path / "out"))
    assert (data.name, data.licence) == ("sdd", "CC BY-NC-SA 4.0") and "Tabernik" in str(data.attribution)
    summary = make_split(data, "general", 10, None, 42, "test").summary()
    assert [summary[key] for key in ("train_normals", "train_anomalies", "test_normals", "test_anomalies")] == [
        857, 10, 286, 44,
    ]  # fmt: skip


def test_group_split_keeps_parts_together_in_every_split(full: Path, tmp_path: Path) -> None:
    manifest = prepare("sdd", full, tmp_path / "out", group_split=True)
    assert manifest.counts["train/good"] + manifest.counts["test/good"] == 1143
    assert 286 <= manifest.counts["test/good"] < 289
    sides = [{record.unit for record in manifest.files if record.split == split} for split in ("train", "test")]
    assert not sides[0] & sides[1]
    assert all(record.group == record.unit for record in manifest.files)
    data = open_dataset(str(tmp_path / "out"))
    units = {record.path: record.unit for record in manifest.files}
    for selection in ("test", "auto"):
        split = make_split(data, "general", 10, None, 42, selection)
        read = {units[file.path] for file in (*split.train, *split.calibration)}
        assert not read & {units[file.path] for file in split.test}
        # a part with a defect never trains as normal, so only the parts of the anomalies trained on leave the test
        assert split.summary()["test_anomalies"] > 25 and split.summary()["test_normals"] > 200


def test_a_part_without_its_label(makers: dict[str, Callable[..., Path]], tmp_path: Path) -> None:
    raw = makers["sdd"](tmp_path / "raw")
    (raw / "kos02" / "Part3_label.bmp").unlink()
    with pytest.raises(DataError, match=r"missing masks: 1, first kos02/Part3_label\.bmp"):
        prepare("sdd", raw, tmp_path / "out")
    manifest = prepare("sdd", raw, tmp_path / "out", allow_counts=True)
    assert len(manifest.files) == 71 - 2
    assert manifest.differences[0].startswith("missing masks: 1")


def test_names_in_any_case_and_other_files(makers: dict[str, Callable[..., Path]], tmp_path: Path) -> None:
    raw = makers["sdd"](tmp_path / "raw")
    plain = prepare("sdd", raw, tmp_path / "plain", allow_counts=True)
    (raw / "kos01" / "Part0.jpg").rename(raw / "kos01" / "Part0.JPG")
    (raw / "kos01" / "Part0_label.bmp").rename(raw / "kos01" / "Part0_label.BMP")
    (raw / "kos01" / "._Part0.jpg").write_bytes(b"resource fork")
    (raw / "kos01" / "Thumbs.db").write_bytes(b"thumbs")
    (raw / "kos02").rename(raw / "inner")
    (raw / "kos02").mkdir()
    (raw / "inner").rename(raw / "kos02" / "kos02")
    again = prepare("sdd", raw, tmp_path / "again", allow_counts=True)
    assert {r.path: r.sha256 for r in again.files} == {r.path: r.sha256 for r in plain.files}


def test_a_label_of_another_height(makers: dict[str, Callable[..., Path]], tmp_path: Path) -> None:
    raw = makers["sdd"](tmp_path / "raw")
    Image.fromarray(np.zeros((30, 20), np.uint8)).save(raw / "kos03" / "Part2_label.bmp")
    with pytest.raises(DataError, match=r"Part2_label\.bmp is 30 pixels high, its image 33"):
        prepare("sdd", raw, tmp_path / "out", allow_counts=True)


def test_a_label_of_another_width(makers: dict[str, Callable[..., Path]], tmp_path: Path) -> None:
    raw = makers["sdd"](tmp_path / "raw", folders=1, parts=3)
    for width in (19, 21):
        Image.fromarray(np.zeros((33, width), np.uint8)).save(raw / "kos01" / "Part2_label.bmp")
        with pytest.raises(
            DataError, match=rf"Part2_label\.bmp is {width} pixels wide, its image 20 \(.*/Part2\.jpg\)"
        ):
            prepare("sdd", raw, tmp_path / "out", allow_counts=True)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_no_part_with_a_defect_trains_where_those_hold_most_normals(
    makers: dict[str, Callable[..., Path]], tmp_path: Path
) -> None:
    # three of four parts have a defect: they hold 5 of 8 normal thirds, a quarter are 2
    raw = makers["sdd"](tmp_path / "raw", folders=2, parts=2)
    manifest = prepare("sdd", raw, tmp_path / "out", allow_counts=True, group_split=True)
    assert {record.unit for record in manifest.files if record.split == "train"} == {"kos02_Part1"}
    assert manifest.counts == {"test/defect": 4, "test/good": 5, "train/good": 3}
    assert any("parts with a defect hold 5 normal images, more than a quarter (2)" in line for line in manifest.notes)
    raw = makers["sdd"](tmp_path / "all", folders=2, parts=1)
    with pytest.raises(DataError, match=r"every part has a defect or is held out.*leave --group-split out"):
        prepare("sdd", raw, tmp_path / "none", allow_counts=True, group_split=True)
