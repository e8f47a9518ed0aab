"""A study that a driver of the version before was killed in: opened, resumed and checked by this one.

golden/format2/make.py says how it was made. Its checkpoints are left out; tests/methods has some of that version.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from optuna.trial import TrialState

from tests.e2e.conftest import Sctune

GOLDEN = Path(__file__).parents[1] / "golden" / "format2"
NAME = "before"


def test_a_killed_study_of_the_version_before_goes_on(sctune: Sctune, tmp_path: Path) -> None:
    study = sctune.study(NAME)
    shutil.copytree(GOLDEN / "study", study)
    shutil.copytree(GOLDEN / "images", tmp_path / "images")
    document = study / "study.json"
    text = document.read_text().replace("/FOLDER/images", str(tmp_path / "images"))
    document.write_text(text.replace("/FOLDER/home", str(sctune.home)))
    before = sctune.record(NAME)
    assert [trial.state for trial in before] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING]
    assert sctune.json("status", NAME)["best_trial"] == 0
    sctune("resume", NAME, "--max-concurrent", "1")
    after = sctune.record(NAME)
    assert len(after) == 5 and all(trial.state.is_finished() for trial in after)
    for old, new in zip(before[:2], after, strict=False):
        assert (old.params, old.value, old.intermediate_values) == (new.params, new.value, new.intermediate_values)
    # trial 2 keeps what it had told
    assert before[2].intermediate_values.items() <= after[2].intermediate_values.items()
    # the one difference: the checkpoint of trial 0, which was left out here
    differences = sctune.json("status", NAME, "--check", code=3)["differences"]
    assert [(one["kind"], one["trial"]) for one in differences] == [("checkpoint", 0)]
    assert not list(study.glob("tracking.jsonl*"))
