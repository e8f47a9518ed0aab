"""What is found in folders, and how what is left out is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sctune.data.catalog import open_dataset
from sctune.data.decode import Decoding, decode_image
from sctune.data.walk import images_below
from sctune.errors import DataError
from sctune.serve.inputs import list_inputs


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def left_out(root: Path) -> tuple[list[str], str]:
    found, left = images_below(root)
    return found, left.line("here") or ""


def test_what_is_no_image_is_counted_by_kind(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.WEBP", "c.jfif", "d.gif", "e.GIF", "f.heic", "notes.txt", "g.json", "LICENSE")
    touch(tmp_path, ".hidden.png", "._a.png", "Thumbs.db", ".git/config", "@eaDir/a.png/SYNOFILE_THUMB_M.png")
    touch(tmp_path, "sub/__MACOSX/x.png", "sub/lost+found/y.png", "sub/#recycle/z.png", "sub/.@__thumb/t.png")
    found, line = left_out(tmp_path)
    assert found == ["a.png", "b.WEBP", "c.jfif"]
    for part in (
        "2 .gif,",
        "1 .heic,",
        "4 hidden or system file(s) and folder(s) (",
        "5 thumbnail or system folder(s) (@eaDir)",
        "3 other file(s) (LICENSE)",
        "webp",
    ):
        assert part in line, part


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "set/real/1.png", "elsewhere/2.png", "elsewhere/deep/3.png")
    (tmp_path / "set" / "a-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "elsewhere" / "deep")
    (tmp_path / "set" / "other").symlink_to("real")
    (tmp_path / "set" / "gone").symlink_to(tmp_path / "nowhere")
    found, line = left_out(tmp_path / "set")
    assert found == ["a-link/2.png", "a-link/deep/3.png", "real/1.png"]
    assert "2 linked folder(s) that lead back, or to what is listed already (again)" in line
    assert "1 link(s) that lead nowhere (gone)" in line


@pytest.mark.parametrize("target", [".", "..", "../..", "real", "loop"])
def test_links_in_a_circle_end(tmp_path: Path, target: str) -> None:
    touch(tmp_path, "up/set/real/1.png", "up/other.png", "far/2.png")
    (tmp_path / "up" / "set" / "loop").symlink_to(target)
    (tmp_path / "up" / "set" / "far").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(tmp_path)
    found, line = left_out(tmp_path / "up" / "set")
    assert found == ["far/2.png", "real/1.png"], "nothing of what holds the folder"
    assert "lead" in line


def test_no_class_comes_from_a_thumbnail_folder(tmp_path: Path) -> None:
    touch(tmp_path, "train/good/1.png", "test/good/2.png", "test/crack/3.png", "test/@eaDir/3.png/SYNOFILE_THUMB_M.png")
    touch(
        tmp_path, "test/crack/@eaDir/3.png/SYNOFILE_THUMB_M.png", "test/.thumbnails/4.png", "test/loose.png", "top.png"
    )
    data = open_dataset(str(tmp_path))
    assert [file.path for file in data.files] == ["test/crack/3.png", "test/good/2.png", "train/good/1.png"]
    (note,) = data.notes
    assert "3 thumbnail or system folder(s) (test/.thumbnails)" in note
    assert "2 image(s) outside of a class folder (test/loose.png)" in note


def test_a_folder_that_holds_other_types_only_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "ok/1.gif", "ok/2.gif", "nok/3.png")
    with pytest.raises(DataError, match=r"holds no images; it: left out 2 \.gif; png, jpg"):
        open_dataset(str(tmp_path))


def test_one_file_by_links_in_two_classes_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "ok/1.png", "nok/crack/2.png", "nok/dent/3.png")
    (tmp_path / "nok" / "dent" / "4.png").symlink_to(tmp_path / "ok" / "1.png")
    with pytest.raises(DataError, match=r"ok/1\.png and nok/dent/4\.png are one file, by a link"):
        open_dataset(str(tmp_path))


def test_inputs_of_predict_share_the_walk(tmp_path: Path) -> None:
    touch(tmp_path, "in/1.png", "in/@eaDir/1.png/SYNOFILE_THUMB_M.png", "in/x.svg", "more/2.webp")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "more")
    (tmp_path / "in" / "loop").symlink_to(tmp_path)
    told: list[str] = []
    place = str(tmp_path / "in")
    assert list_inputs([place], told.append) == [f"{place}/1.png", f"{place}/linked/2.webp"]
    (line,) = told
    assert line.startswith(f"{place}: left out 1 .svg, 1 linked folder(s)") and "(loop)" in line
    (tmp_path / "only").mkdir()
    touch(tmp_path, "only/x.svg")
    with pytest.raises(DataError, match=r"left out 1 \.svg"):
        list_inputs([str(tmp_path / "only")])


def test_webp_and_jfif_are_decoded(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True)
    Image.fromarray(pixels).save(tmp_path / "a.jfif", "JPEG", quality=95)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    assert images_below(tmp_path)[0] == ["a.jfif", "a.jpg", "a.webp"]
    assert np.array_equal(decode_image(tmp_path / "a.webp", Decoding(16)), pixels)
    assert np.array_equal(
        decode_image(tmp_path / "a.jfif", Decoding(16)), decode_image(tmp_path / "a.jpg", Decoding(16))
    )
