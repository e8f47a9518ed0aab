"""MVTec AD, ELPV and Optical, which are copied byte for byte, and Mastcam, whose arrays become pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import train_test_split

from sctune.data.catalog import installed_elpv, open_dataset
from sctune.data.convert import Manifest, prepare
from sctune.data.split import make_split
from sctune.errors import DataError

Maker = Callable[..., Path]


def assert_copied(raw: Path, out: Path, manifest: Manifest) -> None:
    for record in manifest.files:
        assert (out / record.path).read_bytes() == (raw / record.source).read_bytes()


def test_mvtec_is_copied_with_its_masks(raw_folders: dict[str, Path], tmp_path: Path) -> None:
    raw, out = raw_folders["mvtec"], tmp_path / "out"
    manifest = prepare("mvtec", raw, out, allow_counts=True)
    assert_copied(raw, out, manifest)
    assert manifest.counts["carpet/train/good"] == 4 and manifest.categories == ["carpet", "toothbrush"]
    mask = "carpet/ground_truth/hole/001_mask.png"
    assert (out / mask).read_bytes() == (raw / mask).read_bytes()
    data = open_dataset(str(out), category="carpet")
    assert (data.name, data.licence) == ("mvtec/carpet", "CC BY-NC-SA 4.0") and "Bergmann" in str(data.attribution)
    assert Counter((file.kind, file.split, file.mask is not None) for file in data.files) == {
        ("good", "train", False): 4,
        ("good", "test", False): 2,
        ("color", "test", True): 2,
        ("hole", "test", True): 2,
    }
    with pytest.raises(DataError, match=r"choose one of carpet, toothbrush"):
        open_dataset(str(out))
    with pytest.raises(DataError, match=r"no category 'tile'"):
        open_dataset(str(out), category="tile")


def test_one_mvtec_category_alone_is_checked_in_full(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["mvtec"](tmp_path / "raw", categories=("toothbrush",), counts=(60, 12, 30)) / "toothbrush"
    manifest = prepare("mvtec", raw, tmp_path / "out")
    assert manifest.differences == ()
    assert manifest.counts == {
        "toothbrush/test/defective": 30,
        "toothbrush/test/good": 12,
        "toothbrush/train/good": 60,
    }
    raw.rename(tmp_path / "inner")
    raw.mkdir()
    (tmp_path / "inner").rename(raw / "toothbrush")
    assert prepare("mvtec", raw, tmp_path / "nested").files == manifest.files
    (raw / "toothbrush" / "train" / "good" / "007.png").unlink()
    with pytest.raises(DataError, match="toothbrush: train/good 59 instead of 60"):
        prepare("mvtec", raw, tmp_path / "again")
    with pytest.raises(DataError, match="the hard setting tests on other classes"):
        make_split(tmp_path / "out" / "toothbrush", "hard", 1, "defective", 42, "test")


def test_mvtec_without_a_mask(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["mvtec"](tmp_path / "raw")
    (raw / "carpet" / "ground_truth" / "hole" / "001_mask.png").unlink()
    with pytest.raises(DataError, match=r"missing masks: 1, first carpet/ground_truth/hole/001_mask\.png"):
        prepare("mvtec", raw, tmp_path / "out")
    manifest = prepare("mvtec", raw, tmp_path / "out", allow_counts=True)
    (bare,) = (record for record in manifest.files if record.kind != "good" and record.mask is None)
    assert bare.path == "carpet/test/hole/001.png"


def test_mvtec_does_not_know_every_category(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["mvtec"](tmp_path / "raw", categories=("carpet", "cork"))
    with pytest.raises(DataError, match="cork is not the raw folder of MVTec AD: it needs CATEGORY/train/good"):
        prepare("mvtec", raw / "cork", tmp_path / "out")
    manifest = prepare("mvtec", raw, tmp_path / "out", allow_counts=True)
    assert "cork: unknown category" in manifest.differences and manifest.categories == ["carpet", "cork"]


@pytest.mark.parametrize("below", ["", "src/elpv_dataset/data"])
def test_elpv_clones(makers: dict[str, Maker], tmp_path: Path, below: str) -> None:
    raw = makers["elpv"](tmp_path / "raw", below=below)
    manifest = prepare("elpv", raw, tmp_path / "out", allow_counts=True)
    assert_copied(raw / below, tmp_path / "out", manifest)
    rows = [line.split() for line in (raw / below / "labels.csv").read_text().splitlines()]
    normal = [Path(name).name for name, probability, _ in rows if probability == "0.0"]
    assert normal != sorted(normal)
    _, test = train_test_split(normal, test_size=0.25, random_state=42)
    assert {Path(record.path).name for record in manifest.files if record.path.startswith("test/good")} == set(test)
    assert manifest.notes == ("16 images with a probability between 0 and 1 are left out",)
    kinds = {Path(name).name: kind for name, probability, kind in rows if probability == "1.0"}
    assert {Path(record.path).name: record.kind for record in manifest.files if record.kind != "good"} == kinds


@pytest.fixture(scope="module")
def elpv(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """The real package, prepared without --source."""
    out = tmp_path_factory.mktemp("elpv") / "elpv"
    return out, prepare("elpv", None, out)


def test_the_real_elpv(elpv: tuple[Path, Manifest]) -> None:
    out, manifest = elpv
    assert manifest.counts == {"test/good": 377, "test/mono": 313, "test/poly": 402, "train/good": 1131}
    assert manifest.differences == () and manifest.source.startswith("elpv-dataset 1.")
    held = {record.path for record in manifest.files if record.path.startswith("test/good")}
    assert {f"test/good/{name}.png" for name in ("cell1270", "cell2158", "cell0965")} <= held
    types = {line.split()[0]: line.split()[2] for line in (installed_elpv() / "labels.csv").read_text().splitlines()}
    cells = Counter((record.split, types[record.source]) for record in manifest.files if record.kind == "good")
    assert cells == {("train", "mono"): 454, ("train", "poly"): 677, ("test", "mono"): 134, ("test", "poly"): 243}
    assert_copied(installed_elpv(), out, manifest)


def test_the_real_elpv_splits_as_the_package_does(elpv: tuple[Path, Manifest]) -> None:
    out, _ = elpv
    for setting, known in (("general", None), ("hard", "mono")):
        ours, raw = (make_split(str(root), setting, 10, known, 42, "test") for root in (out, "elpv"))
        for name in ("train", "test"):
            lists = [sorted((Path(f.path).name, f.kind) for f in getattr(split, name)) for split in (ours, raw)]
            assert lists[0] == lists[1]
        summary = ours.summary()
        assert (summary["train_normals"], summary["train_anomalies"], summary["test_normals"]) == (1131, 10, 377)
        assert summary["test_anomalies"] == (705 if setting == "general" else 402)


def test_optical_pools_train_and_test(raw_folders: dict[str, Path], tmp_path: Path) -> None:
    raw, out = raw_folders["optical"], tmp_path / "out"
    manifest = prepare("optical", raw, out, allow_counts=True)
    assert_copied(raw, out, manifest)
    kinds = Counter(record.kind for record in manifest.files)
    assert kinds == {"good": 40, **{f"Class{number}": 2 for number in range(1, 11)}}
    tenth = sorted(record.path for record in manifest.files if record.kind == "Class10")
    assert tenth == ["test/Class10/Class10_Test_0002.PNG", "test/Class10/Class10_Train_0577.PNG"]
    normal = {Path(record.path).name: record.split for record in manifest.files if record.kind == "good"}
    _, test = train_test_split(sorted(normal), test_size=0.25, random_state=42)
    assert {name for name, split in normal.items() if split == "test"} == set(test)
    record = next(record for record in manifest.files if record.path == tenth[0])
    assert record.mask == "ground_truth/Class10/Class10_Test_0002_mask.png"
    label = raw / "Class10" / "Test" / "Label" / "0002_label.PNG"
    assert (out / str(record.mask)).read_bytes() == label.read_bytes()
    assert any("Class0 to Class9" in line for line in manifest.notes)
    assert all(file.mask for file in open_dataset(str(out)).anomalies)


def test_optical_nested_and_in_another_case(
    makers: dict[str, Maker], raw_folders: dict[str, Path], tmp_path: Path
) -> None:
    raw = makers["optical"](tmp_path / "raw", nested=True)
    for path in sorted(raw.rglob("*.PNG")):
        path.rename(path.with_suffix(".png"))
    plain = prepare("optical", raw_folders["optical"], tmp_path / "plain", allow_counts=True)
    again = prepare("optical", raw, tmp_path / "out", allow_counts=True)
    assert {r.path.replace(".png", ".PNG"): r.sha256 for r in again.files} == {r.path: r.sha256 for r in plain.files}


def test_optical_labels_that_do_not_fit(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["optical"](tmp_path / "raw", classes=(1,))
    table = raw / "Class1" / "Train" / "Label" / "Labels.txt"
    good = table.read_text()
    cases = {
        good + "579\t1\n": r"Labels\.txt, line 5: .* must be id, 0 or 1, image",
        good + "579\tx\t0579.PNG\n": r"Labels\.txt, line 5",
        good + "579\t0\t0579.PNG\t0\t0\n": r"has no 0579\.PNG, which .*Labels\.txt lists",
        good.replace("0577_label", "0578_label"): r"missing masks: 1, first Class1/Train/Label/0578_label\.PNG",
    }
    for text, says in cases.items():
        table.write_text(text)
        with pytest.raises(DataError, match=says):
            prepare("optical", raw, tmp_path / "out")
    table.write_text(good.replace("576\t0\t0576.PNG\t0\t0\n", ""))
    manifest = prepare("optical", raw, tmp_path / "out", allow_counts=True)
    assert any("Class1/Train: not in Labels.txt, left out: 0576.png" in line for line in manifest.notes)
    table.unlink()
    with pytest.raises(DataError, match=r"Train has no Label/Labels\.txt"):
        prepare("optical", raw, tmp_path / "again", allow_counts=True)


def test_mastcam_arrays_become_pictures(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["mastcam"](tmp_path / "raw", side=64)
    manifest = prepare("mastcam", raw, tmp_path / "out", allow_counts=True)
    assert manifest.counts == {
        "test/bedrock": 3, "test/edge_cases": 1, "test/good": 3, "test/veins": 2, "train/good": 6,
    }  # fmt: skip
    for record in manifest.files:
        array = np.load(raw / record.source)
        assert array.shape == (64, 64, 6) and array.dtype == np.float64
        image = Image.open(tmp_path / "out" / record.path)
        assert image.format == "PNG" and image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), array[..., :3].astype(np.uint8))
    sources = [record.source for record in manifest.files]
    assert not any(source.startswith(("test_novel/all", "validation")) for source in sources)
    assert "test_novel/all is left out: 5 copies" in manifest.notes


def test_no_mastcam_split_trains_on_one_copy_and_tests_on_the_other(
    raw_folders: dict[str, Path], tmp_path: Path
) -> None:
    manifest = prepare("mastcam", raw_folders["mastcam"], tmp_path / "out", allow_counts=True)
    assert "in two classes, and one source unit each: sol2.npy" in manifest.notes
    data = open_dataset(str(tmp_path / "out"))
    assert {file.path: file.group for file in data.anomalies if "sol2" in file.path} == {
        "test/bedrock/sol2.png": "sol2",
        "test/veins/sol2.png": "sol2",
    }
    hard = make_split(data, "hard", 3, "bedrock", 42, "test")
    assert sorted(file.path for file in hard.test if file.label) == ["test/edge_cases/sol5.png", "test/veins/sol4.png"]
    seen = set()
    for seed in range(12):
        general = make_split(data, "general", 2, None, seed, "test")
        trained = {Path(file.path).name for file in general.train}
        assert not trained & {Path(file.path).name for file in general.test}
        seen |= {"sol2.png"} & trained
    assert seen, "no seed drew the image that lies in two classes"


def test_mastcam_values_that_are_no_picture(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["mastcam"](tmp_path / "raw")
    bad = raw / "train_typical" / "train_typical_3.npy"
    np.save(bad, np.full((8, 8, 6), 300.0))
    with pytest.raises(DataError, match=r"train_typical_3\.npy: values from 300 to 300, .*run the same command again"):
        prepare("mastcam", raw, tmp_path / "out", allow_counts=True)
    assert not (tmp_path / "out").exists()
    (raw / "test_typical").rename(tmp_path / "away")
    with pytest.raises(DataError, match="needs the folders train_typical, test_typical and test_novel"):
        prepare("mastcam", raw, tmp_path / "out", allow_counts=True)


def test_mastcam_arrays_of_another_shape(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["mastcam"](tmp_path / "raw")
    for shape in ((6, 8, 8), (8, 8), (8, 8, 2), (8, 9, 6), (1, 8, 8, 6)):
        np.save(raw / "test_novel" / "veins" / "sol4.npy", np.zeros(shape))
        with pytest.raises(DataError) as caught:
            prepare("mastcam", raw, tmp_path / "out", allow_counts=True)
        text = f"sol4.npy is an array of shape {list(shape)}; Mastcam has [64, 64, 6]: get the file again"
        assert str(caught.value).endswith(text)
    (raw / "test_novel" / "veins" / "sol4.npy").write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(DataError, match=r"sol4\.npy cannot be decoded"):
        prepare("mastcam", raw, tmp_path / "out", allow_counts=True)
    assert not list(tmp_path.glob("out*"))


def test_mvtec_with_an_empty_folder_of_masks(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["mvtec"](tmp_path / "raw", categories=("carpet",))
    for mask in (raw / "carpet" / "ground_truth").rglob("*.png"):
        mask.unlink()
    with pytest.raises(DataError, match=r"missing masks: 4, first carpet/ground_truth/color/000_mask\.png"):
        prepare("mvtec", raw, tmp_path / "out")
    manifest = prepare("mvtec", raw, tmp_path / "out", allow_counts=True)
    assert not any(record.mask for record in manifest.files)
    assert len(open_dataset(str(raw), category="carpet").anomalies) == 4
