"""AITEX: tiles of strips, masks in two files or none, a narrow strip, white margins, strips that no split cuts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import train_test_split

from sctune.data.catalog import open_dataset
from sctune.data.convert import Manifest, prepare
from sctune.errors import DataError

Maker = Callable[..., Path]


@pytest.fixture(scope="module")
def made(raw_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    out = tmp_path_factory.mktemp("aitex") / "out"
    return out, prepare("aitex", raw_folders["aitex"], out, allow_counts=True)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def names(manifest: Manifest, kind: str) -> list[str]:
    return sorted(Path(record.path).stem for record in manifest.files if record.kind == kind)


def note(manifest: Manifest, text: str) -> str:
    (found,) = (line for line in manifest.notes if text in line)
    return found


def test_normal_tiles_come_from_the_clean_strips_only(
    made: tuple[Path, Manifest], raw_folders: dict[str, Path]
) -> None:
    out, manifest = made
    normal = {Path(record.path).stem: record for record in manifest.files if record.kind == "good"}
    assert len(normal) == 4 * 16
    assert {record.source.split("/")[0] for record in normal.values()} == {"NODefect_images"}
    strip = pixels(raw_folders["aitex"] / "NODefect_images" / "2306881-210020u" / "0002_000_05.png")
    assert strip.shape == (256, 4096)
    for number in (0, 7, 15):
        record = normal[f"2306881-210020u_0002_000_05_{number:02d}"]
        np.testing.assert_array_equal(pixels(out / record.path), strip[:, number * 256 : number * 256 + 256])
    train, test = train_test_split(sorted(f"{name}.png" for name in normal), test_size=0.25, random_state=42)
    for split, listed in (("train", train), ("test", test)):
        assert {f"{name}.png" for name, record in normal.items() if record.split == split} == set(listed)


def test_a_tile_of_a_defective_strip_is_kept_where_its_mask_is_not_zero(made: tuple[Path, Manifest]) -> None:
    out, manifest = made
    # columns 250 to 259 lie in two tiles
    assert names(manifest, "Broken_end") == ["0001_002_00_00", "0001_002_00_01"]
    masks = [pixels(out / "ground_truth" / "Broken_end" / f"0001_002_00_0{number}_mask.png") for number in (0, 1)]
    assert [mask.shape for mask in masks] == [(256, 256), (256, 256)]
    assert [int((mask == 255).sum()) for mask in masks] == [3 * 6, 3 * 4]
    # 16 tiles of three strips and 14 of the narrow one, of which six are kept
    assert note(manifest, "clean tiles").endswith("left out: 56")


def test_two_masks_are_joined(made: tuple[Path, Manifest]) -> None:
    out, manifest = made
    # one mask in tile 0, the other in tile 4
    assert names(manifest, "Fuzzyball") == ["0044_019_04_00", "0044_019_04_04"]
    # both in tile 1
    assert names(manifest, "Nep") == ["0097_030_03_01"]
    mask = pixels(out / "ground_truth" / "Nep" / "0097_030_03_01_mask.png")
    assert int((mask == 255).sum()) == 1 + 3 * 10
    assert note(manifest, "0044_019_04") == "0044_019_04: 2 masks are joined"


def test_the_strip_without_a_usable_mask_is_left_out(
    made: tuple[Path, Manifest], makers: dict[str, Maker], tmp_path: Path
) -> None:
    _, manifest = made
    assert not any("0100_025_08" in record.path for record in manifest.files)
    assert "no usable mask" in note(manifest, "0100_025_08")
    raw = makers["aitex"](tmp_path / "raw")
    Image.fromarray(np.zeros((256, 4096), np.uint8)).save(raw / "Mask_images" / "0100_025_08_mask.png")
    again = prepare("aitex", raw, tmp_path / "out", allow_counts=True)
    assert again.files == manifest.files


def test_the_last_tile_of_the_narrow_strip_is_mirrored(
    made: tuple[Path, Manifest], raw_folders: dict[str, Path]
) -> None:
    out, manifest = made
    assert names(manifest, "Knots") == ["0094_027_05_13"]
    strip = pixels(raw_folders["aitex"] / "Defect_images" / "0094_027_05.png")
    assert strip.shape == (256, 3500)
    tile = pixels(out / "test" / "Knots" / "0094_027_05_13.png")
    assert tile.shape == (256, 256)
    np.testing.assert_array_equal(tile[:, :172], strip[:, 3328:])
    np.testing.assert_array_equal(tile[:, 172:], strip[:, 3499 : 3499 - 84 : -1])
    mask = pixels(out / "ground_truth" / "Knots" / "0094_027_05_13_mask.png")
    assert sorted(set(np.flatnonzero(mask.any(axis=0)))) == list(range(162, 171)) + list(range(173, 182))
    assert "3500 pixels wide instead of 4096, the last tile is filled up by mirroring" in note(manifest, "0094_027_05")


def test_a_rest_of_less_than_half_a_tile_is_cut(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["aitex"](tmp_path / "raw")
    mask = np.zeros((256, 3328 + 127), np.uint8)
    mask[5, 3400] = 255
    Image.fromarray(mask).save(raw / "Mask_images" / "0094_027_05_mask.png")
    strip = Image.open(raw / "Defect_images" / "0094_027_05.png")
    strip.crop((0, 0, 3328 + 127, 256)).save(raw / "Defect_images" / "0094_027_05.png")
    manifest = prepare("aitex", raw, tmp_path / "out", allow_counts=True)
    assert names(manifest, "Knots") == []
    assert "3455 pixels wide instead of 4096, the rest is cut" in note(manifest, "3455")
    assert note(manifest, "gives no tile") == "0094_027_05 gives no tile: its mask marks nothing in one"


def test_white_margins_are_reported_and_kept(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["aitex"](tmp_path / "raw")
    path = raw / "NODefect_images" / "2306881-210020u" / "0001_000_05.png"
    strip = pixels(path).copy()
    strip[:, -300:] = 255
    strip[:, 1000:1010] = 255
    Image.fromarray(strip).save(path)
    manifest = prepare("aitex", raw, tmp_path / "out", allow_counts=True)
    text = "white margins are kept in 2306881-210020u_0001_000_05 (0 columns left, 300 right)"
    assert note(manifest, "white margins") == text
    assert len(names(manifest, "good")) == 64


def test_codes_of_all_types(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["aitex"](tmp_path / "raw", strips=1)
    types = {
        "002": "Broken_end", "006": "Broken_yarn", "010": "Broken_pick", "016": "Weft_curling", "019": "Fuzzyball",
        "022": "Cut_selvage", "023": "Crease", "025": "Warp_ball", "027": "Knots", "029": "Contamination",
        "030": "Nep", "036": "Weft_crack",
    }  # fmt: skip
    mask = np.zeros((256, 4096), np.uint8)
    mask[3, 600] = 1
    for code in types:
        Image.fromarray(np.full((256, 4096), 90, np.uint8)).save(raw / "Defect_images" / f"0500_{code}_01.png")
        Image.fromarray(mask).save(raw / "Mask_images" / f"0500_{code}_01_mask.png")
    manifest = prepare("aitex", raw, tmp_path / "out", allow_counts=True)
    made = {Path(record.path).name: record.kind for record in manifest.files if "0500_" in record.path}
    assert made == {f"0500_{code}_01_02.png": kind for code, kind in types.items()}


def test_a_missing_mask_is_named(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["aitex"](tmp_path / "raw")
    (raw / "Mask_images" / "0001_002_00_mask.png").unlink()
    with pytest.raises(DataError, match=r"missing masks: 1, first Mask_images/0001_002_00_mask\.png"):
        prepare("aitex", raw, tmp_path / "out")
    manifest = prepare("aitex", raw, tmp_path / "out", allow_counts=True)
    assert names(manifest, "Broken_end") == []


def test_140_and_141_strips_are_reported(made: tuple[Path, Manifest]) -> None:
    _, manifest = made
    assert note(manifest, "clean strips") == (
        "4 clean strips (140 in the paper's text, 141 in a recount; both are accepted)"
    )


@pytest.mark.parametrize("strips", [140, 141])
@pytest.mark.slow
def test_full_archives(makers: dict[str, Maker], tmp_path: Path, strips: int) -> None:
    raw = makers["aitex"](tmp_path / "raw", strips=70)
    if strips == 141:
        clean = raw / "NODefect_images" / "2306881-210020u"
        (clean / "0141_000_05.png").write_bytes((clean / "0001_000_05.png").read_bytes())
    (raw / "Defect_images" / "0100_025_08.png").unlink()
    # 6 tiles are there; 11 strips with masks over all tiles and one with a mask over one tile bring 177 more
    full, part = np.full((256, 4096), 255, np.uint8), np.zeros((256, 4096), np.uint8)
    part[0, 0] = 1
    codes = ["006", "010", "016", "022", "023", "025", "029", "036"]
    blank = np.full((256, 4096), 90, np.uint8)
    for index, code in enumerate([*codes, "006", "010", "016"]):
        Image.fromarray(blank).save(raw / "Defect_images" / f"{200 + index:04d}_{code}_00.png")
        Image.fromarray(full).save(raw / "Mask_images" / f"{200 + index:04d}_{code}_00_mask.png")
    Image.fromarray(blank).save(raw / "Defect_images" / "0300_036_00.png")
    Image.fromarray(part).save(raw / "Mask_images" / "0300_036_00_mask.png")
    manifest = prepare("aitex", raw, tmp_path / "out")
    held = -(-strips * 16 // 4)
    assert manifest.counts["train/good"] == strips * 16 - held and manifest.counts["test/good"] == held
    assert sum(number for place, number in manifest.counts.items() if "good" not in place) == 183
    assert note(manifest, "clean strips").startswith(f"{strips} clean strips")


def test_group_split_keeps_strips_together(raw_folders: dict[str, Path], tmp_path: Path) -> None:
    manifest = prepare("aitex", raw_folders["aitex"], tmp_path / "out", allow_counts=True, group_split=True)
    by_unit: dict[str | None, set[str]] = {}
    for record in manifest.files:
        by_unit.setdefault(record.unit, set()).add(record.split)
    assert all(len(splits) == 1 for splits in by_unit.values())
    assert manifest.counts["test/good"] == 16
    data = open_dataset(str(tmp_path / "out"))
    assert {file.group for file in data.normals} == {
        "2306881-210020u_0001_000_05",
        "2306881-210020u_0002_000_05",
        "2311694-2040n7u_0003_000_00",
        "2311694-2040n7u_0004_000_00",
    }
    unit = re.compile(str(manifest.group))
    assert all((match := unit.search(record.path)) and match[1] == record.unit for record in manifest.files)


def test_folders_nested_inside(makers: dict[str, Maker], made: tuple[Path, Manifest], tmp_path: Path) -> None:
    raw = makers["aitex"](tmp_path / "raw")
    for name in ("Defect_images", "NODefect_images", "Mask_images"):
        (raw / name).rename(tmp_path / "inner")
        (raw / name).mkdir()
        (tmp_path / "inner").rename(raw / name / name)
    again = prepare("aitex", raw, tmp_path / "out", allow_counts=True)
    assert {r.path: r.sha256 for r in again.files} == {r.path: r.sha256 for r in made[1].files}


def test_strips_of_another_kind(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["aitex"](tmp_path / "raw")
    odd = raw / "Defect_images" / "0002_099_00.png"
    Image.fromarray(np.zeros((256, 4096), np.uint8)).save(odd)
    Image.fromarray(np.zeros((256, 4096), np.uint8)).save(raw / "Mask_images" / "0002_099_00_mask.png")
    with pytest.raises(DataError, match="unknown defect code 099; AITEX has 002, "):
        prepare("aitex", raw, tmp_path / "out", allow_counts=True)
    Image.fromarray(np.zeros((255, 4096), np.uint8)).save(odd.rename(raw / "Defect_images" / "0002_002_00.png"))
    with pytest.raises(DataError, match="4096 x 255 pixels; strips of AITEX are 256 high"):
        (raw / "Mask_images" / "0002_099_00_mask.png").rename(raw / "Mask_images" / "0002_002_00_mask.png")
        prepare("aitex", raw, tmp_path / "out", allow_counts=True)
    assert not list(tmp_path.glob("out*"))
    (raw / "Mask_images").rename(tmp_path / "gone")
    with pytest.raises(DataError, match="has no folder Mask_images"):
        prepare("aitex", raw, tmp_path / "out", allow_counts=True)


def test_half_of_a_double_mask_is_a_missing_mask(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["aitex"](tmp_path / "raw")
    (raw / "Mask_images" / "0044_019_04_mask1.png").unlink()
    (raw / "Mask_images" / "0097_030_03_mask2.png").unlink()
    with pytest.raises(DataError, match=r"missing masks: 2, first Mask_images/0044_019_04_mask1\.png"):
        prepare("aitex", raw, tmp_path / "out")
    manifest = prepare("aitex", raw, tmp_path / "out", allow_counts=True)
    assert manifest.differences[0] == "missing masks: 2, first Mask_images/0044_019_04_mask1.png"
    assert names(manifest, "Fuzzyball") == names(manifest, "Nep") == []


def test_a_mask_of_another_width(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["aitex"](tmp_path / "raw", strips=1)
    wide = np.zeros((256, 4096), np.uint8)
    wide[9:12, 3490:3600] = 255
    # of the narrow strip: drawn on the full width
    Image.fromarray(wide).save(raw / "Mask_images" / "0094_027_05_mask.png")
    manifest = prepare("aitex", raw, tmp_path / "out", allow_counts=True)
    assert names(manifest, "Knots") == ["0094_027_05_13"]
    text = "0094_027_05: Mask_images/0094_027_05_mask.png is 4096 pixels wide, the strip 3500; the mask is cut"
    assert note(manifest, "_mask.png is") == text
    Image.fromarray(wide[:, :2048]).save(raw / "Mask_images" / "0001_002_00_mask.png")
    with pytest.raises(
        DataError, match=r"0001_002_00_mask\.png is 2048 pixels wide, its image 4096 \(.*Defect_images/0"
    ):
        prepare("aitex", raw, tmp_path / "again", allow_counts=True)
