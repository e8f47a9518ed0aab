"""A rejected proposal costs nothing and leaves nothing, however many trials there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState

from sctune.config import load_profile
from sctune.search.space.definition import Space, load_space
from sctune.search.space.parameter import Range
from sctune.search.suggest.optuna_private import SuggesterStorage
from sctune.search.suggest.samplers import SAMPLERS, make_sampler
from sctune.search.suggest.suggester import Suggester


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
    suggester = Suggester(space, make_sampler(sampler, 3, space=space, n_before=0), 3)
    for number in range(12):
        trial = suggester.ask()
        assert trial is not None
        assert (trial.number, trial._trial_id) == (number, number)
        assert [known.number for known in suggester.trials()] == list(range(number + 1))
        suggester.report(number, 1, 0.5)
        suggester.tell(number, TrialState.COMPLETE, 0.01 * number)
    assert suggester.ask() is None
    assert [trial.value for trial in suggester.trials()] == [0.01 * number for number in range(12)]
    assert all(trial.intermediate_values == {1: 0.5} for trial in suggester.trials())
    assert len({space.key(suggester.params(number)) for number in range(12)}) == 12


def test_a_rejected_proposal_copies_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = make_space(tmp_path, 20)
    suggester = Suggester(space, make_sampler("random", 0, space=space, n_before=0), 0)
    made = 0
    create = SuggesterStorage.create_new_trial

    def counted(storage: SuggesterStorage, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        nonlocal made
        made += 1
        return create(storage, study_id, template_trial)

    monkeypatch.setattr(SuggesterStorage, "create_new_trial", counted)
    for number in range(40):
        assert suggester.ask() is not None
        suggester.tell(number, TrialState.COMPLETE, 0.5)
    # one per proposal: at most 20 of the sampler and one untried point for each trial
    assert 40 < made <= 40 * 21


def test_an_untried_point_of_a_small_grid_is_drawn_as_it_always_was(tmp_path: Path) -> None:
    """A resumed study draws what an undisturbed one would, also one that an earlier sctune began."""
    space = make_space(tmp_path, 6)
    suggester = Suggester(space, make_sampler("random", 0, space=space), 5)
    seen: list[str] = []
    for number in range(12):
        left = [point for point in space.points() if space.key(point) not in seen]
        drawn = int(np.random.SeedSequence([5, number, 1]).generate_state(1)[0]) % len(left)
        if number % 4 == 2:  # as after a resume
            suggester = Suggester(space, make_sampler("random", 0, space=space), 5, suggester.trials())
        trial = suggester._try_untried()
        assert trial is not None
        assert suggester.params(number) == left[drawn]
        suggester.tell(number, TrialState.COMPLETE, 0.5)
        seen.append(space.key(left[drawn]))
    assert suggester.ask() is None


@pytest.mark.parametrize("in_order", [True, False])
def test_a_proposal_late_in_a_grid_of_25_million_points_makes_few_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_order: bool
) -> None:
    parameters = {
        "augment.threshold": {"type": "float", "low": 0.1, "high": 0.9, "step": 0.00016},
        "model.top_k": {"type": "float", "low": 0.1, "high": 0.9, "step": 0.00016},
    }
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"parameters": parameters}))
    space = load_space(tmp_path / "space.yaml", load_profile("cpu"))
    assert space.size() == 5001 * 5001
    suggester = Suggester(space, make_sampler("random", 0, space=space), 0, in_order=in_order)
    made = 0
    make = Range._at

    def counted(self: Range, index: int) -> Any:
        nonlocal made
        made += 1
        return make(self, index)

    monkeypatch.setattr(Range, "_at", counted)
    costs = []
    for number in range(60):
        made = 0
        trial = suggester._try_untried()
        assert trial is not None and trial.number == number
        costs.append(made)
        suggester.tell(number, TrialState.COMPLETE, 0.5)
    assert [params["model.top_k"] for params in map(suggester.params, range(3))] == [0.1, 0.10016, 0.10032]
    assert max(costs) < 20
