"""Studies side by side: the cells, the warnings, the paired differences and the cost by hand calculation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from typer.testing import CliRunner

from sctune.cli import app
from sctune.config import TrialConfig
from sctune.errors import StudyError
from sctune.metrics.objective import FPR95
from sctune.pages.compare import compare_studies
from sctune.pages.reading import view_study
from sctune.search.study.manifest import DataSpec, ResourceSpec, SelectionSpec
from sctune.search.study.splits import selection_labels, study_splits
from sctune.search.study.study import Study
from tests.pages.studies import drawn_scores, make_study, record_trial

PARAMS = {"augment.threshold": 0.4, "optim.lr": 1e-3}


def finished(root: Path, config: TrialConfig, name: str, shifts: tuple[float, ...], **changes: Any) -> Study:
    study = make_study(root, config, name, **changes)
    for number, shift in enumerate(shifts):
        params = {**PARAMS, "augment.threshold": 0.2 + number / 10}
        record_trial(study, number, TrialState.COMPLETE, params, scores=drawn_scores(study, shift))
    return study


def paired_bootstrap(study: Study, a: list[float], b: list[float], draws: int = 4000) -> tuple[float, float]:
    """A second implementation: difference of the AUROC values, and its spread over resampled images."""
    ((_, labels),) = selection_labels(study.manifest, study_splits(study.manifest)).items()
    truth, random = np.array(labels), np.random.default_rng(5)
    # 1 where a ranks an anomaly above a normal image and b does not, -1 the other way round
    won = [np.array(row)[truth == 1, None] > np.array(row)[None, truth == 0] for row in (a, b)]
    gain = won[0].astype(float) - won[1]
    rows, columns = (random.integers(size, size=(draws, size)) for size in gain.shape)
    gaps = [gain[row[:, None], column[None]].mean() for row, column in zip(rows, columns, strict=True)]
    return float(gain.mean()), float(np.std(gaps))


def test_where_lower_is_better_the_lower_one_stands_first(tmp_path: Path, tiny: TrialConfig) -> None:
    study = finished(tmp_path, tiny, "one", (1.0, 0.3), objective="fpr95")
    finished(tmp_path, tiny, "two", (0.3, 0.1), objective="fpr95")
    found = compare_studies(tmp_path, ["one", "two"])
    best = [view.result.best for view in found.views]
    assert [row.number for row in best if row] == [0, 0]
    values = [row.value for row in found.views[0].result.rows if row.value is not None]
    assert best[0] and best[0].value == min(values) < max(values)
    (pair,) = found.pairs
    assert (pair.first, pair.second) == ("one trial 0", "two trial 0")
    scores = [drawn_scores(study, shift)["seed42"] for shift in (1.0, 0.3)]
    ((_, labels),) = selection_labels(study.manifest, study_splits(study.manifest)).items()
    assert pair.gap is not None and pair.gap.difference == pytest.approx(FPR95.difference(labels, *scores)[0])
    assert pair.gap.difference < 0
    assert [one["objective"] for one in found.to_dict()["studies"]] == ["fpr95", "fpr95"]


def test_studies_of_two_objectives_are_not_compared(tmp_path: Path, tiny: TrialConfig) -> None:
    finished(tmp_path, tiny, "one", (1.0,))
    finished(tmp_path, tiny, "two", (1.0,), objective="ap")
    found = compare_studies(tmp_path, ["one", "two"])
    assert found.warnings == ("two is not comparable with one: objective ap, not auroc",)
    assert found.pairs[0].gap is None and found.pairs[0].reason == "they were searched by other objectives"


def test_two_studies_on_the_same_images_are_paired(tmp_path: Path, tiny: TrialConfig) -> None:
    one = finished(tmp_path, tiny, "one", (-0.5, 0.3))
    finished(tmp_path, tiny, "two", (1.2, 0.1))
    found = compare_studies(tmp_path, ["one", "two"])
    assert found.warnings == ()
    (pair,) = found.pairs
    # the higher one first: a difference reads as a gain
    assert (pair.first, pair.second) == ("two trial 0", "one trial 1")
    a, b = drawn_scores(one, 1.2)["seed42"], drawn_scores(one, 0.3)["seed42"]
    difference, spread = paired_bootstrap(one, a, b)
    assert pair.gap is not None
    assert pair.gap.difference == pytest.approx(difference, abs=1e-9)
    assert pair.gap.error == pytest.approx(spread, rel=0.1)
    rows = {name: cells for name, *cells in found.rows()}
    assert rows["best trial"] == ["1", "0"]
    assert rows["trials"] == ["2 COMPLETE", "2 COMPLETE"]
    assert rows["  augment.threshold"] == ["0.3", "0.2"]
    values = [view.result.best.value for view in found.views if view.result.best]
    assert [float(cell.split(" +- ")[0]) for cell in rows["best value"]] == pytest.approx(values, abs=1e-4)


def test_one_study_pairs_its_two_best(tmp_path: Path, tiny: TrialConfig) -> None:
    finished(tmp_path, tiny, "one", (0.3, 2.5, 1.5))
    (pair,) = compare_studies(tmp_path, ["one"]).pairs
    assert (pair.first, pair.second) == ("one trial 1", "one trial 2")


CHANGES: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "data": ({"data": DataSpec(name="stripes", digest="xyz")}, "data digest stripes xyz, not", "their data differ"),
    "mode": ({"selection": SelectionSpec(mode="seen")}, "selection mode seen, not extra", None),
    "partition": ({"partition_seed": 3}, "partition seed 3, not 0", None),
    "profile": ({"profile": "cpu"}, "profile cpu, not smoke", None),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_keeps_studies_apart_is_named(what: str, tmp_path: Path, tiny: TrialConfig) -> None:
    changes, text, reason = CHANGES[what]
    finished(tmp_path, tiny, "one", (1.0,))
    finished(tmp_path, tiny, "two", (0.5,), **changes)
    found = compare_studies(tmp_path, ["one", "two"])
    (warning,) = found.warnings
    assert warning.startswith("two is not comparable with one: ") and text in warning
    (pair,) = found.pairs
    assert (pair.gap is None, pair.reason) == (reason is not None, reason)


def test_other_images_of_the_same_data_are_not_paired(tmp_path: Path, tiny: TrialConfig) -> None:
    same = DataSpec(name="stripes", digest="abc")
    finished(tmp_path, tiny, "one", (1.0,), data=same)
    finished(tmp_path, tiny.override({"data.partition_seed": 7}), "two", (0.5,), data=same)
    found = compare_studies(tmp_path, ["one", "two"])
    assert found.warnings == ("two is not comparable with one: other lists of files",)
    assert found.pairs[0].reason == "they were scored on other images"


def test_the_cost_is_seconds_times_resources(tmp_path: Path, tiny: TrialConfig) -> None:
    config = tiny.override({"budget.epochs": 6})
    resources = ResourceSpec(cpus=3.0, gpus=0.5, max_concurrent=2)
    study = make_study(tmp_path, config, resources=resources)
    scores = drawn_scores(study, 1.0)
    record_trial(study, 0, TrialState.COMPLETE, PARAMS, 6, scores, seconds=60.0)
    record_trial(study, 1, TrialState.PRUNED, PARAMS | {"optim.lr": 2e-3}, 2, scores, seconds=30.0)
    record_trial(study, 2, TrialState.FAIL, PARAMS | {"optim.lr": 3e-3}, 1, seconds=90.0)
    cost = view_study(tmp_path, "small").cost
    # 360 + 60 + 90 s; the pruned one left out 4 epochs of 30 s
    assert cost.core_hours == pytest.approx(3.0 * 510 / 3600)
    assert cost.gpu_hours == pytest.approx(0.5 * 510 / 3600)
    assert cost.saved_core_hours == pytest.approx(3.0 * 120 / 3600)
    assert cost.saved_share == pytest.approx(4 / 12)
    assert (cost.unit, cost.epochs) == ("GPU-hours", 9)


def test_the_command_prints_a_table_or_one_document(tmp_path: Path, tiny: TrialConfig) -> None:
    finished(tmp_path, tiny, "one", (1.0,))
    make_study(tmp_path, tiny, "empty")
    words = ["compare", "one", "empty", "--study-root", str(tmp_path)]
    shown = CliRunner().invoke(app, words, catch_exceptions=False)
    assert shown.exit_code == 0
    assert "1 COMPLETE" in shown.stdout and "none" in shown.stdout
    document = json.loads(CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False).stdout)
    assert [study["study"] for study in document["studies"]] == ["one", "empty"]
    assert document["studies"][1]["best_trial"] is None and document["pairs"] == []


def test_a_name_twice_or_unknown_is_refused(tmp_path: Path, tiny: TrialConfig) -> None:
    make_study(tmp_path, tiny, "one")
    with pytest.raises(StudyError, match="'one' is named twice"):
        compare_studies(tmp_path, ["one", "one"])
    with pytest.raises(StudyError, match="did you mean 'one'"):
        compare_studies(tmp_path, ["one", "onee"])


def test_a_full_run_of_a_method_that_trains_nothing_saved_nothing(tmp_path: Path, tiny: TrialConfig) -> None:
    """It has one epoch, whatever the others have."""
    space = {"name": "both", "variants": {name: {"method.name": name} for name in ("deviation", "gaussian")}}
    study = make_study(tmp_path, tiny.override({"budget.epochs": 6}), space=space)
    scores = drawn_scores(study, 1.0)
    record_trial(study, 0, TrialState.COMPLETE, {"variant": "deviation"}, 6, scores)
    record_trial(study, 1, TrialState.COMPLETE, {"variant": "gaussian"}, 1, scores)
    assert view_study(tmp_path, "small").cost.saved_share == 0
    record_trial(study, 2, TrialState.PRUNED, {"variant": "deviation"}, 2, scores)
    assert view_study(tmp_path, "small").cost.saved_share == pytest.approx(4 / 13)
