"""Methods that train nothing in a confirmation: candidates, beside the winner on the test, and what is deployed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sctune.config import Task
from sctune.confirm import outcome
from sctune.confirm.built import tried
from sctune.confirm.candidates import REFERENCE, best_candidates, untrained, variant_space
from sctune.confirm.outcome import ScoredRival
from sctune.confirm.results import Confirmation, Ranked, confirmation_lines
from sctune.confirm.run import compared_with
from sctune.confirm.scoring import TaskScores
from sctune.errors import StudyError
from sctune.metrics.statistics import Scores
from sctune.report import EpochReport
from sctune.search.study.leaderboard import TrialRow
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.references import Reference
from tests.builders import ANYWHERE, FLAT, make_manifest, make_space

PARAMS = {"augment.threshold": 0.3, "model.patch_count": 3}
ROWS = [TrialRow(5, "COMPLETE", PARAMS, {1: 0.9}, 0.9, None, None, None)]
REFERENCES = [
    Reference("gaussian", EpochReport(1, 1, {"selection_auroc": 0.8})),
    Reference("patch_bank", failure={"kind": "WeightsError", "message": "no weights"}),
]


@pytest.fixture
def manifest(tmp_path: Path) -> StudyManifest:
    space = make_space(tmp_path, parameters=FLAT, set=ANYWHERE)
    return make_manifest(space, references=("gaussian", "patch_bank"))


def test_those_with_a_value_are_candidates_of_the_same_grid(manifest: StudyManifest) -> None:
    chosen = best_candidates(manifest, ROWS, 1)
    (found,), (note,) = untrained(manifest, REFERENCES, chosen)
    assert (found.name, found.trial, found.value, found.fields) == ("gaussian", None, 0.8, {"method.name": "gaussian"})
    assert note == "reference patch_bank is no candidate: the search has no value of it"
    space = variant_space(manifest, [*chosen, found])
    configs = {str(point["variant"]): space.config(point) for point in space.points()}
    assert configs["gaussian"].method.name == "gaussian" and configs["gaussian"].epochs == 1
    assert configs["gaussian"].model.backbone == manifest.trial_config().model.backbone
    assert configs["trial-5"].flat() == manifest.config_of(PARAMS).flat() | {"data.selection": "extra"}


def test_a_trial_that_is_the_reference_is_not_trained_twice(tmp_path: Path) -> None:
    space = make_space(tmp_path, parameters={"method.push": {"values": ["auto", 0.5]}}, set={"method.name": "gaussian"})
    own = make_manifest(space, references=("gaussian",))
    row = TrialRow(2, "COMPLETE", {"method.push": "auto"}, {1: 0.9}, 0.9, None, None, None)
    found, notes = untrained(own, REFERENCES[:1], best_candidates(own, [row], 1))
    assert (found, notes) == ([], ["reference gaussian is among the candidates: trial-2"])


def confirmation(*names: str) -> Confirmation:
    """These, best first; `trial-N` are of the search, `reference` is the paper's default."""
    ranking = [
        Ranked(
            name=name,
            trial=int(name.removeprefix("trial-")) if name.startswith("trial-") else None,
            fields={},
            mean=0.9 - place / 10,
            std=None,
            seeds={1001: 0.9 - place / 10},
            search_value=None if name == REFERENCE else 0.95,
        )
        for place, name in enumerate(names)
    ]
    return Confirmation(
        study="s",
        study_id="i",
        confirm_study="s-confirm",
        written="2026-01-01T00:00:00+00:00",
        mode="extra",
        seeds=(1001,),
        ranking=tuple(ranking),
        reference=REFERENCE if REFERENCE in names else None,
        references=tuple(name for name in names if name in ("gaussian", "patch_bank")),
        false_alarm_rate=0.01,
    )


@pytest.mark.parametrize(
    ("ranking", "expected"),
    [
        ("trial-1 patch_bank trial-2 gaussian reference", ["reference", "patch_bank", "gaussian"]),
        ("trial-1 gaussian", ["gaussian"]),
        ("trial-1 trial-2", ["trial-2"]),
        ("reference trial-1 trial-2 gaussian", ["trial-1", "gaussian"]),
        ("gaussian patch_bank reference trial-1", ["trial-1", "patch_bank"]),
        ("trial-1", []),
    ],
)
def test_what_the_winner_is_compared_with(ranking: str, expected: list[str]) -> None:
    assert compared_with(confirmation(*ranking.split())) == expected


def scored(*scores: float) -> list[TaskScores]:
    labels = np.array([0, 0, 0, 1, 1])
    task = Task(seed=1001)
    return [TaskScores(task, Scores("set", "", tuple("abcde"), labels, np.array(scores), 1001), (), f"{scores[0]}.csv")]


def test_the_outcome_has_both_and_one_of_them_can_be_deployed() -> None:
    found = confirmation("trial-1", "gaussian", "reference", "patch_bank")
    values = {Task(seed=1001).key: 0.8}
    rivals = [
        ScoredRival("reference", scored(0.2, 0.3, 0.4, 0.1, 0.9), values),
        ScoredRival("gaussian", scored(0.1, 0.2, 0.6, 0.5, 0.9), values),
    ]
    test = outcome.tested(found, scored(0.1, 0.2, 0.3, 0.8, 0.9), rivals, [0, 0, 0, 1, 1], values)
    assert (test.winner.value, test.against) == (1.0, "reference")
    assert test.reference is not None and test.reference.value == 0.5
    differences = {one.name: one.difference.value for one in test.rivals}
    assert differences == {"reference": 0.5, "gaussian": pytest.approx(1 / 6)}
    done = found.model_copy(update={"test": test})
    assert Confirmation.model_validate_json(done.model_dump_json()) == done
    lines = confirmation_lines(done)
    assert "  2. gaussian (trains nothing): selection AUROC 0.8000; the search saw 0.9500" in lines
    assert "  3. reference (the paper's default): selection AUROC 0.7000" in lines
    assert any(line.startswith("  the winner minus gaussian: +0.1667 (") for line in lines)

    chosen = tried(done, test, "gaussian")
    assert (chosen.one.name, chosen.estimate.value, chosen.against) == ("gaussian", pytest.approx(5 / 6), "trial-1")
    assert chosen.models[0].test_auroc == pytest.approx(5 / 6) and chosen.models[0].scores == "s-confirm/0.1.csv"
    assert chosen.gap is not None and chosen.gap.value == pytest.approx(-1 / 6)
    gap = next(one.difference for one in test.rivals if one.name == "gaussian")
    assert (chosen.gap.low, chosen.gap.high) == (-gap.high, -gap.low)
    assert tried(done, test, None).one.name == tried(done, test, "trial-1").one.name == "trial-1"
    with pytest.raises(StudyError, match=r"--candidate 'patch_bank': .* it scored trial-1, reference, gaussian$"):
        tried(done, test, "patch_bank")


def test_a_document_of_before_is_read_and_written_as_it_was() -> None:
    old = confirmation("trial-1", "reference").model_dump(mode="json")
    assert "references" not in old
    assert Confirmation.model_validate(old).references == ()
