"""Replicates of a trial one after another: their one curve by hand, and in a worker with interruptions anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sctune.config import Task, TrialConfig
from sctune.data.split import split_for
from sctune.report import EpochReport
from sctune.train.trainer import Trainer
from sctune.trial.building import TrialSpec
from sctune.trial.checkpoint import TrialStore
from sctune.trial.course import Course
from sctune.trial.trainable import SaliencyCutTrainable

METRIC = "selection_auroc"
EPOCHS = 2
SEEDS = (3, 4, 9)


def of_task(key: str, epoch: int, value: float, loss: float = 1.0, epochs: int = EPOCHS) -> dict[str, EpochReport]:
    return {key: EpochReport(epoch, epochs, {METRIC: value, "loss": loss, "seconds": 2.0}, {key: [value]})}


def test_the_curve_of_two_replicates_by_hand() -> None:
    course = Course([Task(seed=1), Task(seed=2)], 2, EPOCHS)
    assert [task.seed for task in course.tasks] == [1]
    curve = []
    for seed, epoch, value, loss in ((1, 1, 0.6, 4.0), (1, 2, 0.8, 3.0), (2, 1, 0.2, 2.0), (2, 2, 0.5, 1.0)):
        assert [task.seed for task in course.tasks] == [seed]
        report = course.report(of_task(f"seed{seed}", epoch, value, loss))
        course.told(report)
        curve.append(report)
    assert course.tasks == [] and [one.epoch for one in curve] == [1, 2, 3, 4] and {one.epochs for one in curve} == {4}
    # within the second replicate the curve stands still
    assert [one.value for one in curve] == [0.6, 0.8, 0.8, pytest.approx(0.65)]
    assert [one.last for one in curve] == [False, False, False, True]
    assert [one.metrics["loss"] for one in curve] == [4.0, 3.0, 2.0, 2.0]
    assert [one.metrics["seconds"] for one in curve] == [2.0] * 4
    assert [one.metrics[f"{METRIC}_worst"] for one in curve] == [0.6, 0.8, 0.8, 0.5]
    # what is trained now is shown under its own name
    assert curve[2].metrics[f"{METRIC}/seed1"] == 0.8 and curve[2].metrics[f"{METRIC}/seed2"] == 0.2
    assert [set(one.scores) for one in curve] == [{"seed1"}, {"seed1"}, {"seed1"}, {"seed1", "seed2"}]
    assert curve[2].scores == {"seed1": [0.8]}


def test_several_tasks_of_a_replicate_go_together_and_a_method_without_epochs_skips_them() -> None:
    tasks = [Task(seed=seed, category=category) for seed in (1, 2) for category in ("a", "b")]
    course = Course(tasks, 2, 6)
    first = course.report(of_task("a-seed1", 1, 0.6, epochs=1) | of_task("b-seed1", 1, 0.8, epochs=1))
    assert (first.epoch, first.epochs, first.value) == (6, 12, pytest.approx(0.7)) and course.ends(first.epoch)
    course.told(first)
    assert [task.key for task in course.tasks] == ["a-seed2", "b-seed2"]
    second = course.report(of_task("a-seed2", 1, 0.1, epochs=1) | of_task("b-seed2", 1, 0.3, epochs=1))
    assert second.last and second.value == pytest.approx((0.6 + 0.8 + 0.1 + 0.3) / 4)
    assert second.metrics[f"{METRIC}_worst"] == 0.1
    with pytest.raises(ValueError, match="tasks of 2 seeds are no 3 replicates"):
        Course(tasks, 3, 6)


def test_each_replicate_counts_as_much_whatever_its_folds() -> None:
    tasks = [Task(seed=1, fold=fold, folds=3) for fold in range(3)] + [Task(seed=2, fold=0, folds=2)]
    course = Course(tasks, 2, 1)
    assert len(course.tasks) == 3
    course.told(course.report({k: v for task in tasks[:3] for k, v in of_task(task.key, 1, 0.9, epochs=1).items()}))
    assert [task.seed for task in course.tasks] == [2]
    last = course.report(of_task(tasks[3].key, 1, 0.5, epochs=1))
    assert last.value == pytest.approx((0.9 + 0.5) / 2) and len(last.scores) == 4


def test_a_trial_that_is_trained_once_is_reported_as_ever() -> None:
    course = Course([Task(seed=1)], 1, 0)
    report = course.report(of_task("seed1", 2, 0.7))
    assert report == EpochReport(2, 2, {METRIC: 0.7, "loss": 1.0, "seconds": 2.0}, {"seed1": [0.7]})
    assert not course.ends(2) and not course.several


def make_trial(tiny: TrialConfig, root: Path, attempt: int, saved: list[int] | None = None) -> Any:
    """Trial 5 of three replicates; saved: epochs after which there is a checkpoint beside a replicate's end."""
    config = tiny.override({"budget.epochs": EPOCHS})
    tasks = [Task(source=config.data.source, seed=seed) for seed in SEEDS]
    spec = TrialSpec(
        config=config.model_dump(),
        tasks=tasks,
        storage=str(root / "store"),
        cache=str(root / "cache"),
        checkpoint_epochs=saved or [],
        checkpoint_interval=1e6,
        splits={task.key: split_for(config.for_task(task), task).digest for task in tasks},
        weights_sha256={},
        versions={},
        replicates=len(SEEDS),
        epochs=EPOCHS,
    )
    trial: Any = object.__new__(SaliencyCutTrainable)
    trial.setup({"number": 5, "params": {}, "attempt": attempt, "launch": 1, "first_launch": 1}, spec.model_dump())
    return trial


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TrialConfig], dict[str, list[EpochReport]]]:
    """Task -> what it reports where it is trained by itself."""
    found: dict[str, list[EpochReport]] = {}

    def train(tiny: TrialConfig) -> dict[str, list[EpochReport]]:
        if not found:
            cache = tmp_path_factory.mktemp("cache")
            for seed in SEEDS:
                config = tiny.override({"budget.epochs": EPOCHS})
                task = Task(source=config.data.source, seed=seed)
                found[task.key] = list(Trainer(config, task, cache=cache).fit())
        return found

    return train


LENGTH = EPOCHS * len(SEEDS)


@pytest.mark.parametrize("killed_after", [None, 1, 5])
def test_each_replicate_is_what_its_task_gives_alone_whatever_interrupts(
    tiny: TrialConfig, tmp_path: Path, alone: Any, killed_after: int | None
) -> None:
    """Killed within a replicate, with a checkpoint there or not, and at the end of one."""
    trial = make_trial(tiny, tmp_path, 1, saved=[5])
    if killed_after is not None:
        for _ in range(killed_after):
            trial.step()
        trial = make_trial(tiny, tmp_path, 2, saved=[5])
    rows = [trial.step() for _ in range(LENGTH)]
    expected, keys = alone(tiny), [f"seed{seed}" for seed in SEEDS]
    ends = [expected[key][-1] for key in keys]
    reports = [row["report"] for row in rows]
    assert [report.epoch for report in reports] == list(range(1, LENGTH + 1))
    assert [row["done"] for row in rows] == [False] * (LENGTH - 1) + [True]
    assert [report.value for report in reports[:EPOCHS]] == pytest.approx([one.value for one in expected[keys[0]]])
    for done in range(1, len(SEEDS) + 1):
        mean = sum(one.value for one in ends[:done]) / done
        assert reports[done * EPOCHS - 1].value == pytest.approx(mean)
        assert all(
            report.value == reports[done * EPOCHS - 1].value for report in reports[done * EPOCHS :][: EPOCHS - 1]
        )
    last = reports[-1]
    assert last.scores == {key: list(end.scores[key]) for key, end in zip(keys, ends, strict=True)}
    assert [last.metrics[f"{METRIC}/{key}"] for key in keys] == [one.value for one in ends]
    # the checkpoint has the model of every replicate, and only one replicate was in memory
    saved = TrialStore(str(tmp_path / "store"), 5).load_latest(1)
    assert saved is not None and list(saved.tasks) == keys and not trial.trainers


def test_a_replicate_that_is_promoted_later_goes_on_in_another_worker(tiny: TrialConfig, tmp_path: Path) -> None:
    """What a pause leaves: a checkpoint at the end of a replicate, from which the next one begins."""
    first = make_trial(tiny, tmp_path, 1)
    before = [first.step()["report"] for _ in range(EPOCHS)]
    assert not first.trainers
    again = make_trial(tiny, tmp_path, 2)
    assert [again.step()["report"] for _ in range(EPOCHS)] == before and not again.trainers
    third = again.step()["report"]
    assert third.epoch == EPOCHS + 1 and [trainer.task.seed for trainer in again.trainers] == [SEEDS[1]]
    assert third.value == before[-1].value and third.scores == before[-1].scores
