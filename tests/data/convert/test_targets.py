"""What is refused before anything is written: images that would be one file, places and names that cannot be used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sctune.data.catalog import open_dataset, open_folders
from sctune.data.convert import prepare, verify
from sctune.data.layouts import list_images
from sctune.errors import DataError

Maker = Callable[..., Path]
LONG = "n" * 300


def refused(name: str, raw: Path, out: Path) -> str:
    """What is said; checks that it is one line that can be printed, and that nothing was written."""
    with pytest.raises(DataError) as caught:
        prepare(name, raw, out, allow_counts=True)
    text = str(caught.value)
    assert text.isprintable(), ascii(text)
    assert not list(out.parent.glob("out*"))
    return text


@pytest.mark.parametrize("probability", ["0.0", "1.0"])
def test_elpv_lines_that_name_an_image_again(probability: str, makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["elpv"](tmp_path / "raw", cells=20)
    with (raw / "labels.csv").open("a") as table:
        table.write(f"images/cell0005.png  {probability}    mono\n")
    text = refused("elpv", raw, tmp_path / "out")
    assert text.startswith(f"{raw / 'images' / 'cell0005.png'} is listed twice, for t")
    assert (" and test/mono/cell0005.png" in text) is (probability == "1.0")


def test_optical_rows_that_name_an_image_again(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["optical"](tmp_path / "raw", classes=(1,))
    table = raw / "Class1" / "Train" / "Label" / "Labels.txt"
    table.write_text(table.read_text() + "576\t0\t0576.PNG\t0\t0\n")
    assert f"{raw / 'Class1' / 'Train' / '0576.PNG'} is listed twice, for tr" in refused(
        "optical", raw, tmp_path / "out"
    )


def test_two_raw_files_that_would_make_one(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["sdd"](tmp_path / "sdd", folders=1, parts=3)
    shutil.copyfile(raw / "kos01" / "Part2.jpg", raw / "kos01" / "Part2.png")
    text = refused("sdd", raw, tmp_path / "out")
    assert f"{raw}: kos01/Part2.jpg and kos01/Part2.png would both make t" in text and "remove or rename" in text
    raw = makers["mastcam"](tmp_path / "mastcam")
    shutil.copyfile(raw / "test_typical" / "test_typical_1.npy", raw / "test_typical" / "test_typical_1.NPY")
    assert "would both make test/good/test_typical_1.png" in refused("mastcam", raw, tmp_path / "out")


def test_two_images_that_would_share_a_mask(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["mvtec"](tmp_path / "raw", categories=("carpet",))
    shutil.copyfile(raw / "carpet" / "test" / "hole" / "001.png", raw / "carpet" / "test" / "hole" / "001.bmp")
    text = refused("mvtec", raw, tmp_path / "out")
    assert "hole/001.bmp and carpet/test/hole/001.png would both make carpet/ground_truth/hole/001_mask.png" in text


def test_out_inside_the_source(makers: dict[str, Maker], tmp_path: Path) -> None:
    makers["elpv"](tmp_path / "X" / "X", cells=8)
    place = tmp_path / "X"
    (tmp_path / "link").symlink_to(place)
    (tmp_path / "side").mkdir()
    for raw, out in (
        (place, place / "out"),
        (place, place / "X" / "out"),
        (place, tmp_path / "link" / "out"),
        (place, tmp_path / "side" / ".." / "X" / "out"),
        (tmp_path / "link", place / "out"),
        (tmp_path / "link" / "X", place / "X" / "out"),
    ):
        assert "lies inside the raw folder" in refused("elpv", raw, out)
    prepare("elpv", place / "X", place / "out", allow_counts=True)
    assert verify(place / "out").ok


@pytest.mark.parametrize("name", ["7\udcff.png", "7\n8.png", "7\x1b[2J.png", "7\u2028.png"])
def test_names_that_no_manifest_can_hold(name: str, makers: dict[str, Maker], tmp_path: Path) -> None:
    mvtec = makers["mvtec"](tmp_path / "mvtec", categories=("carpet",))
    shutil.copyfile(mvtec / "carpet" / "test" / "hole" / "001.png", mvtec / "carpet" / "train" / "good" / name)
    assert "must be UTF-8 without control characters; rename it" in refused("mvtec", mvtec, tmp_path / "out")
    aitex = makers["aitex"](tmp_path / "aitex", strips=1)
    shutil.copyfile(mvtec / "carpet" / "test" / "hole" / "001.png", aitex / "NODefect_images" / name)
    assert "must be UTF-8 without control characters; rename it" in refused("aitex", aitex, tmp_path / "out")


def test_places_that_no_manifest_can_hold(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["elpv"](tmp_path / "raw", cells=8)
    for odd in ("a\nb", "\udce4"):
        assert "rename it" in refused("elpv", raw, tmp_path / odd / "out")
        assert "rename it" in refused("elpv", tmp_path / odd, tmp_path / "out")
    (tmp_path / "holds").mkdir()
    raw.rename(tmp_path / "holds" / "a\nb")
    assert "rename it" in refused("elpv", tmp_path / "holds", tmp_path / "out")


def test_umlauts_and_spaces_are_kept(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["mvtec"](tmp_path / "R\u00f6hre 1", categories=("carpet",))
    (raw / "carpet" / "train" / "good" / "000.png").rename(
        raw / "carpet" / "train" / "good" / "Gr\u00fcn\u00a0\u3000 1.png"
    )
    prepare("mvtec", raw, tmp_path / "out \u00fc", allow_counts=True)
    assert verify(tmp_path / "out \u00fc").ok


def test_places_that_the_system_refuses(tmp_path: Path) -> None:
    place = tmp_path / LONG
    for use in (
        lambda: prepare("sdd", place, tmp_path / "out"),
        lambda: prepare("sdd", tmp_path, place),
        lambda: verify(place),
        lambda: open_dataset(str(place)),
        lambda: open_dataset(str(place / "a.csv")),
        lambda: open_dataset(f"normal={place};anomalous={tmp_path}/b"),
        lambda: open_folders(str(place), str(tmp_path / "b")),
        lambda: list_images(place),
    ):
        with pytest.raises(DataError) as caught:
            use()
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"^cannot read .*/n+.*: File name too long; give a place that can be read$"):
        open_dataset(str(place))


def test_names_that_become_too_long(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["aitex"](tmp_path / "raw", strips=1)
    # the name of a tile joins that of the fabric and that of the strip
    (raw / "NODefect_images" / "2311694-2040n7u").rename(raw / "NODefect_images" / ("n" * 245))
    with pytest.raises(DataError, match=r"^cannot write .*: File name too long; when that is solved, run the same"):
        prepare("aitex", raw, tmp_path / "out", allow_counts=True)
