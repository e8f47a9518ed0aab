"""A rejected proposal costs nothing and leaves nothing, however many trials there are."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState

from sctune.config import load_profile
from sctune.search.proposer import Proposer, ProposerStorage
from sctune.search.sampler import SAMPLERS, make_sampler
from sctune.search.space import Space, load_space


def make_space(folder: Path, choices: int) -> Space:
    file = folder / "space.yaml"
    parameters = {
        "augment.threshold": {"values": [round(0.1 + 0.8 * index / choices, 4) for index in range(choices)]},
        "model.patch_count": {"type": "int", "low": 2, "high": 3},
    }
    file.write_text(yaml.safe_dump({"parameters": parameters}))
    return load_space(file, load_profile("cpu"))


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in ("grid", "gp")])
def test_rejected_proposals_leave_contiguous_numbers_and_no_trace(tmp_path: Path, sampler: str) -> None:
    space = make_space(tmp_path, 6)
    proposer = Proposer(space, make_sampler(sampler, 3, space=space, n_before=0), 3)
    for number in range(12):
        trial = proposer.ask()
        assert trial is not None
        assert (trial.number, trial._trial_id) == (number, number)
        assert [known.number for known in proposer.trials()] == list(range(number + 1))
        proposer.report(number, 1, 0.5)
        proposer.tell(number, TrialState.COMPLETE, 0.01 * number)
    assert proposer.ask() is None
    assert [trial.value for trial in proposer.trials()] == [0.01 * number for number in range(12)]
    assert all(trial.intermediate_values == {1: 0.5} for trial in proposer.trials())
    assert len({space.key(proposer.params(number)) for number in range(12)}) == 12


def test_a_rejected_proposal_copies_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = make_space(tmp_path, 20)
    proposer = Proposer(space, make_sampler("random", 0, space=space, n_before=0), 0)
    made = 0
    create = ProposerStorage.create_new_trial

    def counted(storage: ProposerStorage, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        nonlocal made
        made += 1
        return create(storage, study_id, template_trial)

    monkeypatch.setattr(ProposerStorage, "create_new_trial", counted)
    for number in range(40):
        assert proposer.ask() is not None
        proposer.tell(number, TrialState.COMPLETE, 0.5)
    # one per proposal: at most 20 of the sampler and one untried point for each trial
    assert 40 < made <= 40 * 21
