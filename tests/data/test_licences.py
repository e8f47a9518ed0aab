"""Licence and attribution of folders that sctune has not prepared: written down, by name, by a licence's text."""

from __future__ import annotations

from pathlib import Path

import pytest

from sctune.data.catalog import NOT_STATED, open_dataset
from sctune.data.licences import FILE, KNOWN, licence_in
from sctune.errors import DataError

TITLE = "Attribution-NonCommercial-ShareAlike 4.0 International\n\n=====\n\nCreative Commons is not a law firm"


def folder_of(place: Path) -> Path:
    for name in ("train/good/0.png", "train/good/1.png", "test/cut/0.png"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        # no image is read to list them
        (place / name).touch()
    return place


def test_images_of_ones_own_state_nothing(tmp_path: Path) -> None:
    data = open_dataset(str(folder_of(tmp_path / "parts")))
    assert (data.licence, data.attribution, data.notes) == (NOT_STATED, None, ())


@pytest.mark.parametrize("above", [False, True])
def test_what_is_written_down_goes_before_all_else(tmp_path: Path, above: bool) -> None:
    folder = folder_of(tmp_path / "mvtec" / "bottle")
    place = folder.parent if above else folder
    (folder / "LICENSE").write_text(TITLE)
    (place / FILE).write_text("licence: our own\nattribution: |\n  photographs by\n  the works\n")
    data = open_dataset(str(tmp_path / "mvtec"), "bottle")
    assert (data.licence, data.attribution, data.notes) == ("our own", "photographs by the works", ())


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("mvtec/bottle", "mvtec"),
        ("mvtec_anomaly_detection/own", "mvtec"),
        ("sdd/commutator", "sdd"),
        ("KolektorSDD", "sdd"),
        ("AITEX", "aitex"),
        ("DAGM2007/Class1", "optical"),
    ],
)
def test_known_data_sets_are_told_by_their_folders(tmp_path: Path, place: str, name: str) -> None:
    data = open_dataset(str(folder_of(tmp_path / place)))
    assert (data.licence, data.attribution) == (KNOWN[name].licence, KNOWN[name].attribution)
    (note,) = data.notes
    assert f"taken for {name}" in note and FILE in note


def test_a_name_that_says_little_is_not_taken_for_a_data_set(tmp_path: Path) -> None:
    assert open_dataset(str(folder_of(tmp_path / "optical"))).licence == NOT_STATED
    assert open_dataset(str(folder_of(tmp_path / "mvtec" / "a" / "b"))).licence == NOT_STATED


def test_the_text_of_a_licence_is_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "all" / "parts")
    (folder.parent / "license.txt").write_text(TITLE)
    data = open_dataset(str(folder))
    assert (data.licence, data.attribution) == ("CC BY-NC-SA 4.0", None)
    assert "license.txt is CC BY-NC-SA 4.0" in data.notes[-1] and FILE in data.notes[-1]


def test_a_text_that_nobody_knows_is_unclear_beside_images_alone(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "all" / "parts")
    # as of the program that the images lie in
    (folder.parent / "LICENSE").write_text("MIT License")
    assert open_dataset(str(folder)).licence == NOT_STATED
    (folder / "LICENCE.md").write_text("Ask us first.")
    data = open_dataset(str(folder))
    assert data.licence == "unclear (see LICENCE.md)" and "no licence that sctune knows" in data.notes[-1]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (TITLE, "CC BY-NC-SA 4.0"),
        ("Creative Commons Attribution 3.0 Unported", "CC BY 3.0"),
        ("Attribution-NonCommercial-NoDerivs 3.0", "CC BY-NC-ND 3.0"),
        ("released under\nCC-BY-SA-4.0", "CC BY-SA 4.0"),
        ("see https://creativecommons.org/licenses/by-nc/4.0/", "CC BY-NC 4.0"),
        ("CC0 1.0 Universal", "CC0 1.0"),
        ("Attribution is asked for", None),
        ("MIT License", None),
    ],
)
def test_licences_of_creative_commons(text: str, found: str | None) -> None:
    assert licence_in(text) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("license: CC0\n", "unknown key 'license'; did you mean 'licence'"),
        ("licence: [a]\n", r"licence holds \['a'\]; give a text of one line"),
        ("attribution: ''\n", "attribution holds ''; give a text"),
        ("just words\n", "must hold keys and values"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    folder = folder_of(tmp_path / "parts")
    (folder / FILE).write_text(text)
    with pytest.raises(DataError, match=message):
        open_dataset(str(folder))


def test_a_table_of_files_has_the_licence_beside_it(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "parts")
    rows = ["path,label", "train/good/0.png,0", "train/good/1.png,0", "test/cut/0.png,1"]
    (folder / "files.csv").write_text("\n".join(rows) + "\n")
    (folder / FILE).write_text("licence: CC BY 4.0\n")
    assert open_dataset(str(folder / "files.csv")).licence == "CC BY 4.0"
    assert open_dataset(f"normal={folder / 'train'};anomalous={folder / 'test' / 'cut'}").licence == "CC BY 4.0"
