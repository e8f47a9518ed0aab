"""`make_figures` on small studies that are trained here, without Ray and MLflow."""

from __future__ import annotations

import csv
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from PIL import Image
from sklearn.metrics import silhouette_score

from sctune.config import Task, TrialConfig
from sctune.data.decode import Decoding, decode_image
from sctune.data.split import split_for
from sctune.errors import CheckpointError, ConfigError, DataError, StudyError
from sctune.manage.figure_files import Cloud, FigureReport, maker_of
from sctune.manage.figures import FigureOptions, _notes, make_figures
from sctune.report import merge_reports
from sctune.search.space.definition import Space
from sctune.search.study.content import content_digest
from sctune.search.study.ledger import looks
from sctune.search.study.manifest import DataSpec, SchedulerSpec, SelectionSpec
from sctune.search.study.study import Study
from sctune.train.embedding import fitting_perplexity
from sctune.train.trainer import Trainer
from sctune.trial.checkpoint import TrialStore
from tests.builders import make_manifest

PARAMS = {"optim.lr": 0.01}
RANGE = {"type": "float", "low": 1e-4, "high": 0.5}
QUICK = {"limit": 12, "perplexity": 5.0}


def varied(config: TrialConfig) -> dict[str, float]:
    """What the one trial sets: a fast rate, or for a method without that field another that every method has."""
    return PARAMS if config.entry.looks_at("optim.lr") else {"data.balance": 0.5}


def create(root: Path, config: TrialConfig, seeds: tuple[int, ...] = (42,), name: str = "small") -> Study:
    """A study of these seeds without trials; its tracking store does not exist."""
    tasks = tuple(
        Task(source=config.data.source, setting=config.data.setting, known_class=config.data.known_class, seed=seed)
        for seed in seeds
    )
    splits = {task.key: split_for(config.for_task(task), task) for task in tasks}
    manifest = make_manifest(
        Space.from_dict({"parameters": {name: RANGE for name in varied(config)}}, config),
        name=name,
        profile="smoke",
        tasks=tasks,
        scheduler=SchedulerSpec(name="none"),
        trials=2,
        selection=SelectionSpec(mode=splits[tasks[0].key].mode),
        splits={key: split.digest for key, split in splits.items()},
        data=DataSpec(name="stripes", digest=content_digest(splits), attribution="Stripes by nobody"),
        storage_path=str(root / name),
        tracking_uri=f"sqlite:///{root / 'gone.db'}",
    )
    return Study.create(root, manifest)


def add_trial(study: Study, number: int, state: TrialState, keep: bool) -> None:
    """Train one epoch of each task and record it as trial `number`; keep: its checkpoint."""
    params = varied(study.manifest.trial_config())
    config = study.manifest.config_of(params)
    trainers = {task.key: Trainer(config, task) for task in study.manifest.tasks}
    report = merge_reports({key: trainer.run_epoch() for key, trainer in trainers.items()})
    if keep:
        states = {key: trainer.state() for key, trainer in trainers.items()}
        TrialStore(study.manifest.storage_path, number).save(1, 1, states, report.to_dict())
    trial = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params=params,
        distributions={name: optuna.distributions.FloatDistribution(1e-4, 0.5) for name in params},
        user_attrs={"params": params, "attempt": 1},
    )
    trial.number, trial.datetime_start = number, datetime.datetime(2026, 1, 1, 0, 0, number)
    study.record.start(trial)
    study.record.report(number, report, 1000)
    if state is not TrialState.RUNNING:
        study.record.finish(number, state, report.value, {})
    study.record.flush()


Make = Callable[..., FigureReport]


@pytest.fixture
def make(tmp_path: Path, tiny: TrialConfig) -> Make:
    """Train one trial with these changes to the small configuration, and make its figures with these options."""

    def run(changes: dict[str, Any] | None = None, **options: Any) -> FigureReport:
        root = tmp_path / "studies"
        if not (root / "small").exists():
            add_trial(create(root, tiny.override(changes or {})), 0, TrialState.COMPLETE, keep=True)
        return make_figures(root, "small", FigureOptions(**(QUICK | options)), lambda lines: None)

    return run


def rows_of(report: FigureReport) -> list[dict[str, str]]:
    (path,) = (path for path in report.files if path.name.endswith("features.csv"))
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_all_files_are_there_and_the_measures_are_those_of_the_features(
    make: Make, tmp_path: Path, tiny: TrialConfig, image_folder: Path
) -> None:
    report = make()
    folder = tmp_path / "studies" / "small" / "figures"
    names = ["features.png", "features.csv", "features.json", "views.png", "pseudo.png", "gallery.png"]
    assert list(report.files) == [folder / f"trial-0000-{name}" for name in names]
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in report.files)
    for path in report.files:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert np.asarray(picture.convert("L")).std() > 15, path.name
    # 10 normal images are held out: five donors, five receivers
    assert report.images == {"normal": 10, "seen": 4, "unseen": 8, "pseudo": 5}
    document = json.loads(report.files[2].read_text())
    assert (document["silhouettes"], document["images"]) == (report.silhouettes, report.images)
    assert (document["study"], document["trial"], document["epoch"], document["mode"]) == ("small", 0, 1, "extra")
    (warning,) = report.warnings
    assert "not in MLflow" in warning

    rows = [row for row in rows_of(report) if row["group"] in ("normal", "unseen")]
    images = np.stack([decode_image(image_folder / row["file"], Decoding(64, "stretch")) for row in rows])
    labels = [row["group"] for row in rows]
    trainer = Trainer(tiny.override(PARAMS))
    before = silhouette_score(trainer.method.detector.embed(images), labels)
    assert report.silhouettes["before"]["unseen"] == pytest.approx(before, abs=1e-5)
    saved = TrialStore(str(tmp_path / "studies" / "small"), 0).load_latest()
    assert saved is not None
    trainer.load_state(*saved.tasks["seed42"])
    after = silhouette_score(trainer.method.detector.embed(images), labels)
    assert report.silhouettes["after"]["unseen"] == pytest.approx(after, abs=1e-5)
    assert after != pytest.approx(before, abs=1e-6)


def test_the_same_figures_come_out_again_and_limits_hold(make: Make, tmp_path: Path) -> None:
    first = make(limit=4)
    assert first.images == {"normal": 4, "seen": 4, "unseen": 4, "pseudo": 4}
    contents = [path.read_bytes() for path in first.files]
    again = make(limit=4, trial=0, out=tmp_path / "new" / "folder")
    assert [path.read_bytes() for path in again.files] == contents
    assert {path.parent for path in again.files} == {tmp_path / "new" / "folder"}


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"data.setting": "hard", "data.known_class": "spot", "data.selection": "auto"}, {"spot"}),
        ({"data.setting": "anomaly-free", "data.selection": "auto"}, set()),
    ],
    ids=["hard", "anomaly-free"],
)
def test_unseen_ones_that_only_the_test_pool_has(make: Make, changes: dict[str, Any], shown: set[str]) -> None:
    closed = make(changes)
    assert closed.images["unseen"] == 0
    pool = "anomalies of the known class only" if shown else "no other anomalies"
    assert closed.warnings[0] == (
        f"unseen anomalies are not shown: the development pool holds {pool}; --test takes them from the test pool"
    )
    assert {row["type"] for row in rows_of(closed) if row["group"] == "seen"} == shown
    assert (closed.silhouettes["after"]["anomalies"] is None) == (not shown)
    opened = make(test=True)
    assert opened.test_pool_opened and not closed.test_pool_opened
    assert opened.images["unseen"] == 12
    assert {row["type"] for row in rows_of(opened) if row["group"] == "unseen"} == {"spot", "scratch", "patch"} - shown
    # beside the pictures without test images, not in their place
    assert not set(opened.files) & set(closed.files)
    assert all("-test-" in path.name for path in opened.files)


def test_a_study_that_selects_on_test_images_must_say_test(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"selects on its test images .* with --test"):
        make({"data.selection": "test"})
    report = make(test=True)
    assert (report.mode, report.images["unseen"]) == ("test", 12)


def test_without_pseudo_anomalies_there_is_no_picture_of_them(make: Make) -> None:
    report = make({"augment.kind": "none"})
    assert report.images["pseudo"] == 0
    assert report.silhouettes["after"]["pseudo"] is None
    assert "augment.kind=none makes no pseudo anomalies" in report.warnings
    assert [path.name for path in report.files if path.suffix == ".png"] == [
        "trial-0000-features.png",
        "trial-0000-views.png",
        "trial-0000-gallery.png",
    ]


def test_a_backbone_that_is_not_trained_is_said(make: Make) -> None:
    report = make({"model.freeze": 12})
    assert report.silhouettes["before"] == report.silhouettes["after"]
    assert any("both panels are equal: model.freeze=12" in line for line in report.warnings)


def test_a_method_that_shows_features_which_it_does_not_train(tiny: TrialConfig) -> None:
    cloud = Cloud(np.zeros((2, 4, 4, 3), np.uint8), ["normal", "unseen"], ["a", "b"], ["", "spot"])
    alike = {"before": np.zeros((2, 3)), "after": np.zeros((2, 3))}
    assert _notes(tiny.override({"method.name": "kdad"}), cloud, alike) == (
        "method kdad makes no pseudo anomalies",
        "both panels are equal: method kdad shows features that it does not train",
    )


def test_a_method_without_features_shows_what_it_makes_of_images(tmp_path: Path, tiny: TrialConfig) -> None:
    study = create(tmp_path, tiny.override({"method.name": "ssm", "method.width": 2}))
    add_trial(study, 0, TrialState.COMPLETE, keep=True)
    report = make_figures(tmp_path, "small", FigureOptions(), lambda lines: None)
    names = ["features.json", "views.png", "gallery.png"]
    assert [path.name for path in report.files] == [f"trial-0000-{name}" for name in names]
    assert report.silhouettes == {} and report.perplexity is None and looks(study) == []
    assert "no t-SNE: method ssm has no features of whole images" in report.warnings
    with Image.open(report.files[1]) as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    # a heat map has colours that neither grey images nor letters have
    assert len(np.unique(colours, axis=0)) > 500


def test_a_normal_image_and_unseen_anomalies_are_looked_at() -> None:
    def chosen(*groups: str) -> list[str]:
        cloud = Cloud(np.zeros((len(groups), 4, 4, 3), np.uint8), list(groups), [""] * len(groups), [""] * len(groups))
        return [groups[row] for row in cloud.looked_at]

    some = ["normal"] * 4 + ["seen"] * 3
    assert chosen(*some, *["unseen"] * 5, "pseudo") == ["normal", "unseen", "unseen"]
    assert chosen(*some, "unseen") == ["normal", "unseen", "seen"]
    assert chosen(*["normal"] * 4) == ["normal"] * 3
    assert chosen("normal", "pseudo") == ["normal", "pseudo"]


def test_pseudo_anomalies_are_named_after_what_makes_them(tiny: TrialConfig) -> None:
    assert maker_of(tiny.override({"augment.kind": "cutmix"})) == "cutmix"
    assert [maker_of(tiny.override({"method.name": name})) for name in ("cutpaste", "saoe")] == ["cutpaste", "saoe"]


def test_one_task_of_several_at_a_time(tmp_path: Path, tiny: TrialConfig) -> None:
    study = create(tmp_path, tiny, seeds=(1, 2))
    add_trial(study, 0, TrialState.COMPLETE, keep=True)
    reports = [
        make_figures(tmp_path, "small", FigureOptions(task=key, **QUICK), lambda lines: None) for key in (None, "seed2")
    ]
    assert [report.task for report in reports] == ["seed1", "seed2"]
    assert [report.files[0].name for report in reports] == [
        "trial-0000-seed1-features.png",
        "trial-0000-seed2-features.png",
    ]
    seen = [{row["file"] for row in rows_of(report) if row["group"] == "seen"} for report in reports]
    # each seed draws its own anomalies to train on
    assert seen[0] != seen[1]
    with pytest.raises(StudyError, match="has no task 'seed3'; did you mean 'seed"):
        make_figures(tmp_path, "small", FigureOptions(task="seed3"), lambda lines: None)


def test_which_trials_have_pictures(tmp_path: Path, tiny: TrialConfig) -> None:
    def figures(**options: Any) -> FigureReport:
        return make_figures(tmp_path, "small", FigureOptions(**(QUICK | options)), lambda lines: None)

    study = create(tmp_path, tiny)
    with pytest.raises(StudyError, match="no full run yet; go on with `sctune resume small`"):
        figures()
    add_trial(study, 0, TrialState.PRUNED, keep=False)
    with pytest.raises(CheckpointError, match=r"trial 0 has no checkpoint any more.*none is left"):
        figures(trial=0)
    add_trial(study, 1, TrialState.COMPLETE, keep=True)
    add_trial(study, 2, TrialState.RUNNING, keep=True)
    with pytest.raises(CheckpointError, match=r"trial 0 has no checkpoint any more.*--trial: 1, 2$"):
        figures(trial=0)
    with pytest.raises(StudyError, match=r"has no trial 7; its trials: 0, 1, 2$"):
        figures(trial=7)
    assert figures().trial == 1
    # a trial that is not done yet has pictures of its latest epoch
    assert (figures(trial=2).trial, figures(trial=2).epoch) == (2, 1)


def test_trouble_leaves_nothing_behind(make: Make, tmp_path: Path) -> None:
    make()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write figures to .*file.*--out"):
        make(out=tmp_path / "file")
    with pytest.raises(ConfigError, match=r"perplexity 0[.]2"):
        make(out=tmp_path / "none", perplexity=0.2)
    assert not (tmp_path / "none").exists()


def test_the_perplexity_that_was_used_is_told(make: Make) -> None:
    report = make(perplexity=300.0)
    assert report.perplexity == fitting_perplexity(sum(report.images.values()), 300.0) < 300


def test_other_images_than_those_of_the_study_are_refused(tmp_path: Path, tiny: TrialConfig) -> None:
    study = create(tmp_path, tiny)
    add_trial(study, 0, TrialState.COMPLETE, keep=True)
    path = study.folder / "study.json"
    path.write_text(path.read_text().replace(study.manifest.splits["seed42"], "0" * 64))
    with pytest.raises(DataError, match="are not those that study small began with"):
        make_figures(tmp_path, "small", FigureOptions(), lambda lines: None)
