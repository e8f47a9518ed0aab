"""Training on all anomalies of the development pool, and folds over them that all seeds share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from sctune.data.catalog import DataSet, ImageFile, open_dataset
from sctune.data.selection import cross_folds
from sctune.data.split import Split, make_split
from sctune.errors import DataError

ELPV = open_dataset("elpv")


def anomalies(split: Split, name: str) -> set[str]:
    return {file.path for file in getattr(split, name) if file.label == 1}


def normals(split: Split, name: str) -> set[str]:
    return {file.path for file in getattr(split, name) if file.label == 0}


def of_fold(fold: int, seed: int = 42, every: bool = False, known: str | None = None) -> Split:
    setting = "general" if known is None else "hard"
    return make_split(ELPV, setting, 10, known, seed, "cross", fold=fold, folds=3, every=every)


@pytest.mark.parametrize("every", [False, True])
def test_each_development_anomaly_is_held_out_once(every: bool) -> None:
    plain = make_split(ELPV, "general", 10, None, 42, "extra")
    pool = anomalies(plain, "development")
    folds = [of_fold(fold, every=every) for fold in range(3)]
    held = [anomalies(split, "selection") for split in folds]
    assert set.union(*held) == pool and sum(map(len, held)) == len(pool) == 186
    assert {len(part) for part in held} == {62}
    for split, part in zip(folds, held, strict=True):
        assert (split.mode, split.folds, split.test) == ("cross", 3, plain.test)
        trained = anomalies(split, "train")
        assert not trained & part and trained == pool - part if every else len(trained) == 10
        # only anomalies differ: the normals are those of every other mode
        for name in ("train", "selection", "calibration"):
            assert normals(split, name) == normals(plain, name)


def test_seeds_share_the_folds_and_draw_their_own_anomalies() -> None:
    first, second = of_fold(1, seed=42), of_fold(1, seed=43)
    assert first.selection == second.selection
    assert anomalies(first, "train") != anomalies(second, "train")


def test_kinds_are_mixed_alike_in_the_folds() -> None:
    kinds = Counter(file.kind for file in make_split(ELPV, "general", 10, None, 42, "extra").development if file.label)
    for fold in range(3):
        held = Counter(file.kind for file in of_fold(fold).selection if file.label)
        for kind, count in kinds.items():
            assert abs(held[kind] - count / 3) < 1


def test_all_of_the_pool_and_nothing_else_is_added_without_a_fold() -> None:
    drawn = make_split(ELPV, "general", 10, None, 42, "proxy")
    every = make_split(ELPV, "general", 10, None, 42, "proxy", every=True)
    assert anomalies(every, "train") == anomalies(drawn, "development") and len(anomalies(drawn, "train")) == 10
    assert normals(every, "train") == normals(drawn, "train")
    assert (every.test, every.calibration, every.development) == (drawn.test, drawn.calibration, drawn.development)
    assert not anomalies(every, "selection") and every.warnings == drawn.warnings


def test_the_hard_setting_folds_its_known_class_only() -> None:
    held = [of_fold(fold, every=True, known="mono") for fold in range(3)]
    files = [file for split in held for file in split.selection if file.label]
    assert {file.kind for file in files} == {"mono"} and len(files) == len({file.path for file in files})


def test_with_all_trained_on_nothing_is_spare() -> None:
    assert make_split(ELPV, "general", 10, None, 42, "auto", every=True).mode == "seen"
    with pytest.raises(DataError, match="needs 1 spare anomaly"):
        make_split(ELPV, "general", 10, None, 42, "extra", every=True)


@pytest.mark.parametrize(
    ("setting", "selection", "options", "words"),
    [
        ("general", "test", {"every": True}, "use data.n_anomalies=all there"),
        ("anomaly-free", "cross", {}, "needs labelled anomalies"),
        ("general", "cross", {"fold": 3, "folds": 3}, "fold 3 does not exist"),
        ("general", "proxy", {"fold": 0}, "goes with selection mode seen or cross"),
    ],
)
def test_what_does_not_go_together_is_refused(setting: str, selection: str, options: dict, words: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(DataError, match=words):
        make_split(ELPV, setting, 10, None, 42, selection, **options)


def test_one_source_unit_cannot_be_folded() -> None:
    files = [ImageFile(f"train/good/{n:03}.png", 0, "good", split="train", group=f"g{n}") for n in range(60)]
    files += [ImageFile(f"test/good/{n:03}.png", 0, "good", split="test", group=f"t{n}") for n in range(12)]
    # marked for training by their maker, all of one part
    files += [ImageFile(f"train/hole/{n:03}.png", 1, "hole", split="train", group="one") for n in range(8)]
    files += [ImageFile(f"test/hole/{n:03}.png", 1, "hole", split="test", group=f"b{n}") for n in range(2)]
    with pytest.raises(DataError, match="two source units at least"):
        make_split(DataSet("memory", Path("/nowhere"), tuple(files)), "general", 1, None, 42, "cross", folds=3)


def made(kinds: str, groups: str) -> tuple[ImageFile, ...]:
    return tuple(
        ImageFile(f"{n:03}.png", 1, kind, split=None, group=group)
        for n, (kind, group) in enumerate(zip(kinds, groups, strict=True))
    )


def test_a_source_unit_is_never_cut() -> None:
    parts = cross_folds(made("aabbaabb", "xxyyzzww"), 4, 0)
    assert sorted(map(len, parts)) == [2, 2, 2, 2]
    for part in parts:
        assert len({file.group for file in part}) == 1
    assert len(cross_folds(made("aabb", "xxyy"), 4, 0)) == 2
    assert cross_folds(made("aabb", "xxxx"), 3, 0) == []
    # kinds of one image each are folded too
    assert sorted(len(part) for part in cross_folds(made("abcdef", "uvwxyz"), 3, 0)) == [2, 2, 2]
