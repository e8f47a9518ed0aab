"""CSV files as spreadsheets write them: separators, encodings, words for labels, and what contradicts itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sctune.data.catalog import DataSet, open_dataset
from sctune.errors import DataError


def images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def opened(root: Path, text: str | bytes, encoding: str = "utf-8") -> DataSet:
    (root / "files.csv").write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return open_dataset(str(root / "files.csv"))


def refusal(root: Path, text: str | bytes, encoding: str = "utf-8") -> str:
    with pytest.raises(DataError) as caught:
        opened(root, text, encoding)
    assert "\n" not in str(caught.value) and str(root / "files.csv") in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "path,label,type\na.png,0,\nb.png,1,dent\n",
        "path;label;type\r\na.png;0;\r\nb.png;1;dent\r\n",
        "path\tlabel\ttype\na.png\t0\t\nb.png\t1\tdent\n",
        "sep=;\npath;label;type\na.png;0;\nb.png;1;dent\n",
        "SEP=|\r\npath|label|type\r\na.png|0|\r\nb.png|1|dent\r\n",
        '\n"path";"label";"type"\n"a.png";"0,0";""\n"b.png";"1,0";"dent"\n',
        'path,label,note,type\na.png,0,"dark; 0,5 V",\nb.png,1,"a;b;c\nd",dent\n',
        "type;score,x;path;label\n;0,25;a.png;0\ndent;0,75;b.png;1\n",
    ],
    ids=["comma", "semicolon", "tab", "sep", "any sep", "decimal commas", "semicolons in cells", "commas in cells"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_separators_and_encodings(tmp_path: Path, text: str, encoding: str) -> None:
    images(tmp_path, "a.png", "b.png")
    data = opened(tmp_path, text, encoding)
    assert [(file.path, file.label, file.kind) for file in data.files] == [("a.png", 0, "good"), ("b.png", 1, "dent")]
    assert data.notes == ()


def test_latin_1_is_read_and_said(tmp_path: Path) -> None:
    images(tmp_path, "gut/Größe.png", "b.png")
    data = opened(tmp_path, "path;label;type\nb.png;1;Riß\ngut/Größe.png;0;\n", "latin-1")
    assert [(file.path, file.kind) for file in data.files] == [("b.png", "Riß"), ("gut/Größe.png", "good")]
    (note,) = data.notes
    assert "files.csv is not UTF-8 (line 2) and was read as Latin-1" in note


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("0", "1"),
        ("0.0", "1.0"),
        ("ok", "nok"),
        ("OK", "NG"),
        ("Good", "Bad"),
        ("pass", "FAIL"),
        ("normal", "Anomalous"),
        ("False", "True"),
    ],
)
def test_words_for_labels(tmp_path: Path, good: str, bad: str) -> None:
    images(tmp_path, "a.png", "b.png")
    data = opened(tmp_path, f"path,label\na.png,{good}\nb.png, {bad} \n")
    assert [(file.path, file.label) for file in data.files] == [("a.png", 0), ("b.png", 1)]
    told = f"{tmp_path / 'files.csv'}: label True is read as anomalous, False as normal"
    assert data.notes == ((told,) if good == "False" else ())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,label,label\na.png,0,1\n", "line 1: the column 'label' is there 2 times (columns 2 and 3)"),
        ("path,label, Path\na.png,0,b.png\n", "line 1: the column 'path' is there 2 times (columns 1 and 3)"),
        ("path,label,type\nb.png,ok,\na.png,ok,crack\n", "line 3: label 'ok' contradicts type 'crack'"),
        ("path,label,type\na.png,nok,Good\n", "line 2: label 'nok' contradicts type 'Good'"),
        ("path,label\na.png,0\nb.png,0\n./a.png,1\n", "'a.png' is listed 2 times, in line 2 as normal and in line 4"),
        ("path,label,type\na.png,1,dent\na.png,1,crack\n", "in line 2 as anomalous (dent) and in line 3 as anomalous"),
        ("path,label\na.png,0\nlink.png,1\n", "'a.png and link.png, one file' is listed 2 times, in line 2 as normal"),
        ("path,label\na.png,0\nhard.png,1\n", "'a.png and hard.png, one file' is listed 2 times"),
        ("path,label\na.png,0,5\n", "line 2: 3 cells under 2 columns; put text that holds ',' into \"quotes\""),
        ("filename,label\na.png,0\n", "no column 'path'; 'filename' may be meant: call it 'path'"),
        ("Image Path;label\na.png;0\n", "no column 'path'; 'image path' may be meant"),
        ("path,Class\na.png,0\n", "no column 'label'; 'class' may be meant: call it 'label'"),
        ("path,labels\na.png,0\n", "no column 'label'; 'labels' may be meant"),
        ("path,lable\na.png,0\n", "no column 'label'; 'lable' may be meant"),
        ("path,label,tpye\na.png,0,\n", "did you mean 'type'?"),
        ("path,label\nA.PNG,0\n", "there is no file 'A.PNG'"),
        ("path,label\na.png,crack\n", "unknown label 'crack'; write 0, normal, ok, good or pass"),
        (b"path,label\n\xffa.png,0\n", "there is no file"),
        (b"\xff\xfep\0a", "save it as UTF-8"),
        ("path,label\na.png,0\n".encode("utf-16-le"), "it holds zero bytes; save it as a CSV file in UTF-8"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, text: str | bytes, says: str) -> None:
    images(tmp_path, "a.png", "b.png")
    (tmp_path / "link.png").symlink_to("a.png")
    os.link(tmp_path / "a.png", tmp_path / "hard.png")
    assert says in refusal(tmp_path, text)


def test_columns_that_others_call_otherwise_are_named(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png", "m.png")
    data = opened(tmp_path, "path,label,defect_type,mask_path,camera\na.png,0,,,1\nb.png,1,dent,m.png,2\n")
    assert data.kinds == ["anomaly"]
    assert [note.partition(": ")[2] for note in data.notes] == [
        "the column 'defect_type' is not read; if it holds the type, call it 'type'",
        "the column 'mask_path' is not read; if it holds the mask, call it 'mask'",
    ]


def test_anomalies_without_a_mask_are_named(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png", "c.png", "m.png")
    (note,) = opened(tmp_path, "path,label,mask\na.png,0,\nb.png,1,m.png\nc.png,1,\n").notes
    assert "1 of 2 anomalous images have no mask, the first is c.png" in note


@pytest.mark.parametrize(
    ("cell", "masks"),
    [
        ("m/1.png", ("m/1.png",)),
        ("m/1.png|m/2.png", ("m/1.png", "m/2.png")),
        (" m/2.png | m/1.png|m/2.png| ", ("m/2.png", "m/1.png")),
        ("m/a|b.png", ("m/a|b.png",)),
        ("|", ()),
        ("|".join(["m/1.png"] * 99 + ["m/2.png"]), ("m/1.png", "m/2.png")),
    ],
)
def test_one_image_may_have_several_masks(tmp_path: Path, cell: str, masks: tuple[str, ...]) -> None:
    images(tmp_path, "a.png", "b.png", "m/1.png", "m/2.png", "m/a|b.png")
    data = opened(tmp_path, f"path;label;mask\na.png;0;\nb.png;1;{cell}\n")
    assert [file.masks for file in data.files] == [(), masks]


def test_one_of_several_masks_that_is_not_there_is_named(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png", "m.png")
    assert "line 3: there is no file 'n.png'" in refusal(tmp_path, "path,label,mask\na.png,0,\nb.png,1,m.png|n.png\n")
