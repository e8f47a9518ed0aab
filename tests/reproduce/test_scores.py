"""Scoring a trial's last checkpoint, and the files that keep the scores."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sctune.config import Task, TrialConfig
from sctune.errors import CheckpointError, DataError
from sctune.reproduce.cells import Asked
from sctune.reproduce.columns import before_training
from sctune.reproduce.plan import ReproduceOptions, TablePlan, make_plan
from sctune.reproduce.scores import PLAIN_ROWS, ScoreFolder, score_trial
from sctune.reproduce.studies import StudyPlan
from sctune.search.space.definition import Space
from sctune.search.study.leaderboard import TrialRow
from sctune.search.study.manifest import DataSpec, SchedulerSpec, SelectionSpec
from sctune.search.study.study import Study
from sctune.train.single import score_test
from sctune.train.trainer import Trainer
from sctune.trial.checkpoint import TrialStore
from tests.builders import make_manifest

FAST = {"model.weights": "random", "budget.epochs": 1, "budget.iterations": 1, "runtime.device": "cpu"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    folder = tmp_path / "data" / "mvtec" / "carpet"
    for part, count in {"train/good": 12, "test/good": 6, "test/cut": 4, "test/hole": 4}.items():
        (folder / part).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 60, (32, 32, 3)) + (120 if "good" in part else 60)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / part / f"{number:03d}.png")
    return folder.parents[1]


@pytest.fixture
def plan(root: Path) -> TablePlan:
    options = ReproduceOptions(
        "table2",
        Asked(categories=("carpet",), known_classes=("cut", "hole"), anomalies=(2,)),
        methods=("saliencycut",),
        seeds=(42, 43),
        profile="smoke",
        data_root=root,
        overrides=FAST,
        out=root.parent / "out",
    )
    return make_plan(options)


class Trained:
    """A study with one trial that has trained all its tasks, as the search leaves it."""

    def __init__(self, plan: TablePlan, root: Path) -> None:
        (self.plan,) = plan.studies
        (self.column,) = self.plan.columns
        config: TrialConfig = plan.setup.config(self.column).override(
            {"data.source": self.plan.place.source, "data.category": "carpet", "data.n_anomalies": 2}
            | {"data.known_class": "cut"}
        )
        tasks = [self.plan.task(cell, seed) for cell in self.plan.cells for seed in self.plan.seeds]
        manifest = make_manifest(
            Space.from_dict(self.plan.space, config),
            name=self.plan.name,
            profile="smoke",
            tasks=tuple(tasks),
            sampler="grid",
            scheduler=SchedulerSpec(name="none"),
            trials=1,
            selection=SelectionSpec(mode="test"),
            data=DataSpec(name="carpet", digest="abc"),
            storage_path=str(root.parent / "storage"),
            tracking_uri="sqlite:////mlflow.db",
        )
        self.study = Study.create(root.parent / "studies", manifest)
        self.trial = TrialRow(0, "COMPLETE", {"variant": "saliencycut"}, {1: 0.5}, 0.5, 1.0, None, None)
        self.trainers = {task.key: Trainer(config, task) for task in tasks}
        for trainer in self.trainers.values():
            list(trainer.fit())
        self.store = TrialStore(manifest.storage_path, 0)
        self.store.save(1, 1, {key: trainer.state() for key, trainer in self.trainers.items()}, last=True)


@pytest.fixture
def trained(plan: TablePlan, root: Path) -> Iterator[Trained]:
    made = Trained(plan, root)
    yield made
    made.study.record.close()


def test_every_test_image_is_scored_once_from_the_checkpoint(trained: Trained, tmp_path: Path) -> None:
    folder = ScoreFolder(tmp_path / "scores", trained.plan, trained.study.manifest.study_id)
    done = list(score_trial(trained.study, trained.trial, folder, trained.column))
    assert [(cell.kind, seed) for cell, seed, _ in done] == [(k, s) for k in ("cut", "hole") for s in (42, 43)]
    for cell, seed, rows in done:
        trainer = trained.trainers[trained.plan.task(cell, seed).key]
        assert rows == score_test(trainer)
        # the paper's protocol: all that is not trained on, and nothing of the known class
        assert {Path(path).parts[1] for path, _, _ in rows} == {"good", {"cut": "hole", "hole": "cut"}[str(cell.kind)]}
        assert [label for _, label, _ in rows].count(0) == 6 and len(rows) == 10
        stored = folder.read(trained.column, cell, seed)
        assert stored is not None
        assert list(zip(stored.paths, stored.labels.tolist(), stored.scores.tolist(), strict=True)) == rows
        assert (stored.pool, stored.subset) == ("mvtec/carpet", cell.row.label)
    assert folder.missing(trained.column) == []


def test_scores_of_a_newer_sctune_are_not_taken_over(plan: TablePlan, tmp_path: Path) -> None:
    owner = tmp_path / "scores" / f"{plan.studies[0].name}.json"
    owner.parent.mkdir()
    owner.write_text('{"format_version": 2, "study_id": "x"}')
    with pytest.raises(DataError, match="format_version 2, this sctune reads 1; update it"):
        ScoreFolder(tmp_path / "scores", plan.studies[0], "y")


def test_an_untrained_column_has_the_weights_of_the_start(trained: Trained, tmp_path: Path) -> None:
    trained.store.clear()
    folder, untrained = (
        ScoreFolder(tmp_path / "scores", trained.plan, trained.study.manifest.study_id),
        before_training(trained.column),
    )
    for cell, seed, rows in score_trial(trained.study, trained.trial, folder, untrained):
        trainer = trained.trainers[trained.plan.task(cell, seed).key]
        assert rows == score_test(Trainer(trainer.config, trainer.task))
        assert rows != score_test(trainer)
    assert folder.missing(untrained) == [] and len(folder.missing(trained.column)) == 4


@pytest.mark.parametrize("method", ["cutpaste", "saoe_no_outliers"])
def test_other_methods_score_before_their_training(root: Path, method: str) -> None:
    """CutPaste does in its table, and whatever takes labels in a control run."""
    asked = Asked(categories=("carpet",), known_classes=("cut",), anomalies=(2,))
    plan = make_plan(ReproduceOptions("table2", asked, (method,), (42,), "smoke", root, FAST, root.parent / "out"))
    (study,) = plan.studies
    config = plan.setup.config(study.columns[0]).override({"data.n_anomalies": 2})
    rows = score_test(Trainer(config, study.task(study.cells[0], 42)))
    scores = [score for _, _, score in rows]
    assert len(rows) == 10 and np.isfinite(scores).all() and len(set(scores)) > 1


def test_scored_cells_are_not_scored_again(trained: Trained, tmp_path: Path) -> None:
    folder = ScoreFolder(tmp_path / "scores", trained.plan, trained.study.manifest.study_id)
    list(score_trial(trained.study, trained.trial, folder, trained.column))
    assert list(score_trial(trained.study, trained.trial, folder, trained.column)) == []
    cell = trained.plan.cells[1]
    path = folder.find(trained.column, cell, 43)
    assert path is not None
    before = path.read_bytes()
    path.unlink()
    assert folder.missing(trained.column) == [(cell, 43)]
    again = list(score_trial(trained.study, trained.trial, folder, trained.column))
    assert [(c.kind, seed) for c, seed, _ in again] == [("hole", 43)]
    assert path.read_bytes() == before


def test_a_checkpoint_that_is_gone_is_told(trained: Trained, tmp_path: Path) -> None:
    trained.store.clear()
    folder = ScoreFolder(tmp_path / "scores", trained.plan, trained.study.manifest.study_id)
    with pytest.raises(CheckpointError, match=r"trial 0 has no checkpoint any more; remove .* to train it again"):
        list(score_trial(trained.study, trained.trial, folder, trained.column))


@pytest.mark.parametrize("count", [3, PLAIN_ROWS + 1])
def test_long_lists_are_compressed(plan: TablePlan, tmp_path: Path, count: int) -> None:
    (study,) = plan.studies
    folder, column, cell = ScoreFolder(tmp_path, study, "one"), study.columns[0], study.cells[0]
    assert folder.read(column, cell, 42) is None
    rows = [(f"test/é,{number}.png", number % 2, 1 / (number + 3)) for number in range(count)]
    path = folder.write(column, cell, 42, rows)
    assert path == folder.find(column, cell, 42)
    assert path.name == "saliencycut--carpet-cut-seed42.csv" + (".gz" if count > PLAIN_ROWS else "")
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    assert content.decode().splitlines()[0] == "path,label,score"
    stored = folder.read(column, cell, 42)
    assert stored is not None
    assert list(zip(stored.paths, stored.labels.tolist(), stored.scores.tolist(), strict=True)) == rows
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_scores_of_a_removed_study_are_not_read(plan: TablePlan, tmp_path: Path) -> None:
    """It was removed and trained again under its name: the old files are no scores of the new one."""
    (study,) = plan.studies
    column, (first, second) = study.columns[0], study.cells
    old = ScoreFolder(tmp_path, study, "old")
    for cell in (first, second):
        old.write(column, cell, 42, [("x.png", 0, 1.0), ("y.png", 1, 2.0)])
    new = ScoreFolder(tmp_path, study, "new")
    assert new.read(column, first, 42) is None and len(new.missing(column)) == 4
    new.write(column, first, 42, [("x.png", 0, 3.0), ("y.png", 1, 4.0)])
    again = ScoreFolder(tmp_path, study, "new")
    stored = again.read(column, first, 42)
    assert stored is not None and stored.scores.tolist() == [3.0, 4.0]
    assert again.read(column, second, 42) is None and len(list(again.folder.iterdir())) == 1
    # what belongs to nobody, or to one that cannot be told, is no better
    (owner,) = tmp_path.glob(f"{study.name}.json")
    for damage in (lambda: owner.write_text("{"), owner.unlink):
        damage()
        assert ScoreFolder(tmp_path, study, "new").find(column, first, 42) is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "path,label,score\n",
        "a,b,c\nx,0,1\n",
        "path,label,score\nx,0\n",
        "path,label,score\nx,0,1\ny,0,2\n",
        "path,label,score\nx,0,1\ny,1,nan\n",
    ],
)
def test_a_damaged_file_is_named(plan: TablePlan, tmp_path: Path, content: str) -> None:
    (study,) = plan.studies
    folder, column, cell = ScoreFolder(tmp_path, study, "one"), study.columns[0], study.cells[0]
    path = folder.write(column, cell, 42, [("x.png", 0, 1.0)])
    path.write_text(content)
    with pytest.raises(DataError, match=f"{path} cannot be read .*; remove it"):
        folder.read(column, cell, 42)


def test_tasks_are_those_of_the_search(plan: TablePlan) -> None:
    (study,) = plan.studies
    source = study.place.source
    expected = Task(source=source, category="carpet", setting="hard", known_class="hole", seed=43)
    assert study.task(study.cells[1], 43) == expected


def test_plan_is_one_study(plan: TablePlan) -> None:
    study: StudyPlan = plan.studies[0]
    assert (len(plan.studies), study.tasks, study.epochs, study.kinds) == (1, 4, 1, ("cut", "hole"))
