"""In which order another sampler would have tried the trials of a study: by hand, and by the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from scipy import stats
from typer.testing import CliRunner

from sctune.cli import app
from sctune.config import TrialConfig
from sctune.errors import ConfigError
from sctune.search.simulate.of_study import StoredTrials, lines_of, table_of
from sctune.search.study.manifest import SchedulerSpec
from tests.builders import make_manifest, make_space
from tests.pages.studies import make_study, record_trial
from tests.search.tables import one_choice

EPOCHS = 4


def stored(folder: Path, values: list[list[float]], parameters: dict[str, Any], points: list[dict[str, Any]]) -> Any:
    """A study whose trials ended where their values end: manifest and trials."""
    space = make_space(folder, parameters=parameters, set={"budget.epochs": EPOCHS, "model.patch_place": "grid2d"})
    scheduler = SchedulerSpec(name="asha", grace=1, factor=2)
    manifest = make_manifest(space, sampler="tpe", scheduler=scheduler, trials=len(values), look_behind=2)
    return manifest, [trial_of(space, number, *one) for number, one in enumerate(zip(points, values, strict=True))]


def trial_of(space: Any, number: int, point: dict[str, Any], curve: list[float]) -> FrozenTrial:
    state = TrialState.FAIL if not curve else TrialState.COMPLETE if len(curve) == EPOCHS else TrialState.PRUNED
    trial = optuna.trial.create_trial(
        state=state,
        value=None if state is TrialState.FAIL else curve[-1],
        params=space.encode(point),
        distributions={name: space.by_name[name].distribution() for name in point},
        intermediate_values=dict(enumerate(curve, start=1)),
        user_attrs={
            f"report:{n + 1}": {"metrics": {"seconds": 2.0}, "time": 10 * number + n} for n in range(len(curve))
        },
    )
    trial.number = number
    return trial


def test_at_random_any_trial_may_come_when_it_will(tmp_path: Path) -> None:
    parameters, points = one_choice(6)
    # a failure is none of the trials
    values = [[0.5, 0.6, 0.7, 0.7], [0.3], [0.6, 0.7, 0.8, 0.9], [], [0.5, 0.5], [0.4, 0.5, 0.6, 0.65]]
    own = StoredTrials(*stored(tmp_path, values, parameters, points))
    assert [trial.number for trial in own.trials] == [0, 1, 2, 4, 5] and own.best == 2 and own.spacing == 1
    runs = [own._search("random", seed) for seed in range(300)]
    for run in runs:
        assert sorted(trial.place for trial in run.trials) == list(range(5))
        # each ends where it did, with what it had
        assert {one.place: (one.epochs, one.value) for one in run.trials} == {
            0: (4, 0.7), 1: (1, 0.3), 2: (4, 0.9), 3: (2, 0.5), 4: (4, 0.65)
        }  # fmt: skip
        assert {one.place for one in run.trials if one.state is TrialState.COMPLETE} == {0, 2, 4} and run.seconds == 30
    after = np.bincount([[one.place for one in run.trials].index(2) for run in runs], minlength=5)
    assert stats.chisquare(after).pvalue > 1e-3
    found = own.resampled("random", 300)
    assert found.found == tuple(np.quantile(np.repeat(np.arange(1, 6), after), (0.25, 0.5, 0.75)))
    assert found.unknown == 0 and found.trials == 5


def test_a_sampler_that_learns_comes_to_the_best_sooner(tmp_path: Path) -> None:
    places = np.linspace(0.1, 0.9, 41)
    points = [{"augment.threshold": float(place)} for place in np.random.default_rng(0).permutation(places)]
    values = [[0.9 - abs(point["augment.threshold"] - 0.5)] * EPOCHS for point in points]
    flat = {"augment.threshold": {"type": "float", "low": 0.1, "high": 0.9}}
    own = StoredTrials(*stored(tmp_path, values, flat, points))
    rows = [own.resampled(name, 12) for name in ("random", "tpe")]
    assert rows[1].found[1] < rows[0].found[1]
    assert rows[0].half is not None and rows[1].half is not None and rows[1].half >= rows[0].half - 1e-9
    # trials lie everywhere, at most half a step away
    assert all(row.unknown == 0 for row in rows)
    head, cells = table_of(rows, own.objective)
    assert [len(line) for line in cells] == [len(head)] * 2 and cells[0][0] == "random"
    assert "the best is trial" in lines_of(own)[0]


def test_what_lies_far_from_every_trial_is_not_known(tmp_path: Path) -> None:
    points = [{"augment.threshold": place} for place in (0.1, 0.11, 0.12, 0.13)]
    flat = {"augment.threshold": {"type": "float", "low": 0.1, "high": 0.9}}
    own = StoredTrials(*stored(tmp_path, [[0.5] * EPOCHS] * 4, flat, points))
    unknown = own.resampled("random", 50).unknown
    assert own.spacing == pytest.approx(0.0125) and unknown is not None and 0.9 < unknown < 1


def test_what_has_no_order_is_refused(tmp_path: Path) -> None:
    parameters, points = one_choice(4)
    few = [[0.5] * EPOCHS] * 3 + [[]]
    with pytest.raises(ConfigError, match=r"study s has 3 ended trial\(s\), 3 of them full runs"):
        StoredTrials(*stored(tmp_path, few, parameters, points))
    with pytest.raises(ConfigError, match=r"4 ended trial\(s\), 0 of them full"):
        StoredTrials(*stored(tmp_path, [[0.5]] * 4, parameters, points))
    own = StoredTrials(*stored(tmp_path, [[0.5] * EPOCHS] * 4, parameters, points))
    with pytest.raises(ConfigError, match="--sampler grid"):
        own.resampled("grid", 1)


def test_the_command(tmp_path: Path, tiny: TrialConfig) -> None:
    root = tmp_path / "studies"
    study = make_study(root, tiny.override({"budget.epochs": 4}), trials=4)
    for number, epochs in enumerate((4, 1, 4, 2)):
        params = {"augment.threshold": 0.2 + number / 10, "optim.lr": 1e-3}
        record_trial(study, number, TrialState.COMPLETE if epochs == 4 else TrialState.PRUNED, params, epochs)
    study.record.close()

    def run(*words: str) -> Any:
        every = ["replay", study.name, "--study-root", str(root), "--sampler", *words]
        return CliRunner().invoke(app, every, env={"COLUMNS": "140"})

    document = json.loads(run("tpe,random", "--repeat", "3", "--json").stdout)
    assert [row["sampler"] for row in document["samplers"]] == ["tpe", "random"]
    assert all(row["searches"] == 3 and 1 <= row["found"]["median"] <= 4 for row in document["samplers"])
    shown = run("random", "--repeat", "3").stdout
    assert "in which order they would have tried the 4 trials" in shown and "nothing near" in shown
    assert isinstance(run("tpo").exception, ConfigError)
