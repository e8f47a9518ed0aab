"""verify finds what was lost, added or changed; open_dataset takes name, licence and units from the manifest."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sctune.data.catalog import open_dataset
from sctune.data.convert import prepare, read_manifest, verify
from sctune.errors import DataError


def found(folder: Path) -> dict[str, tuple[str, ...]]:
    return {problem.kind: problem.names for problem in verify(folder).problems}


def edit(folder: Path, **changes: Any) -> None:
    """Change top-level fields of manifest.json."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_sound_folder(prepared_sdd: Path) -> None:
    (prepared_sdd / ".DS_Store").write_bytes(b"x")
    seen = []
    report = verify(prepared_sdd, lambda done, total: seen.append((done, total)))
    assert report.ok and report.problems == ()
    assert report.checked == 72 + 5 and seen[-1] == (77, 77)
    assert read_manifest(prepared_sdd).files == report.manifest.files


def test_every_kind_of_problem_is_told_with_its_files(prepared_sdd: Path) -> None:
    lost = sorted((prepared_sdd / "train" / "good").iterdir())[:2]
    changed = sorted((prepared_sdd / "test" / "good").iterdir())[0]
    mask = sorted((prepared_sdd / "ground_truth" / "defect").iterdir())[0]
    for path in (*lost, mask):
        path.unlink()
    content = bytearray(changed.read_bytes())
    content[-5] ^= 1
    changed.write_bytes(bytes(content))
    shutil.copyfile(changed, prepared_sdd / "test" / "defect" / "new.png")
    assert found(prepared_sdd) == {
        "missing": tuple(f"train/good/{path.name}" for path in lost),
        "missing masks": (f"ground_truth/defect/{mask.name}",),
        "changed": (f"test/good/{changed.name}",),
        "extra": ("test/defect/new.png",),
        "counts": ("test/defect 6 instead of 5", "train/good 48 instead of 50"),
    }
    lines = [problem.line for problem in verify(prepared_sdd).problems]
    assert lines[0] == f"missing images (2): train/good/{lost[0].name}, train/good/{lost[1].name}"
    assert lines[2] == f"files with another content than when they were made (1): test/good/{changed.name}"


def test_long_lists_are_cut(prepared_sdd: Path) -> None:
    shutil.rmtree(prepared_sdd / "train")
    first = verify(prepared_sdd).problems[0]
    assert len(first.names) == 50 and first.line.endswith(" and 45 more")


def test_a_manifest_that_names_other_numbers(prepared_sdd: Path) -> None:
    edit(prepared_sdd, counts={"train/good": 51, "test/good": 17, "test/defect": 5})
    assert found(prepared_sdd) == {"counts": ("train/good 50 instead of 51",)}


def test_folders_that_cannot_be_verified(prepared_sdd: Path, image_folder: Path, tmp_path: Path) -> None:
    for place in (image_folder, prepared_sdd / "train", tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"has no manifest\.json of `sctune data prepare`"):
            verify(place)
    good = (prepared_sdd / "manifest.json").read_text()
    cases = {
        good[:-40]: "is damaged",
        good.replace('"split"', '"spilt"'): r"is damaged: files\.0\.spilt|is damaged: files\.0\.split",
        good.replace('"path": "test/', '"path": "../test/'): "a path that leaves the folder",
        good.replace('"format_version": 1', '"format_version": 2'): "has format version 2; this sctune reads 1",
    }
    for text, says in cases.items():
        (prepared_sdd / "manifest.json").write_text(text)
        for use in (verify, lambda place: open_dataset(str(place))):
            with pytest.raises(DataError, match=says):
                use(prepared_sdd)


def test_open_dataset_believes_the_manifest(prepared_sdd: Path) -> None:
    data = open_dataset(str(prepared_sdd))
    assert data.name == "sdd" and data.licence == "CC BY-NC-SA 4.0"
    assert all(file.group == file.path for file in data.files)
    moved = prepared_sdd.rename(prepared_sdd.with_name("elsewhere"))
    assert open_dataset(str(moved)).files == data.files
    manifest = json.loads((moved / "manifest.json").read_text())
    for record in manifest["files"]:
        record["group"] = record["unit"]
    edit(moved, files=manifest["files"], licence="mine", data_set="parts")
    data = open_dataset(str(moved))
    assert len({file.group for file in data.files}) == 24 and (data.name, data.licence) == ("parts", "mine")
    by_folder = open_dataset(str(moved), group=r"(kos\d+)_")
    assert {file.group for file in by_folder.files} == {"kos01", "kos02", "kos03"}


def test_open_dataset_refuses_a_folder_that_has_changed(prepared_sdd: Path) -> None:
    shutil.copyfile(next((prepared_sdd / "test" / "good").iterdir()), prepared_sdd / "test" / "good" / "mine.png")
    with pytest.raises(
        DataError, match=r"1 images are missing or new since it was prepared, first test/good/mine\.png"
    ):
        open_dataset(str(prepared_sdd))
    (prepared_sdd / "manifest.json").unlink()
    plain = open_dataset(str(prepared_sdd))
    assert plain.name == "prepared" and plain.licence == "not stated" and len(plain.files) == 73


def test_manifests_of_other_programs_are_not_read(two_categories: Path, tmp_path: Path) -> None:
    root = tmp_path / "two"
    shutil.copytree(two_categories, root)
    for text in ('{"name": "a web page", "format_version": 7}', "no JSON", ""):
        (root / "manifest.json").write_text(text)
        (root / "first" / "manifest.json").write_text(text)
        assert open_dataset(str(root), category="first").name == "first"


def test_a_category_beside_the_prepared_ones_is_ones_own(
    raw_folders: dict[str, Path], image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mvtec"
    prepare("mvtec", raw_folders["mvtec"], out, allow_counts=True)
    shutil.copytree(image_folder, out / "mine")
    assert open_dataset(str(out), category="mine").licence == "not stated"
    assert open_dataset(str(out), category="carpet").licence == "CC BY-NC-SA 4.0"


def test_a_folder_below_that_cannot_be_listed(prepared_sdd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def closed(place: str) -> Any:
        if str(place).endswith("defect"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DataError, match=r"^cannot list .*/defect: Permission denied; allow reading it"):
        verify(prepared_sdd)
