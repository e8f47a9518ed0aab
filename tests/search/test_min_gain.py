"""A search that ends by itself: what the rest is expected to gain, when that ends a search, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from typer.testing import CliRunner

from sctune.cli import app
from sctune.config import TrialConfig
from sctune.errors import ConfigError
from sctune.metrics.objective import AUROC
from sctune.search.plan.gain import default_min_gain, min_gain
from sctune.search.plan.options import SearchOptions
from sctune.search.rules.gain import LEAST, expected_gain
from sctune.search.run.controller import EndReason
from sctune.search.run.worth import LOOKS, little_gain
from sctune.search.study.manifest import LittleGain, SchedulerSpec
from sctune.search.study.study import Study
from tests.builders import make_manifest, make_space
from tests.pages.studies import make_study, record_trial
from tests.search import test_same_search as same
from tests.search.test_same_search import Driver, drawn


def test_the_mean_improvement_is_that_of_draws_from_the_tail() -> None:
    """Of the tail that the values say: a value is above the threshold with 1/4, by an exponential excess."""
    rng = np.random.default_rng(0)
    values = list(rng.normal(0.8, 0.02, 48))
    ordered = sorted(values[24:], reverse=True)
    threshold, length = ordered[6], (sum(ordered[:6]) - 6 * ordered[6]) / 5
    for more in (1, 7, 40):
        above = rng.random((200_000, more)) < 6 / 24
        draws = np.where(above, threshold + rng.exponential(length, above.shape), -np.inf).max(axis=1)
        improvement = np.maximum(draws - max(values), 0)
        told = expected_gain(values, more)
        assert told == pytest.approx(improvement.mean(), abs=4 * improvement.std() / np.sqrt(len(draws)))
    gains = [expected_gain(values, more) or 0.0 for more in range(30)]
    assert gains[0] == 0.0 and gains == sorted(gains)


def test_late_values_count_and_the_best_of_all() -> None:
    late = [0.5 + place / 100 for place in range(LEAST)]
    assert expected_gain(late[1:], 9) is None
    alone = expected_gain(late, 9)
    assert alone is not None and alone > 0
    assert expected_gain([0.1, *late], 9) == alone  # a sampler that has moved on
    better = expected_gain([0.75, *late], 9)
    assert better is not None and better < alone
    assert expected_gain([0.9] * LEAST, 9) == 0.0
    # in units of the objective
    assert expected_gain([10 * value for value in late], 9) == pytest.approx(10 * alone)


def test_what_is_luck_is_not_gained() -> None:
    values = list(np.random.default_rng(1).normal(0.8, 0.01, 30))
    gains = [expected_gain(values, 20, error) or 0.0 for error in (0.0, 0.005, 0.01, 0.02, 0.03)]
    assert gains == sorted(gains, reverse=True) and gains[0] > gains[1] > gains[2] > 0 == gains[-1]
    # by hand: half of the square of a paired error is each one's own
    largest = np.var(values[-20:], ddof=1) * 19 / 11.6509
    assert gains[2] / gains[0] == pytest.approx(1 - 0.01**2 / 2 / largest, rel=1e-4)


@pytest.mark.parametrize(("noise", "tail"), [(0.0, 0.02), (0.0, 0.001), (0.01, 0.01), (0.02, 0.0)])
def test_over_simulated_searches_the_estimate_is_about_the_truth(noise: float, tail: float) -> None:
    """Truths with an exponential tail, told with noise; what the best of all is truly better than that so far."""
    told, true, plain = [], [], []
    for seed in range(600):
        rng = np.random.default_rng(seed)
        truth = 0.8 + rng.exponential(tail, 60)
        values = truth + rng.normal(0, noise, 60)
        told.append(expected_gain(list(values[:25]), 35, noise * 2**0.5))
        true.append(truth[values.argmax()] - truth[values[:25].argmax()])
        plain.append(expected_gain(list(values[:25]), 35))
    # on the safe side, and not by much
    assert np.mean(true) - 0.0003 < np.mean(told)
    if tail:
        assert np.mean(told) < 1.5 * np.mean(true)
    else:
        # all of it is luck, of which twenty values do not tell more
        assert np.mean(told) < np.mean(plain) / 2


FLAT_FIELDS: dict[str, Any] = {
    "trials": 60,
    "sampler": "random",
    "min_gain": 0.002,
    "scheduler": SchedulerSpec(name="asha", grace=3, factor=2),
}


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """An objective that hardly depends on anything: the search has nothing to find."""
    monkeypatch.setattr(same, "merit", lambda _params, number, epoch: 0.9 + 0.001 * drawn("flat", number) + epoch / 100)


@pytest.mark.usefixtures("flat")
def test_a_search_with_nothing_to_find_ends_at_the_same_trial_whatever_ran_when(tmp_path: Path) -> None:
    fields = FLAT_FIELDS | {"scheduler": SchedulerSpec(name="none")}
    found = [Driver(tmp_path, *way, **fields).run() for way in ((1, None, 0), (3, None, 1), (2, 9, 2))]
    assert all(one == found[0] for one in found)
    # as soon as twenty full runs are well before the next one
    assert len(found[0]) == LEAST + 3 and {state for _, _, state, _, _ in found[0]} == {"COMPLETE"}


@pytest.mark.usefixtures("flat")
def test_it_goes_on_where_more_trials_are_asked_for(tmp_path: Path) -> None:
    driver = Driver(tmp_path, 2, **FLAT_FIELDS)
    ended = len(driver.run())
    assert LEAST < ended < 60

    def again() -> Any:
        searcher = driver.open().controller
        assert searcher.next() is None
        searcher.record.close()
        return searcher

    controller = again()
    assert controller.end is not None and controller.end.reason is EndReason.LITTLE_GAIN and not controller.stopping
    found = controller.little_gain
    assert (found.after, found.left, found.asked) == (ended, 60 - ended, 0.002) and 0 <= found.gain < 0.002
    driver.study.add_launch("2026-01-01T00:00:00+00:00")
    driver.study.end_launch("2026-01-01T01:00:00+00:00", "done", found)
    assert driver.study.with_more_trials(4).trials == ended + 4
    # those are run whatever they are expected to bring, over another kill too
    assert len(Driver.run(driver)) == ended + 4
    assert again().end.reason is EndReason.DONE
    # and a study that did not end by itself gets as many more than were asked for
    driver.study.add_launch("2026-01-02T00:00:00+00:00")
    assert driver.study.with_more_trials(5).trials == ended + 9


@pytest.mark.parametrize("changes", [{"min_gain": None}, {"min_gain": 0.0}, {"sampler": "grid"}, {"trials": 22}])
@pytest.mark.usefixtures("flat")
def test_others_come_to_their_end(tmp_path: Path, changes: dict[str, Any]) -> None:
    fields = FLAT_FIELDS | {"trials": 26, "scheduler": SchedulerSpec(name="none")} | changes
    if "sampler" in changes:
        fields["space"] = {
            "augment.threshold": {"values": [0.2, 0.3, 0.4, 0.5, 0.6, 0.8]},
            "model.patch_count": {"type": "int", "low": 2, "high": 6},
        }
    assert len(Driver(tmp_path, 2, **fields).run()) == fields["trials"]


def test_what_there_is_to_find_is_looked_for(tmp_path: Path) -> None:
    assert len(Driver(tmp_path, 2, trials=30, sampler="random", min_gain=0.002).run()) == 30


def test_the_default_is_for_searches_by_a_sampler_of_our_objectives() -> None:
    assert [default_min_gain("gpu", sampler, name) for sampler, name in (("tpe", "auroc"), ("random", "fpr95"))] == [
        0.002
    ] * 2
    assert default_min_gain("gpu", "grid", "auroc") == default_min_gain("paper", "tpe", "auroc") == 0.0
    assert default_min_gain("gpu", "tpe", "misses") == 0.0
    assert min_gain(SearchOptions(min_gain=0.0), "gpu", "tpe") == 0.0
    assert min_gain(SearchOptions(objective="misses", min_gain=3.0), "gpu", "tpe") == 3.0
    with pytest.raises(ConfigError, match=r"--min-gain 0\.01: sampler grid is there to compare all its points"):
        min_gain(SearchOptions(min_gain=0.01), "gpu", "grid")
    with pytest.raises(ConfigError, match="--min-gain -1"):
        SearchOptions.from_command({"min_gain": -1.0})


def test_it_is_said_with_what_it_saved(tmp_path: Path, tiny: TrialConfig) -> None:
    root = tmp_path / "studies"
    study = make_study(root, tiny, trials=8)
    for number, epochs in ((0, 2), (1, 1)):
        state = TrialState.COMPLETE if epochs == 2 else TrialState.PRUNED
        record_trial(
            study, number, state, {"augment.threshold": 0.2 + number / 10, "optim.lr": 1e-3}, epochs, seconds=60
        )
    study.add_launch("2026-01-01T00:00:00+00:00")
    study.end_launch("2026-01-01T01:00:00+00:00", "done", LittleGain(after=2, left=6, gain=0.00114, asked=0.002))
    study.record.close()

    def run(*words: str) -> str:
        every = [*words, "--study-root", str(root)]
        return CliRunner().invoke(app, every, catch_exceptions=False, env={"COLUMNS": "400"}).stdout

    line = (
        "ended by itself after 2 of 8 trials: the other 6 were expected to improve AUROC by 0.0011, less than "
        "--min-gain 0.002; that saved 6 trial(s) and about 9 min of training; more: "
        f"`sctune resume {study.name} --trials +6`"
    )
    assert line in run("status", study.name)
    told = json.loads(run("status", study.name, "--json"))["little_gain"]
    assert told == {"after": 2, "left": 6, "gain": 0.00114, "asked": 0.002, "seconds_saved": 540.0}
    run("report", study.name, "--out", str(tmp_path / "r.html"))
    assert "ended by itself after 2 of 8 trials" in (tmp_path / "r.html").read_text()
    study = Study.open(root, study.name)
    study.add_launch("2026-01-02T00:00:00+00:00")
    assert "ended by itself" not in run("status", study.name)


def test_a_long_search_is_looked_at_now_and_then(tmp_path: Path) -> None:
    """A look goes through all trials: before each one up to 2 * LOOKS, then before each half per cent."""
    space = make_space(tmp_path, parameters={"augment.threshold": {"type": "float", "low": 0.1, "high": 0.9}})
    manifest = make_manifest(space, min_gain=0.5, sampler="random", trials=10_000)
    looked: list[int] = []

    def known(begun: int) -> list[FrozenTrial]:
        looked.append(begun)
        return [create_trial(state=TrialState.COMPLETE, value=0.9) for _ in range(LEAST)]

    def ends(begun: int) -> bool:
        return little_gain(manifest, AUROC, lambda: known(begun), begun, None, {}) is not None

    assert [begun for begun in range(1, 2000) if ends(begun)] == looked
    assert looked[: 2 * LOOKS - 1] == list(range(1, 2 * LOOKS))
    gaps = np.diff(looked)
    assert (gaps <= 1 + np.array(looked[1:]) / LOOKS).all()
    # as many looks for each doubling
    assert sum(1000 <= begun < 2000 for begun in looked) <= 1.5 * LOOKS
