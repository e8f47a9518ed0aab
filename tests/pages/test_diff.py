"""`sctune diff` on trials that are trained here: verdicts against a second implementation, pictures, refusals."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sctune.config import TrialConfig
from sctune.deploy.build import calibrate
from sctune.errors import CheckpointError, ConfigError, StudyError
from sctune.pages.diff import DiffOptions, DiffReport, diff_trials, summary_lines
from sctune.search.study.splits import study_splits
from sctune.search.study.study import Study
from sctune.train.trainer import Trainer
from sctune.trial.checkpoint import TrialStore
from tests.pages.studies import make_study, train_trial

RATE = 0.3
FIRST, SECOND = {"augment.threshold": 0.3, "optim.lr": 1e-3}, {"augment.threshold": 0.8, "optim.lr": 1e-2}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny: TrialConfig) -> Study:
    root = tmp_path_factory.mktemp("studies")
    # of random weights all scores are alike but for their last digits, which are another machine's
    made = make_study(root, tiny.override({"model.weights": "imagenet"}))
    train_trial(made, 0, FIRST)
    train_trial(made, 1, SECOND)
    train_trial(made, 2, {**FIRST, "optim.lr": 1.1e-3}, keep=False)
    return made


@pytest.fixture(scope="module")
def first(study: Study) -> DiffReport:
    return diff(study)


def diff(study: Study, first: int = 0, second: int = 1, options: DiffOptions | None = None) -> DiffReport:
    return diff_trials(
        study.folder.parent, study.name, first, second, options or DiffOptions(rate=RATE), lambda _: None
    )


def judged(study: Study, number: int, params: dict[str, float]) -> tuple[dict[str, float], float]:
    """Path -> score, and the threshold: the k-th lowest calibration score, k = ceil((n + 1) (1 - rate))."""
    saved = TrialStore(study.manifest.storage_path, number).load_latest()
    assert saved is not None
    trainer = Trainer(study.manifest.config_of(params), study.manifest.tasks[0])
    trainer.load_state(*saved.tasks["seed42"])
    found = calibrate(trainer)
    assert found is not None
    ordered = sorted(found.scores)
    scores = dict(zip(trainer.selection.paths, trainer.method.score(trainer.selection.images), strict=True))
    return scores, ordered[min(math.ceil((len(ordered) + 1) * (1 - RATE)), len(ordered)) - 1]


def test_flips_are_those_of_each_trials_own_threshold(study: Study, tmp_path: Path) -> None:
    report = diff(study, options=DiffOptions(rate=RATE, out=tmp_path / "new" / "out"))
    (a, cut_a), (b, cut_b) = judged(study, 0, FIRST), judged(study, 1, SECOND)
    flips = {path for path in a if (a[path] > cut_a) != (b[path] > cut_b)}
    assert flips, "the two trials are far enough apart"
    assert {one.path for one in report.flips} == flips
    assert set(report.changes) == {"augment.threshold", "optim.lr"}
    for one in report.images:
        assert one.ranks[0] == 1 + sum(score > a[one.path] for score in a.values())
        assert one.right in (None, 0, 1) and (one.right is None) == (one.path not in flips)
    assert report.warnings and "not in MLflow" in report.warnings[0]
    assert f"{len(flips)} of {len(a)} verdicts flip" in summary_lines(report)[-1]
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == sorted(p.name for p in report.files)
    with report.files[1].open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["path"] for row in rows if row["flips"] == "1"} == flips and len(rows) == len(a)
    document = json.loads(report.files[2].read_text())
    assert len(document["flips"]) == len(flips) and document["thresholds"][0]["value"] == cut_a
    assert np.asarray(Image.open(report.files[0]).convert("L")).std() > 15


def test_no_image_of_the_test_pool_is_listed_or_opened(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    (split,) = study_splits(study.manifest).values()
    held = {str(split.root / file.path) for file in split.test}
    opened: list[str] = []
    real = Image.open

    def watch(source: Any, mode: Any = "r", formats: Any = None) -> Any:
        opened.append(str(source))
        return real(source, mode, formats)

    monkeypatch.setattr(Image, "open", watch)
    report = diff(study)
    assert opened, "the development pool is decoded here, into this test's own cache"
    assert not {str(split.root / one.path) for one in report.images} & held
    assert not set(opened) & held


def test_the_files_are_in_the_studys_folder_and_come_out_again(study: Study, first: DiffReport) -> None:
    assert {path.parent for path in first.files} == {study.folder / "diff"}
    contents = [path.read_bytes() for path in first.files]
    assert [path.read_bytes() for path in diff(study).files] == contents


def test_where_nothing_flips_the_largest_moves_are_shown(first: DiffReport) -> None:
    report = first
    calm = replace(report, images=tuple(replace(one, verdicts=(False, False)) for one in report.images))
    assert calm.flips == []
    moves = [abs(one.moved) for one in calm.moves]
    assert moves == sorted((abs(one.moved) for one in report.images), reverse=True)[: len(moves)]
    assert "largest moves in rank" in summary_lines(calm)[-1]


def test_what_is_refused(study: Study, tmp_path: Path, tiny: TrialConfig) -> None:
    with pytest.raises(ConfigError, match="trial 0 is compared with itself"):
        diff(study, 0, 0)
    with pytest.raises(CheckpointError, match="trial 2 has no checkpoint any more"):
        diff(study, 0, 2)
    with pytest.raises(StudyError, match="no trial 9; its trials: 0, 1, 2"):
        diff(study, 9, 1)
    with pytest.raises(StudyError, match="no task 'other'"):
        diff(study, options=DiffOptions(task="other"))
    with pytest.raises(ConfigError, match=r"a false-alarm rate of 2"):
        diff(study, options=DiffOptions(rate=2.0))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*file.* --out"):
        diff(study, options=DiffOptions(rate=RATE, out=tmp_path / "file"))
    on_test = make_study(tmp_path, tiny.override({"data.selection": "test"}), "test")
    with pytest.raises(ConfigError, match="selects on its test images"):
        diff(on_test)


def test_trials_of_two_methods_differ_in_the_fields_of_both(tmp_path: Path, tiny: TrialConfig) -> None:
    names = ("gaussian", "patch_bank")
    space = {"name": "two", "variants": {name: {"method.name": name} for name in names}}
    made = make_study(tmp_path, tiny, space=space)
    for number, name in enumerate(names):
        train_trial(made, number, {"variant": name})
    one, two = (TrialConfig().override({"method.name": name}).flat() for name in names)
    for first, second, a, b in ((0, 1, one, two), (1, 0, two, one)):
        changes = diff(made, first, second).changes
        assert changes["method.name"] == (a["method.name"], b["method.name"])
        only_a, only_b = a.keys() - b.keys(), b.keys() - a.keys()
        assert {name for name, (_, there) in changes.items() if there is None} >= only_a != set()
        assert {name: there for name, (here, there) in changes.items() if here is None and name in only_b} == {
            name: b[name] for name in only_b if b[name] is not None
        }
