"""Opening data sets: every layout, ELPV's counts, and one clear line for what cannot be used."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from pathlib import Path

import pytest
from sklearn.model_selection import train_test_split

from sctune.data.catalog import DataSet, ImageFile, folders_source, open_dataset, open_folders
from sctune.data.layouts import quarter_split
from sctune.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(hashlib.sha256(name.encode()).digest())


def write_csv(root: Path, text: str) -> str:
    (root / "files.csv").write_text(text)
    return str(root / "files.csv")


def one_line(call: str | None = None, **options: str | None) -> str:
    with pytest.raises(DataError) as caught:
        open_dataset(str(call), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_elpv_has_the_published_counts() -> None:
    data = open_dataset("elpv")
    counts = Counter((file.kind, file.split) for file in data.files)
    assert counts == {("good", "train"): 1131, ("good", "test"): 377, ("mono", "test"): 313, ("poly", "test"): 402}
    assert data.licence == "CC BY-NC-SA 4.0" and "Deitsch" in str(data.attribution)
    assert [file.path for file in data.files] == sorted(file.path for file in data.files)
    assert all((data.root / file.path).is_file() for file in data.files[::97])
    assert data.files[0].group == data.files[0].path


def test_elpv_draws_the_papers_test_normals_in_csv_order() -> None:
    data = open_dataset("elpv")
    rows = [line.split() for line in (data.root / "labels.csv").read_text().splitlines()]
    normal = [path for path, probability, _ in rows if float(probability) == 0]
    train, test = quarter_split(normal)
    assert [Path(path).stem for path in test[:3]] == ["cell1270", "cell2158", "cell0965"]
    assert (train, test) == tuple(train_test_split(normal, test_size=0.25, random_state=42))
    assert set(test) == {file.path for file in data.normals if file.split == "test"}


@pytest.mark.parametrize("total", [1, 2, 5, 31, 100])
def test_quarter_split_is_scikit_learns(total: int) -> None:
    items = [f"image{number}" for number in range(total)]
    if total > 1:
        assert quarter_split(items) == tuple(train_test_split(items, test_size=0.25, random_state=42))
    else:
        assert quarter_split(items) == ([], items)


@pytest.mark.parametrize("below", ["", "src/elpv_dataset/data"])
def test_raw_elpv_folder(tmp_path: Path, below: str) -> None:
    place = tmp_path / below
    touch(place, *(f"images/cell{number}.png" for number in range(8)))
    labels = ["0.0 mono"] * 4 + ["0.3333333333333333 mono", "0.6666666666666666 poly", "1.0 poly", "1.0 mono"]
    (place / "labels.csv").write_text("".join(f"images/cell{row}.png  {text}\n" for row, text in enumerate(labels)))
    data = open_dataset(str(tmp_path))
    assert data.root == place
    assert [(file.path[-5], file.kind) for file in data.anomalies] == [("6", "poly"), ("7", "mono")]
    assert sum(file.split == "test" for file in data.normals) == 1 and len(data.normals) == 4


def test_mvtec_layout_with_masks_and_category(tmp_path: Path) -> None:
    touch(tmp_path / "tile", "train/good/1.PNG", "test/good/2.png", "test/crack/3.jpg", "test/crack/.hidden.png")
    touch(tmp_path / "tile", "test/oil/4.Tif", "ground_truth/crack/3_mask.png", "train/good/notes.txt")
    data = open_dataset(str(tmp_path), category="tile")
    assert data.files == (
        ImageFile("test/crack/3.jpg", 1, "crack", split="test", mask="ground_truth/crack/3_mask.png"),
        ImageFile("test/good/2.png", 0, "good", split="test"),
        ImageFile("test/oil/4.Tif", 1, "oil", split="test"),
        ImageFile("train/good/1.PNG", 0, "good", split="train"),
    )
    assert data.kinds == ["crack", "oil"] and data.root == tmp_path / "tile"
    left_out, unmasked = data.notes
    assert f"{tmp_path}/tile: left out 1 hidden or system file(s) and folder(s) (test/crack/.hidden.png)" in left_out
    assert "1 other file(s) (train/good/notes.txt)" in left_out
    assert "1 of 2 anomalous images have no mask, the first is test/oil/4.Tif" in unmasked
    assert open_dataset(str(tmp_path / "tile")).files == data.files


def test_ok_nok_with_and_without_types(tmp_path: Path) -> None:
    touch(tmp_path, "ok/a.bmp", "ok/shift2/b.npy", "nok/c.png", "nok/scratch/d.jpeg")
    kinds = {file.path: file.kind for file in open_dataset(str(tmp_path)).files}
    assert kinds == {
        "nok/c.png": "anomaly",
        "nok/scratch/d.jpeg": "scratch",
        "ok/a.bmp": "good",
        "ok/shift2/b.npy": "good",
    }


def test_two_plain_folders_and_their_source_string(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "deep/fine/1.png", "broken/2.png", "broken/dent/3.png")
    monkeypatch.chdir(tmp_path)
    data = open_folders("deep/fine", "broken")
    assert [(file.path, file.label, file.kind) for file in data.files] == [
        ("broken/2.png", 1, "anomaly"),
        ("broken/dent/3.png", 1, "dent"),
        ("deep/fine/1.png", 0, "good"),
    ]
    assert data.root == tmp_path
    assert open_dataset(folders_source("deep/fine", "broken")) == data
    with pytest.raises(DataError, match="two separate folders"):
        open_folders("deep", "deep/fine")


def test_csv_with_all_columns(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/2.png", "m.png", "x.tiff")
    text = "\ufeffpath, Label ,type,group,mask,split,camera\na/1.png,normal,,part7,,train,3\n"
    source = write_csv(tmp_path, text + "./a/2.png,NOK,dent,part8,m.png,test,3\n\nx.tiff,0,,,,,\n")
    assert open_dataset(source).files == (
        ImageFile("a/1.png", 0, "good", "part7", "train"),
        ImageFile("a/2.png", 1, "dent", "part8", "test", "m.png"),
        ImageFile("x.tiff", 0, "good"),
    )
    absolute = write_csv(tmp_path, f"path,label\n{tmp_path / 'a' / '1.png'},0\n")
    assert open_dataset(absolute).files[0].path == "a/1.png"


def test_group_pattern_names_the_unit(tmp_path: Path) -> None:
    touch(tmp_path, "ok/p1_a.png", "ok/p1_b.png", "nok/p2_a.png")
    data = open_dataset(str(tmp_path), group=r"(p\d+)_")
    assert [file.group for file in data.files] == ["p2", "p1", "p1"]
    assert "must match every path" in one_line(str(tmp_path), group=r"(part\d)")
    assert "in parentheses" in one_line(str(tmp_path), group="p")
    assert "no regular expression" in one_line(str(tmp_path), group="(")


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    assert "there is no folder or CSV file" in one_line(str(tmp_path / "none"))
    assert "holds no images" in one_line(str(tmp_path))
    touch(tmp_path, "loose.png")
    assert "no known layout" in one_line(str(tmp_path))
    assert "no .csv" in one_line(str(tmp_path / "loose.png"))
    (tmp_path / "set" / "ok").mkdir(parents=True)
    assert "set/ok holds no images" in one_line(str(tmp_path / "set"))
    touch(tmp_path, "set/ok/1.png", "other/train/good/1.png")
    assert "did you mean 'other'" in one_line(str(tmp_path), category="othr")
    assert "choose one of other, set" in one_line(str(tmp_path))
    assert "did you mean" in one_line(str(tmp_path), category="../set")
    assert "no categories" in one_line("elpv", category="mono")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("1.png,maybe", "line 2: unknown label 'maybe'"),
        ("gone.png,0", "line 2: there is no file 'gone.png'"),
        ("1.png,0\n./1.png,1", "'1.png' is listed 2 times, in line 2 as normal and in line 3 as anomalous (anomaly)"),
        ("1.png,0\n1.png,0", "'1.png' is listed 2 times, in line 2 and in line 3"),
        ("../1.png,0", "leaves"),
        ("/etc/hostname,0", "leaves"),
        ("1.png,1", "no normal images"),
        ("notes.txt,0", "is no image"),
        ("", "a header and no rows"),
    ],
)
def test_csv_rows_that_cannot_be_used(tmp_path: Path, rows: str, says: str) -> None:
    touch(tmp_path, "in/1.png", "in/notes.txt", "1.png")
    assert says in one_line(write_csv(tmp_path / "in", f"path,label\n{rows}\n"))


def test_csv_headers_that_cannot_be_used(tmp_path: Path) -> None:
    touch(tmp_path, "1.png")
    assert "no column 'label'" in one_line(write_csv(tmp_path, "path,class\n1.png,0\n"))
    assert "'class' may be meant: call it 'label'" in one_line(write_csv(tmp_path, "path,class\n1.png,0\n"))
    assert "did you mean 'group'" in one_line(write_csv(tmp_path, "path,label,groups\n1.png,0,a\n"))
    assert "must be train, test or empty" in one_line(write_csv(tmp_path, "path,label,split\n1.png,0,val\n"))
    (tmp_path / "files.csv").write_bytes(b"\xff\xfe\x00")
    assert "cannot read" in one_line(str(tmp_path / "files.csv"))


def test_raw_elpv_rows_that_cannot_be_used(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.png")
    for row, says in [
        ("images/1.png 2.0 mono", "0 to 1"),
        ("images/1.png 0.0", "line 1"),
        ("images/2.png 0.0 mono", "no file"),
    ]:
        (tmp_path / "labels.csv").write_text(row)
        assert says in one_line(str(tmp_path))


def test_missing_package_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delitem(sys.modules, "elpv_dataset", raising=False)
    assert 'pip install "sctune[demo]"' in one_line("elpv")


def test_the_package_is_found_without_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    # another test may have imported it
    monkeypatch.delitem(sys.modules, "elpv_dataset", raising=False)
    open_dataset("elpv")
    assert "elpv_dataset" not in sys.modules


def test_files_are_sorted_whatever_order_they_come_in() -> None:
    files = [ImageFile(name, 0, "good") for name in ("b", "a", "c")]
    assert [file.path for file in DataSet("memory", Path("/"), tuple(files)).files] == ["a", "b", "c"]


def test_no_source_reads_an_unfinished_folder(tmp_path: Path) -> None:
    partial = tmp_path / "set.partial"
    touch(tmp_path, "ok/1.png", "bad/1.png", "set.partial/tile/train/good/1.png", "set.partial/tile/test/oil/2.png")
    (partial / "manifest.unfinished.json").write_text("{}")
    good, bad = partial / "tile" / "train" / "good", partial / "tile" / "test" / "oil"
    (tmp_path / "link").symlink_to(bad)
    inside = write_csv(tmp_path, "path,label\nok/1.png,0\nset.partial/tile/test/oil/2.png,1\n")
    linked = tmp_path / "linked.csv"
    linked.write_text("path,label\nok/1.png,0\nlink/2.png,1\n")
    for source in (
        folders_source(good, bad),
        folders_source(tmp_path / "ok", bad),
        folders_source(tmp_path / "ok", tmp_path / "link"),
        folders_source(tmp_path / "ok", partial),
        inside,
        str(linked),
        str(partial / "tile" / "test"),
    ):
        text = one_line(source)
        assert text.startswith(f"{partial} is unfinished; run the same `sctune data prepare` command again"), source
    (tmp_path / "above").mkdir()
    partial.rename(tmp_path / "above" / "set.partial")
    assert "is unfinished" in one_line(folders_source(tmp_path / "ok", tmp_path / "above"))
