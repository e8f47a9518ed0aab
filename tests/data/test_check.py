"""Planted faults are found, each by its kind, and clean data give none; through `sctune data check` and a plan."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter
from typer.testing import CliRunner

from sctune.cli import app
from sctune.data.catalog import open_dataset
from sctune.data.check import check_data
from sctune.data.decode import Decoding
from sctune.data.duplicates import kept_together, near_identical
from sctune.data.facts import ImageFacts
from sctune.data.findings import odd_images
from sctune.data.image_file import ImageFile
from sctune.data.images import ImageCache
from sctune.data.shortcuts import shortcuts
from sctune.data.split import make_split
from sctune.errors import DataError
from sctune.paths import cache_folder
from sctune.search.plan.options import SearchOptions
from sctune.search.plan.plan import make_plan

SIDE = 96


def texture(seed: int) -> Image.Image:
    """A smooth picture with structure of its own, unlike that of every other seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (SIDE // 4, SIDE // 4), dtype=np.uint8)
    return Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def make_set(root: Path, normals: int = 24, anomalies: int = 12) -> Path:
    """ok/ and nok/scratch/; names, sizes and brightness say nothing of the class."""
    (root / "ok").mkdir(parents=True)
    (root / "nok" / "scratch").mkdir(parents=True)
    for number in range(normals):
        texture(number).save(root / "ok" / f"{number:03}.png")
    for number in range(anomalies):
        texture(1000 + number).save(root / "nok" / "scratch" / f"{2 * number:03}.png")
    return root


def checked(source: Path, *options: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["data", "check", str(source), "--json", *options], catch_exceptions=False)
    return done.exit_code, json.loads(done.stdout)


def found(document: dict[str, Any]) -> dict[str, str]:
    return {finding["kind"]: finding["severity"] for finding in document["findings"]}


def test_clean_images_give_no_finding_and_a_table(tmp_path: Path) -> None:
    code, document = checked(make_set(tmp_path / "set"))
    assert (code, document["findings"], document["warnings"]) == (0, [], [])
    assert document["range"] == "bits:8"
    rows = {row["name"]: row for row in document["classes"]}
    assert (rows["good"]["count"], rows["scratch"]["count"]) == (24, 12)
    assert (rows["good"]["sizes"], rows["good"]["modes"], rows["good"]["depth"]) == ("96x96", "PNG L", "8 bits")
    means = [float(np.asarray(texture(seed)).mean()) for seed in range(24)]
    assert rows["good"]["brightness"] == pytest.approx(np.mean(means), abs=3)
    assert all(0.5 <= value < 0.9 for value in document["shortcuts"].values())


def plant(root: Path, kind: str) -> str:
    """One fault in a clean set; gives the name of an image that has it."""
    good = root / "ok"
    one = good / "003.png"
    picture = Image.open(one)
    picture.load()
    if kind == "constant":
        Image.new("L", (SIDE, SIDE), 90).save(one)
    elif kind == "clipped":
        Image.fromarray(np.where(np.arange(SIDE) < 70, 255, np.asarray(picture)).astype(np.uint8)).save(one)
    elif kind == "blurred":
        picture.filter(ImageFilter.GaussianBlur(12)).save(one)
    elif kind == "sizes":
        picture.resize((SIDE, 2 * SIDE)).save(one)
    elif kind == "unreadable":
        one.write_bytes(one.read_bytes()[:200])
    elif kind == "near":
        picture.resize((70, 70), Image.Resampling.LANCZOS).resize((SIDE, SIDE)).save(
            root / "nok" / "scratch" / "900.jpg", quality=80
        )
        return "nok/scratch/900.jpg"
    elif kind == "nearly-black":
        for path in good.iterdir():
            Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 257).save(path)
        Image.fromarray(np.asarray(picture).astype(np.uint16)).save(one)
    elif kind == "hot-pixels":
        for path in good.iterdir():
            Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 16).save(path)
        wide = np.asarray(Image.open(one)).copy()
        wide[0, :2] = 65535
        Image.fromarray(wide).save(one)
    return "ok/003.png"


@pytest.mark.parametrize(
    "kind", ["constant", "clipped", "blurred", "sizes", "unreadable", "near", "nearly-black", "hot-pixels"]
)
def test_a_planted_fault_is_found_with_its_image(tmp_path: Path, kind: str) -> None:
    root = make_set(tmp_path / "set")
    name = plant(root, kind)
    code, document = checked(root)
    assert code == 1
    (finding,) = [finding for finding in document["findings"] if finding["kind"] == kind]
    assert finding["severity"] == "warning" and name in finding["examples"] and finding["count"] == 1


def test_blur_is_told_from_low_contrast(tmp_path: Path) -> None:
    """The sharpness of clean pictures varies a thousandfold here, and the blurred one is far from the least sharp."""
    (tmp_path / "in").mkdir()
    for number in range(30):
        picture = texture(number).resize((2 * SIDE, 2 * SIDE))
        shown = picture.filter(ImageFilter.GaussianBlur(16)) if number == 7 else picture
        contrast = 1.0 if number == 7 else 0.03 * 1.12**number
        Image.fromarray((128 + contrast * (np.asarray(shown) - 128.0)).astype(np.uint8)).save(
            tmp_path / "in" / f"{number:02}.png"
        )
    found = ImageCache(tmp_path / "cache").facts(tmp_path / "in", [f"{n:02}.png" for n in range(30)], Decoding(192))
    facts = {path: one for path, one in found.items() if not isinstance(one, str)}
    assert min(facts, key=lambda path: facts[path].sharpness) != "07.png"
    (finding,) = odd_images(facts)
    assert (finding.kind, finding.examples) == ("blurred", ("07.png",))


def test_blurred_cells_of_elpv_are_found(tmp_path: Path) -> None:
    data = open_dataset("elpv")
    names = [Path(file.path).name for file in data.normals[::30]]
    for name, file in zip(names, data.normals[::30], strict=True):
        shutil.copy(data.root / file.path, tmp_path / name)
    blurred = names[5::20]
    for name in blurred:
        Image.open(tmp_path / name).filter(ImageFilter.GaussianBlur(6)).save(tmp_path / name)
    found = ImageCache(tmp_path / "cache").facts(tmp_path, names, Decoding(160))
    (finding,) = odd_images({path: one for path, one in found.items() if not isinstance(one, str)})
    assert (finding.kind, finding.count, finding.examples) == ("blurred", len(blurred), tuple(sorted(blurred)[:3]))


def test_facts_belong_to_their_own_images(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", normals=70)
    plant(root, "unreadable")
    names = [f"ok/{number:03}.png" for number in range(70)]
    together = ImageCache(tmp_path / "cache").facts(root, names, Decoding(SIDE))
    stored = ImageCache(tmp_path / "cache").facts(root, names, Decoding(SIDE))
    assert isinstance(together["ok/003.png"], str) and set(together) == set(names)
    for name in ("ok/000.png", "ok/004.png", "ok/069.png"):
        pixels = np.asarray(Image.open(root / name))
        alone = ImageCache(tmp_path / "other").facts(root, [name], Decoding(SIDE))[name]
        for one in (together[name], stored[name], alone):
            assert not isinstance(one, str)
            assert (one.nbytes, one.notes) == ((root / name).stat().st_size, ())
            assert one.mean == pytest.approx(pixels[::2, ::2].mean(), abs=1e-3)
            assert one.deviation == pytest.approx(pixels[::2, ::2].std(), abs=1e-3)
            assert one.black == pytest.approx(np.mean(pixels[::2, ::2] == 0), abs=1e-4)
            cells = pixels.reshape(SIDE // 2, 2, SIDE // 2, 2).mean(axis=(1, 3))
            assert np.abs(one.thumb - cells).max() <= 0.5


def test_crop_is_told_of_wide_pictures(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    texture(5).resize((2 * SIDE, SIDE)).save(root / "ok" / "005.png")
    _, document = checked(root, "--set", "data.resize=crop")
    (finding,) = [finding for finding in document["findings"] if finding["kind"] == "resize=crop"]
    assert "keeps 50% of the picture" in finding["text"]


@pytest.mark.parametrize("feature", ["mean brightness", "file type and mode", "width", "text of the file name"])
def test_a_shortcut_between_the_classes_is_told(tmp_path: Path, feature: str) -> None:
    root = make_set(tmp_path / "set")
    for path in (root / "nok" / "scratch").iterdir():
        picture = Image.open(path)
        if feature == "mean brightness":
            Image.fromarray((np.asarray(picture) // 2).astype(np.uint8)).save(path)
        elif feature == "file type and mode":
            picture.convert("RGB").save(path)
        elif feature == "width":
            picture.resize((SIDE + 8, SIDE)).save(path)
        else:
            path.rename(path.with_name(f"defect{path.name}"))
    code, document = checked(root)
    assert code == 1 and document["shortcuts"][feature] >= 0.9
    told = [finding["text"] for finding in document["findings"] if finding["kind"] == "shortcut"]
    assert any(text.startswith(f"{feature} alone tells normal from anomalous") for text in told)


def test_classes_that_are_counted_each_from_its_own_start_are_no_shortcut() -> None:
    plain = ImageFacts("PNG L", "8 bits", 9, 9, 9, 0, 9, 9, 0, 0, 9, 1, np.zeros((64, 64), np.uint8))

    def of_names(normal: Iterable[int], anomalous: Iterable[int]) -> float:
        files = [ImageFile(f"ok/{number:04}.png", 0, "good") for number in normal]
        files += [ImageFile(f"nok/{number:04}.png", 1, "dent") for number in anomalous]
        return shortcuts(files, dict.fromkeys((file.path for file in files), plain))["text of the file name"]

    assert of_names(range(200), range(10)) == 0.5
    assert of_names(range(200), [*range(5), *range(1, 9)]) == 0.5
    assert of_names(range(200), range(300, 310)) == 1.0
    assert of_names(range(200), [0] * 10) > 0.9, "one number for all is no count"
    assert of_names(range(0, 40_000, 200), range(0, 100, 10)) > 0.9, "nor are values far apart"


def test_eight_bits_against_twelve_is_a_shortcut(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    for path in (root / "nok" / "scratch").iterdir():
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16)).save(path)
    _, document = checked(root)
    assert document["shortcuts"]["container depth"] == 1.0


def test_the_shortcut_value_is_the_auroc_whichever_way_it_points(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    data = open_dataset(str(root))
    facts = ImageCache(tmp_path / "cache").facts(data.root, [file.path for file in data.files], Decoding(SIDE))
    real = {path: one for path, one in facts.items() if not isinstance(one, str)}
    pairs = [(real[good.path].nbytes, real[bad.path].nbytes) for good in data.normals for bad in data.anomalies]
    share = sum((a < b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert shortcuts(data.files, real)["file size"] == pytest.approx(max(share, 1 - share), abs=1e-4)
    few = [*data.normals, *data.anomalies[:4]]
    assert shortcuts(few, real) == {}


def test_copies_under_two_labels_are_refused_with_both_names(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", normals=40)
    shutil.copy(root / "ok" / "007.png", root / "nok" / "scratch" / "copy.png")
    code, document = checked(root)
    assert code == 1 and found(document) == {"identical": "refused"}
    with pytest.raises(DataError, match=r"nok/scratch/copy.png and ok/007.png are the same file under two labels"):
        kept_together(open_dataset(str(root)))
    with pytest.raises(DataError, match="under two labels"):
        make_plan(SearchOptions(data=str(root), profile="smoke"), has_gpu=False)


def mvtec(root: Path) -> Path:
    for part, kind, first, count in (("train", "good", 0, 40), ("test", "good", 100, 8), ("test", "crack", 200, 12)):
        (root / part / kind).mkdir(parents=True)
        for number in range(count):
            texture(first + number).save(root / part / kind / f"{number:03}.png")
    return root


def test_copies_in_training_and_test_are_refused_unless_allowed(tmp_path: Path) -> None:
    root = mvtec(tmp_path / "set")
    shutil.copy(root / "train" / "good" / "001.png", root / "test" / "good" / "900.png")
    code, document = checked(root)
    assert code == 1 and found(document) == {"identical": "refused"}
    allowed, document = checked(root, "--allow-duplicates")
    assert allowed == 1
    data = kept_together(open_dataset(str(root)))
    split = make_split(data, "general", 4, None, 42, "auto")
    pools = [{file.path for file in pool} for pool in (split.development, split.test)]
    copies = {"train/good/001.png", "test/good/900.png"}
    assert sum(bool(copies & pool) for pool in pools) == 1
    with pytest.raises(DataError, match=r"more than one pool: .*--allow-duplicates"):
        make_plan(SearchOptions(data=str(root), profile="smoke"), has_gpu=False)
    plan = make_plan(SearchOptions(data=str(root), profile="smoke", allow_duplicates=True), has_gpu=False)
    assert plan.manifest.trial_config().data.allow_duplicates
    assert [row.name for row in plan.checks[0].classes] == ["train/good", "test/good", "test/crack"]


def test_near_copies_are_told_from_pictures_that_only_look_alike(tmp_path: Path) -> None:
    """One background in all of them, as bus bars or a fixture are; each has a detail of its own."""
    background = np.asarray(texture(1).resize((128, 128))).astype(np.float32)
    tmp_path.joinpath("in").mkdir()
    for number in range(40):
        grains = np.random.default_rng(number).integers(0, 256, (43, 43), dtype=np.uint8)
        own = np.asarray(Image.fromarray(grains).resize((128, 128))).astype(np.float32)
        picture = Image.fromarray((0.6 * background + 0.4 * own).astype(np.uint8))
        picture.save(tmp_path / "in" / f"{number:02}.png")
    picture.save(tmp_path / "in" / "copy.jpg", quality=90)
    stream = BytesIO()
    Image.fromarray((np.asarray(picture) * 0.9 + 12).astype(np.uint8)).save(stream, "PNG")
    (tmp_path / "in" / "bright.png").write_bytes(stream.getvalue())
    paths = sorted(path.name for path in (tmp_path / "in").iterdir())
    facts = ImageCache(tmp_path / "cache").facts(tmp_path / "in", paths, Decoding(128))
    thumbs = {path: one.thumb for path, one in facts.items() if not isinstance(one, str)}
    expected = [("39.png", "bright.png"), ("39.png", "copy.jpg"), ("bright.png", "copy.jpg")]
    assert near_identical(tmp_path / "in", thumbs) == expected


def test_near_copies_are_found_among_many_wherever_they_stand(tmp_path: Path) -> None:
    thumbs = {f"{number:03}.png": np.asarray(texture(number).resize((40, 40))) for number in range(200)}
    for first, second in ((0, 199), (63, 64), (70, 71), (5, 130)):
        thumbs[f"{second:03}.png"] = np.clip(thumbs[f"{first:03}.png"] * 0.95 + 6, 0, 255).astype(np.uint8)
    for name in thumbs:
        (tmp_path / name).write_text(name)
    expected = [("000.png", "199.png"), ("005.png", "130.png"), ("063.png", "064.png"), ("070.png", "071.png")]
    assert near_identical(tmp_path, thumbs) == expected


def test_the_facts_of_a_cached_array_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_set(tmp_path / "set")
    data = open_dataset(str(root))
    cache, paths = ImageCache(tmp_path / "cache"), [file.path for file in data.files]
    cache.array(data.root, paths, Decoding(32))

    def refuse(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("sctune.data.images.decode", refuse)
    assert len(cache.facts(data.root, paths, Decoding(32))) == len(paths)
    assert check_data(data, cache, Decoding(32), decoded=paths).classes[0].count == 24
    cache.clear()
    with pytest.raises(AssertionError, match="decoded again"):
        cache.facts(data.root, paths, Decoding(32))


def test_elpv_is_clean() -> None:
    data = open_dataset("elpv")
    some = [*data.normals[::25], *data.anomalies[::12]]
    files = tuple(ImageFile(file.path, file.label, file.kind, split=file.split) for file in some)
    report = check_data(replace(data, files=files), ImageCache(cache_folder()), Decoding(96))
    assert report.findings == ()
    assert 0.5 < max(report.shortcuts.values()) < 0.9
