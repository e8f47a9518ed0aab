"""Splits: the paper's lists, the pools and modes on real ELPV, a whole study without a leak, and every refusal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sctune.config import Task, TrialConfig
from sctune.data.catalog import DataSet, ImageFile, open_dataset
from sctune.data.split import Split, make_split, selection_subset, split_for
from sctune.errors import DataError

ELPV = open_dataset("elpv")


def memory(normals: int = 60, official: bool = True, **kinds: int) -> DataSet:
    """A data set of names only, in the MVTec layout."""
    files = [
        ImageFile(f"train/good/{n:03}.png", 0, "good", split="train" if official else None) for n in range(normals)
    ]
    files += [ImageFile(f"test/good/{n:03}.png", 0, "good", split="test" if official else None) for n in range(12)]
    for kind, count in kinds.items():
        split = "test" if official else None
        files += [ImageFile(f"test/{kind}/{n:03}.png", 1, kind, split=split) for n in range(count)]  # type: ignore[arg-type]
    return DataSet("memory", Path("/nowhere"), tuple(files))


def names(files: tuple[ImageFile, ...], label: int | None = None) -> set[str]:
    return {file.path for file in files if label is None or file.label == label}


def used(split: Split) -> set[str]:
    return names(split.train) | names(split.selection) | names(split.calibration)


def refusal(*arguments: object, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        make_split(*arguments, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("seed", [42, 43])
@pytest.mark.parametrize("count", [1, 10])
def test_paper_general_is_the_shuffled_sorted_listing(seed: int, count: int) -> None:
    # METHODS 5.1 written a second time, on the paths of the MVTec layout
    listed = sorted(f"test/{file.kind}/{Path(file.path).name}" for file in ELPV.anomalies)
    np.random.RandomState(seed).shuffle(listed)
    split = make_split(ELPV, "general", count, None, seed, "test")
    drawn = {f"test/{file.kind}/{Path(file.path).name}" for file in split.train if file.label}
    assert drawn == set(listed[:count])
    assert {f"test/{file.kind}/{Path(file.path).name}" for file in split.test if file.label} == set(listed[count:])
    assert split.summary()["train_normals"] == 1131 and split.summary()["test_normals"] == 377
    assert split.selection == split.test and split.calibration == () and split.mode == "test" and not split.makers


@pytest.mark.parametrize(("known", "others"), [("mono", 402), ("poly", 313)])
def test_paper_hard_tests_on_the_other_class_only(known: str, others: int) -> None:
    listed = sorted(file.path for file in ELPV.anomalies if file.kind == known)
    np.random.RandomState(44).shuffle(listed)
    split = make_split(ELPV, "hard", 10, known, 44, "test")
    assert names(split.train, 1) == set(listed[:10])
    assert split.summary()["test_anomalies"] == others and split.summary()["test_normals"] == 377
    assert {file.kind for file in split.test if file.label} == {"mono", "poly"} - {known}


def test_paper_anomaly_free_tests_on_all_anomalies() -> None:
    split = make_split(ELPV, "anomaly-free", 0, None, 42, "test")
    assert split.summary()["train_anomalies"] == 0 and split.summary()["test_anomalies"] == 715


def test_general_extra_counts_on_elpv() -> None:
    split = make_split("elpv", "general", 10, None, 42, "auto")
    assert split.mode == "extra" and "176 spare" in split.reason and not split.makers and split.folds == 0
    assert split.summary() == {
        "train_normals": 791,
        "train_anomalies": 10,
        "selection_normals": 170,
        "selection_anomalies": 176,
        "calibration_normals": 170,
        "calibration_anomalies": 0,
        "test_normals": 377,
        "test_anomalies": 529,
    }
    assert len(split.development) == 1131 + 186
    assert names(split.development).isdisjoint(names(split.test))


def test_hard_and_anomaly_free_modes_on_elpv() -> None:
    hard = make_split(ELPV, "hard", 10, "mono", 42, "auto")
    assert hard.mode == "extra" and hard.makers and hard.summary()["selection_anomalies"] == 303
    assert hard.summary()["test_anomalies"] == 402 and len(hard.development) == 1131 + 313
    free = make_split(ELPV, "anomaly-free", 0, None, 42, "auto")
    assert free.mode == "proxy" and free.makers and free.summary()["selection_anomalies"] == 0
    assert free.summary()["test_anomalies"] == 715 and len(free.development) == 1131


def test_a_trial_seed_redraws_the_seen_anomalies_and_nothing_else() -> None:
    first, second = (make_split(ELPV, "general", 10, None, seed, "extra") for seed in (42, 43))
    assert names(first.train, 1) != names(second.train, 1)
    assert names(first.train, 0) == names(second.train, 0) and first.calibration == second.calibration
    assert first.test == second.test and first.development == second.development
    assert names(first.selection, 0) == names(second.selection, 0) and first.digest != second.digest
    other = make_split(ELPV, "general", 10, None, 42, "extra", partition_seed=1)
    assert other.test != first.test and names(other.test, 0) == names(first.test, 0)
    assert names(other.selection, 0) != names(first.selection, 0)


@pytest.mark.parametrize(
    ("setting", "count", "known"),
    [
        ("general", 10, None),
        ("general", 1, None),
        ("general", "all", None),
        ("hard", 10, "poly"),
        ("anomaly-free", 0, None),
    ],
)
def test_nothing_of_a_whole_study_is_ever_tested_on(setting: str, count: int, known: str | None) -> None:
    touched: set[str] = set()
    tested: set[str] = set()
    read: set[str] = set()
    for seed in range(42, 47):
        for mode in ("auto", "extra", "seen", "proxy"):
            for fold in (None, 0, 1):
                try:
                    split = make_split(ELPV, setting, count, known, seed, mode, fold=fold)
                except DataError:
                    continue
                touched |= used(split)
                tested |= names(split.test)
                read |= names(split.development)
    assert len(touched) >= 1131 and len(tested) > 377
    assert touched <= read and read.isdisjoint(tested)


def test_seen_folds_cover_the_seen_anomalies_by_whole_types() -> None:
    data = memory(crack=15, dent=15, hole=15)
    splits = [make_split(data, "general", 12, None, 7, "seen", fold=fold, folds=3) for fold in range(3)]
    assert {split.folds for split in splits} == {3} and {split.mode for split in splits} == {"seen"}
    held = [names(split.selection, 1) for split in splits]
    assert len(set.union(*held)) == sum(map(len, held)) == 12
    for split in splits:
        assert names(split.train, 1) == set.union(*held) - names(split.selection, 1)
        kinds = [{file.kind for file in files if file.label} for files in (split.train, split.selection)]
        assert kinds[0].isdisjoint(kinds[1]) and kinds[1]
    assert make_split(data, "general", 12, None, 7, "seen", folds=3) == splits[0]
    assert make_split(data, "general", 12, None, 7, "seen", folds=9).folds == 3
    assert "3 folds" in refusal(data, "general", 12, None, 7, "seen", fold=3, folds=9)


def test_seen_folds_of_one_type_are_even() -> None:
    splits = [make_split(memory(crack=40), "general", 11, None, 0, "seen", fold=fold, folds=5) for fold in range(5)]
    assert sorted(split.summary()["selection_anomalies"] for split in splits) == [2, 2, 2, 2, 3]


@pytest.mark.parametrize(
    ("kinds", "setting", "known", "count", "mode"),
    [
        ({"crack": 90}, "general", None, 10, "extra"),  # (90 - 10) / 4 = 20 spare
        ({"crack": 86}, "general", None, 10, "seen"),  # 19 spare
        ({"crack": 200}, "general", None, 3, "proxy"),
        ({"crack": 30, "dent": 5}, "hard", "crack", 10, "extra"),
        ({"crack": 29, "dent": 5}, "hard", "crack", 10, "seen"),
        ({"crack": 5, "dent": 5}, "hard", "crack", 3, "proxy"),
    ],
)
def test_auto_mode(kinds: dict[str, int], setting: str, known: str | None, count: int, mode: str) -> None:
    split = make_split(memory(**kinds), setting, count, known, 42, "auto")
    assert split.mode == mode and split.makers == (setting == "hard" or mode == "proxy")
    assert (split.summary()["selection_anomalies"] > 0) == (mode != "proxy")
    assert split.reason and "\n" not in split.reason


def test_explicit_modes_are_honoured_or_refused() -> None:
    data = memory(crack=90, dent=4)
    assert make_split(data, "general", 1, None, 42, "extra").mode == "extra"
    assert make_split(data, "general", 10, None, 42, "proxy").makers
    assert "needs 4 anomalies" in refusal(data, "general", 3, None, 42, "seen")
    assert "needs 1 spare" in refusal(data, "hard", 4, "dent", 42, "extra")
    assert "anomaly-free takes auto or proxy" in refusal(data, "anomaly-free", 0, None, 42, "seen")
    assert "goes with selection mode seen" in refusal(data, "general", 10, None, 42, "extra", fold=0)
    assert "did you mean 'extra'" in refusal(data, "general", 10, None, 42, "extras")
    assert "did you mean 'general'" in refusal(data, "genral", 10, None, 42, "auto")


def test_more_anomalies_than_there_are_give_one_warning() -> None:
    data = memory(crack=20, dent=20)
    split = make_split(data, "general", 500, None, 42, "proxy")
    assert len(split.warnings) == 1 and "500 anomalies asked for, 30 can be trained on" in split.warnings[0]
    assert split.summary()["train_anomalies"] == 30 and split.summary()["test_anomalies"] == 10
    assert make_split(data, "general", "all", None, 42, "proxy") == replace(split, warnings=())
    hard = make_split(data, "hard", 500, "dent", 42, "test")
    assert len(hard.warnings) == 1 and hard.summary()["train_anomalies"] == 20
    assert "no anomalous image to test on" in refusal(data, "general", 40, None, 42, "test")


def test_what_cannot_be_split_is_refused() -> None:
    data = memory(crack=20, dent=20)
    assert "did you mean 'crack'" in refusal(data, "hard", 1, "crak", 42, "auto")
    assert "did you mean 'crack'" in refusal(data, "hard", 1, "crak", 42, "test")
    assert "known: crack, dent" in refusal(data, "hard", 1, "xyzzy", 42, "auto")
    assert "other classes" in refusal(memory(crack=20), "hard", 1, "crack", 42, "auto")
    assert "no anomalous images" in refusal(memory(), "general", 1, None, 42, "auto")
    for mode in ("auto", "test"):
        for count in (1, "all"):
            text = refusal(memory(crack=1), "general", count, None, 42, mode)
            assert "1 anomalous image; the general setting needs 2, one to train on and one to test on" in text
            assert "data.setting=anomaly-free" in text and "data.group" not in text
    assert "29 normal images" in refusal(memory(normals=29, crack=9), "general", 1, None, 42, "auto")
    assert "trains on 1 at least" in refusal(data, "general", 0, None, 42, "auto")
    one_unit = DataSet("unit", data.root, tuple(replace(file, group="g" if file.label else "") for file in data.files))
    assert "none is left for the test" in refusal(one_unit, "general", 4, None, 42, "auto")
    coarse = DataSet("coarse", data.root, tuple(replace(file, group=str(file.split)) for file in data.files))
    assert "too few to hold some out" in refusal(coarse, "anomaly-free", 0, None, 42, "auto")
    paired = tuple(replace(f, group=f.path.replace("test/good", "train/good")) for f in data.files)
    assert "every normal test image" in refusal(DataSet("p", data.root, paired), "general", 4, None, 42, "auto")
    mixed = DataSet("mixed", data.root, tuple(replace(f, split=None) if "01" in f.path else f for f in data.files))
    assert "have no split" in refusal(mixed, "general", 4, None, 42, "auto")


def test_thirty_normals_are_enough_and_ten_are_held_out_each() -> None:
    summary = make_split(memory(normals=30, crack=9), "general", 4, None, 42, "auto").summary()
    assert [summary[f"{name}_normals"] for name in ("train", "selection", "calibration", "test")] == [10, 10, 10, 12]


def test_more_normals_calibrate_where_asked() -> None:
    config = TrialConfig(seed=42)
    usual, larger = (
        split_for(one, Task(seed=42), ELPV) for one in (config, config.override({"data.calibration_share": 0.3}))
    )
    assert [len(split.calibration) for split in (usual, larger)] == [170, 339]
    assert names(usual.calibration) < names(larger.calibration)
    # they come from the training images alone
    assert names(larger.train) == names(usual.train) - names(larger.calibration)
    assert (larger.selection, larger.test) == (usual.selection, usual.test)
    smaller = make_split(memory(normals=100, crack=9), "general", 4, None, 42, "auto", calibration_share=0.05)
    assert smaller.summary()["calibration_normals"] == 10


def test_too_large_a_calibration_is_refused() -> None:
    small = memory(normals=38, crack=9)
    assert make_split(small, "general", 4, None, 42, "auto").summary()["train_normals"] == 18
    line = refusal(small, "general", 4, None, 42, "auto", calibration_share=0.5)
    assert "memory: 38 source units" in line and "smaller data.calibration_share than 0.5" in line
    line = refusal(ELPV, "general", 10, None, 42, "test", calibration_share=0.3)
    assert "data.calibration_share=0.3" in line and "leave it at its default" in line


def test_own_data_without_a_split_gets_one() -> None:
    data = memory(official=False, crack=40)
    split = make_split(data, "general", 8, None, 42, "auto")
    assert split.summary()["test_normals"] == 18 and len(split.warnings) == 1 and "18 of 72" in split.warnings[0]
    assert make_split(data, "general", 8, None, 43, "auto").test == split.test
    assert make_split(data, "general", 8, None, 42, "auto", partition_seed=5).test != split.test


def test_anomalies_marked_for_training_are_never_tested_on() -> None:
    data = memory(crack=40, dent=16)
    files = tuple(replace(file, split="train") if file.label and "/00" in file.path else file for file in data.files)
    marked = DataSet("marked", data.root, files)
    trained = {file.path for file in files if file.label and file.split == "train"}
    for mode in ("proxy", "test"):
        split = make_split(marked, "general", "all", None, 42, mode)
        assert names(split.train, 1) == trained and names(split.test, 1) == names(data.anomalies) - trained
    hard = make_split(marked, "hard", "all", "crack", 42, "test")
    assert names(hard.train, 1) == {path for path in trained if "crack" in path}


def test_official_folders_that_cut_a_unit_lose_the_test_copies() -> None:
    data = memory(crack=40)
    shared = {"train/good/000.png", "test/good/000.png", "test/crack/000.png"}
    files = tuple(replace(file, group="strip") if file.path in shared else file for file in data.files)
    for mode in ("extra", "test"):
        split = make_split(DataSet("strips", data.root, files), "general", 10, None, 42, mode)
        assert "test/good/000.png" not in names(split.test) and "test/crack/000.png" not in names(split.test)
        assert any("share a source unit" in warning for warning in split.warnings)


def test_parts_seen_both_whole_and_broken_keep_to_one_list() -> None:
    # every normal shares its source unit with an anomaly: what is held out takes its anomaly along
    data = memory(crack=60, dent=20)
    files = tuple(
        replace(f, group=Path(f.path).stem) if "train/" in f.path or "crack" in f.path else f for f in data.files
    )
    for seed in range(5):
        split = make_split(DataSet("parts", data.root, files), "general", 40, None, seed, "auto")
        lists = [
            {file.group for file in files} for files in (split.train, split.selection, split.calibration, split.test)
        ]
        assert sum(map(len, lists)) == len(set.union(*lists))


def test_selection_subset_is_stratified_and_stable() -> None:
    split = make_split(ELPV, "general", 10, None, 42, "extra")
    subset = selection_subset(split, 64, 0)
    assert subset == selection_subset(split, 64, 0) and set(subset) <= set(split.selection)
    kinds = Counter(file.kind for file in subset)
    everything = Counter(file.kind for file in split.selection)
    assert kinds["good"] == 64 and kinds["mono"] + kinds["poly"] == 64
    assert abs(kinds["mono"] - 64 * everything["mono"] / 176) < 1
    assert list(subset) == sorted(subset, key=lambda file: file.path)
    assert selection_subset(split, None, 0) == split.selection
    assert selection_subset(split, 64, 1) != subset
    other = selection_subset(make_split(ELPV, "general", 10, None, 43, "extra"), 64, 0)
    assert names(other, 0) == names(subset, 0)


def test_split_for_reads_configuration_and_task() -> None:
    task = Task(setting="hard", known_class="poly", seed=43)
    config = TrialConfig.load({"data": {"n_anomalies": 6, "partition_seed": 3, "selection": "seen"}})
    expected = make_split("elpv", "hard", 6, "poly", 43, "seen", partition_seed=3)
    assert split_for(config, task) == expected
    folded = split_for(config, task.model_copy(update={"fold": 2, "folds": 3}))
    assert folded == make_split("elpv", "hard", 6, "poly", 43, "seen", partition_seed=3, fold=2, folds=3)
    assert split_for(config.override({"data.selection": "auto"}), Task(setting="anomaly-free")).mode == "proxy"


def test_processes_agree_whatever_their_hash_seed() -> None:
    code = (
        "from sctune.data.split import make_split, selection_subset\n"
        "for mode in ('extra', 'seen', 'test'):\n"
        "    split = make_split('elpv', 'general', 10, None, 42, mode, group=r'cell(\\d+)\\.')\n"
        "    print(split.digest, [file.path for file in selection_subset(split, 9, 0)])\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    outputs = [process.communicate(timeout=100)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert outputs[0] == outputs[1] and len(outputs[0].splitlines()) == 3
