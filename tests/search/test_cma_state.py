"""CMA-ES goes on after a resume, and what the record keeps of it are numbers that do no harm."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cmaes
import numpy as np
import pytest

from sctune.search.suggest.cma_state import STATE, CmaState, restored_attrs, stored_attrs
from tests.search.searching import make_study, open_searcher, run_whole, suggest

FLAT = {
    "augment.threshold": {"type": "float", "low": 0.1, "high": 0.9},
    "optim.lr": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
}


def evolved(generations: int = 4) -> cmaes.CMA:
    optimizer = cmaes.CMA(mean=np.full(3, 0.5), sigma=0.2, bounds=np.array([[0.0, 1.0]] * 3), seed=1)
    for _ in range(generations):
        asked = [optimizer.ask() for _ in range(optimizer.population_size)]
        optimizer.tell([(point, float(((point - 0.3) ** 2).sum())) for point in asked])
    return optimizer


def pickled(optimizer: Any) -> dict[str, str]:
    text = pickle.dumps(optimizer).hex()
    return {f"cma:optimizer:{piece}": text[piece * 100 : piece * 100 + 100] for piece in range(-(-len(text) // 100))}


def test_a_restored_optimizer_goes_on_as_the_first_one() -> None:
    # as Optuna finds it for each trial: a pickle evens out the two halves of the covariance
    first = pickle.loads(pickle.dumps(evolved()))
    stored = stored_attrs({**pickled(first), "cma:generation": 4})
    assert set(stored) == {STATE, "cma:generation"}
    restored = restored_attrs(stored)
    second = pickle.loads(bytes.fromhex(restored["cma:optimizer:0"]))
    assert second.generation == first.generation == 4
    for optimizer in (first, second):
        optimizer.reseed_rng(9)
    for _ in range(3):
        asked = [(first.ask(), second.ask()) for _ in range(first.population_size)]
        assert all(np.array_equal(one, two) for one, two in asked)
        for optimizer in (first, second):
            optimizer.tell([(point, float((point**2).sum())) for point, _ in asked])


@pytest.mark.parametrize(
    "damage",
    [
        {"mean": [0.5, 0.5]},
        {"mean": []},
        {"p_sigma": [0.0]},
        {"cov": [[1.0]]},
        {"cov": "x"},
        {"sigma": -1.0},
        {"sigma": float("nan")},
        {"population": 0},
        {"bounds": [[0.0, 1.0]]},
        {"bounds": [[1.0, 0.0]] * 3},
        {"more": 1},
    ],
)
def test_a_damaged_distribution_is_left_out(damage: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    state = CmaState.of(evolved()).model_dump() | damage
    assert restored_attrs({STATE: state, "cma:generation": 4}) == {"cma:generation": 4}
    assert "left out" in caplog.text


def test_a_pickle_that_somebody_put_into_the_record_is_never_opened(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    study = make_study(tmp_path, FLAT, 12, "cmaes")
    searcher = open_searcher(study)
    for index in range(4):
        config = suggest(searcher, str(index))
        run_whole(searcher, str(index), config["params"]["augment.threshold"])
    record = searcher.controller.record
    record.flush()
    trial = record.load()[-1]
    for key, value in pickled(Hostile()).items():
        with record._sql._engine.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES (?, ?, ?)",
                (trial._trial_id, key, f'"{value}"'),
            )
    record.close()
    again = open_searcher(study)
    for index in range(4):
        suggest(again, f"again-{index}")
    again.controller.record.close()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("launches", [2, 3, 6])
def test_a_resumed_search_draws_what_an_undisturbed_one_draws(tmp_path: Path, launches: int) -> None:
    drawn: dict[int, list[Any]] = {}
    for count in (1, launches):
        (tmp_path / str(count)).mkdir()
        study = make_study(tmp_path / str(count), FLAT, 40, "cmaes")
        drawn[count] = []
        for launch in range(count):
            searcher = open_searcher(study)
            for index in range(30 // count):
                config = suggest(searcher, f"{launch}-{index}")
                drawn[count].append(config["params"])
                run_whole(searcher, f"{launch}-{index}", -((config["params"]["augment.threshold"] - 0.8) ** 2))
            if count > 1:
                assert any(STATE in trial.system_attrs for trial in searcher.controller.record.load()) == (
                    len(drawn[count]) > 7
                )
            searcher.controller.record.close()
    assert drawn[1] == drawn[launches]
    thresholds = [params["augment.threshold"] for params in drawn[1]]
    # it has learned where it is good
    assert np.mean(np.abs(np.array(thresholds[-6:]) - 0.8)) < np.mean(np.abs(np.array(thresholds[:6]) - 0.8))
