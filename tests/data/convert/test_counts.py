"""The published counts are enforced, to the image, before anything is written; METHODS section 6 as golden numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sctune.data.convert import RawSet, known_sets, prepare
from sctune.data.convert.plan import RawImage, RawPlan
from sctune.data.convert.split import assign_split
from sctune.errors import DataError

PUBLISHED = {
    "mvtec": (3629, 467, 1258),
    "sdd": (857, 286, 54),
    "aitex": (1692, 564, 183),
    "elpv": (1131, 377, 715),
    "optical": (10500, 3500, 2100),
    "mastcam": (9302, 426, 451),
}
SETS = {one.name: one for one in known_sets()}
MVTEC = {
    "bottle": (209, 20, 63), "cable": (224, 58, 92), "capsule": (219, 23, 109), "carpet": (280, 28, 89),
    "grid": (264, 21, 57), "hazelnut": (391, 40, 70), "leather": (245, 32, 92), "metal_nut": (220, 22, 93),
    "pill": (267, 26, 141), "screw": (320, 41, 119), "tile": (230, 33, 84), "toothbrush": (60, 12, 30),
    "transistor": (213, 60, 40), "wood": (247, 19, 60), "zipper": (240, 32, 119),
}  # fmt: skip


def images(kind: str, number: int, split: str | None = None, category: str = "", unit: str = "u") -> list[RawImage]:
    return [
        RawImage(f"{category}{kind}{split}{unit}{index}.png", "raw", kind, split, category, unit)
        for index in range(number)
    ]


def differences(name: str, listed: list[RawImage], grouped: bool = False) -> list[str]:
    found = assign_split(listed, grouped)
    plan = RawPlan(Path("raw"), found, tuple(MVTEC) if name == "mvtec" else ("",))
    return SETS[name].differences(plan, found, grouped)


@pytest.mark.parametrize("name", PUBLISHED)
def test_totals(name: str) -> None:
    totals = SETS[name].totals
    assert (totals.train_good, totals.test_good, totals.anomalies) == PUBLISHED[name]


def test_mvtec_categories() -> None:
    listed = []
    for category, (train, good, bad) in MVTEC.items():
        kinds = {"carpet": {"color": 19, "cut": 17, "hole": 17, "metal_contamination": 17, "thread": 19},
                 "metal_nut": {"bent": 25, "color": 22, "flip": 23, "scratch": 23}}  # fmt: skip
        listed += images("good", train, "train", category) + images("good", good, "test", category)
        for kind, number in kinds.get(category, {"any": bad}).items():
            listed += images(kind, number, "test", category)
    assert len(listed) == 5354
    assert differences("mvtec", listed) == []
    assert differences("mvtec", listed[1:]) == ["bottle: train/good 208 instead of 209"]
    assert differences("mvtec", [one for one in listed if one.category != "wood"]) == ["wood: missing"]
    moved = [RawImage(one.name, one.source, "cut" if one.kind == "hole" else one.kind, one.split, one.category)
             for one in listed]  # fmt: skip
    assert differences("mvtec", moved) == ["carpet: test/cut 34 instead of 17", "carpet: test/hole 0 instead of 17"]


def test_optical_pools_the_normals_of_all_classes() -> None:
    listed = images("good", 14000)
    for number in range(1, 11):
        listed += images(f"Class{number}", 150 if number < 7 else 300, "test")
    assert differences("optical", listed) == []
    assert differences("optical", listed[4:]) == ["train/good 10497 instead of 10500", "test/good 3499 instead of 3500"]


def test_aitex_takes_140_and_141_strips() -> None:
    codes = SETS["aitex"].expected[""][0].kinds
    anomalies = [image for kind in codes for image in images(kind, 15, "test")] + images("Nep", 3, "test", unit="more")
    assert len(codes) == 12
    for strips, wrong in ((139, 2), (140, 0), (141, 0), (142, 2)):
        assert len(differences("aitex", images("good", strips * 16) + anomalies)) == wrong
    assert differences("aitex", images("good", 2256) + anomalies[1:]) == ["anomalies 182 instead of 183"]
    renamed = anomalies[1:] + images("Hole", 1, "test")
    assert differences("aitex", images("good", 2240) + renamed) == ["unknown class Hole"]


def test_mastcam_has_eleven_classes() -> None:
    names = ["bedrock", "broken-rock", "drill-hole", "drt", "dump-pile", "float", "meteorite", "scuff", "veins",
             "edge_cases", "other"]  # fmt: skip
    anomalies = [image for kind in names for image in images(kind, 41, "test")]
    normals = images("good", 9302, "train") + images("good", 426, "test")
    assert differences("mastcam", normals + anomalies) == []
    without = images("bedrock", 41, "test", unit="v") + anomalies[:-82] + anomalies[-41:]
    assert differences("mastcam", normals + without) == ["no image of class edge_cases"]


def test_with_group_split_only_the_sum_of_the_normals_is_compared() -> None:
    listed = [
        RawImage(f"{part}_{third}.png", "raw", "good", unit=f"p{part}") for part in range(381) for third in range(3)
    ]
    listed += images("defect", 54, "test", unit="other")
    assert differences("sdd", listed, grouped=True) == []
    assert differences("sdd", listed[1:], grouped=True) == ["normal images 1142 instead of 1143"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_raw_folder_with_other_counts_is_refused(name: str, raw_folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="--allow-counts") as refused:
        prepare(name, raw_folders[name], out)
    text = str(refused.value)
    assert "\n" not in text and str(raw_folders[name]) in text and "instead of" in text
    assert list(tmp_path.iterdir()) == []
    manifest = prepare(name, raw_folders[name], out, allow_counts=True)
    assert manifest.differences[0] in text


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_raw_folder_of_another_set_is_recognised(name: str, raw_folders: dict[str, Path], tmp_path: Path) -> None:
    for other, folder in raw_folders.items():
        if other == name:
            continue
        with pytest.raises(DataError) as refused:
            prepare(name, folder, tmp_path / "out", allow_counts=True)
        title = SETS[other].title
        assert str(refused.value) == f"{folder}: this looks like {title}; run `sctune data prepare {other}`"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_folder_that_is_none_of_them(name: str, tmp_path: Path) -> None:
    (tmp_path / "things" / "pictures").mkdir(parents=True)
    with pytest.raises(DataError, match=r"is not the raw folder of .*: it needs "):
        prepare(name, tmp_path / "things", tmp_path / "out")
    with pytest.raises(DataError, match=r"there is no folder .*unpack the archive"):
        prepare(name, tmp_path / "nowhere", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["things"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_archives_that_nest_their_folder(
    name: str, makers: dict[str, Callable[..., Path]], raw_folders: dict[str, Path], tmp_path: Path
) -> None:
    nested = makers[name](tmp_path / "X" / "X")
    (tmp_path / "X" / "__MACOSX" / "X").mkdir(parents=True)
    (tmp_path / "X" / ".DS_Store").write_bytes(b"x")
    flat = prepare(name, raw_folders[name], tmp_path / "flat", allow_counts=True)
    manifest = prepare(name, tmp_path / "X", tmp_path / "deep", allow_counts=True)
    assert manifest.files == flat.files
    assert Path(manifest.source) == nested


def test_unknown_names_and_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown data set 'aitx'; did you mean 'aitex'"):
        prepare("aitx", tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match=r"Mastcam needs --source DIR.*https://zenodo.org/records/3732485"):
        prepare("mastcam", None, tmp_path / "out")


def test_group_split_needs_units(raw_folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--group-split: ELPV has no source units.*sdd, aitex"):
        prepare("elpv", raw_folders["elpv"], tmp_path / "out", allow_counts=True, group_split=True)


@pytest.mark.parametrize("one", known_sets(), ids=lambda one: one.name)
def test_every_set_says_where_it_is_and_what_it_allows(one: RawSet) -> None:
    assert one.page.startswith("https://") and one.licence and "count" in one.evidence
    assert one.attribution.startswith(("MVTec", "KolektorSDD", "AITEX", "ELPV", "DAGM", "Mastcam"))
