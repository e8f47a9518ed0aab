"""A leaderboard of equals says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState

from sctune.config import TrialConfig
from sctune.search.study.result import summary_lines
from sctune.search.study.stored import load_result
from tests.pages.studies import drawn_scores, make_study, record_trial

EQUAL = "2 full runs are exactly equal in AUROC; the best is the first of them by number"


@pytest.mark.parametrize("worse", [0.0, 1e-3])
def test_equal_runs_are_said(tmp_path: Path, tiny: TrialConfig, worse: float) -> None:
    """Other scores in the same order have exactly the same AUROC; an image in another place is a difference."""
    study = make_study(tmp_path, tiny)
    scores = drawn_scores(study, 1.0)
    other = {key: [3 * score + 1 for score in row] for key, row in scores.items()}
    if worse:
        other = {key: [row[0] - 100.0, *row[1:]] for key, row in scores.items()}
    for number, row in enumerate((scores, other)):
        params = {"augment.threshold": 0.2 + number / 10, "optim.lr": 1e-3}
        record_trial(study, number, TrialState.COMPLETE, params, scores=row)
    study.record.close()
    result = load_result(tmp_path, study.name)
    assert (EQUAL in summary_lines(result)) == (not worse)
    assert result.to_dict()["equal_to_best"] == (1 if worse else 2)
    if not worse:
        assert result.best is not None and result.best.number == 0
