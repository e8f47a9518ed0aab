"""Variants in a study: what workers, observers and the record get, with every sampler and across launches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sctune.config import load_profile
from sctune.errors import ConfigError
from sctune.report import EpochReport
from sctune.search.study.manifest import SchedulerSpec
from sctune.search.study.study import Study
from sctune.search.suggest.samplers import SAMPLERS
from tests.builders import make_manifest, make_space
from tests.search.searching import open_searcher, result

METHODS: dict[str, dict[str, Any]] = {
    "saliencycut": {"model.heads": "two_head_patch", "augment.kind": "saliencycut"},
    "dra": {"model.heads": "four_head", "augment.kind": "cutmix"},
    "devnet": {"model.heads": "single_head", "augment.kind": "none", "data.balance": 0.5},
}
THRESHOLD = {"augment.threshold": {"values": [0.2, 0.4], "when": {"variant": "saliencycut"}}}


def make_study(tmp_path: Path, trials: int, sampler: str = "grid", **content: Any) -> Study:
    space = make_space(tmp_path, **content)
    manifest = make_manifest(space, sampler=sampler, scheduler=SchedulerSpec(name="none"), trials=trials)
    return Study.create(tmp_path / "root", manifest)


ALONE = {"cpus": 1.0, "gpus": 0.0}


class Listener:
    """Writes down the parameters that an observer is told."""

    def __init__(self) -> None:
        self.params: list[dict[str, Any]] = []

    def on_start(self, number: int, params: dict[str, Any], attempt: int) -> None:
        self.params.append(params)

    def on_report(self, number: int, report: EpochReport, time: int) -> None: ...
    def on_wait(self, number: int, reason: str) -> None: ...

    def on_end(self, number: int, state: str, value: float | None, info: dict[str, Any]) -> None: ...


def test_workers_get_fields_and_everybody_else_the_variant(tmp_path: Path) -> None:
    study = make_study(tmp_path, 4, variants=METHODS, parameters=THRESHOLD)
    listener = Listener()
    searcher = open_searcher(study, listener)
    sent = [searcher.suggest(str(number)) for number in range(4)]
    assert searcher.suggest("4") is None
    patch = METHODS["saliencycut"]
    assert [config["params"] for config in sent if isinstance(config, dict)] == [
        patch | {"augment.threshold": 0.2}, patch | {"augment.threshold": 0.4}, METHODS["dra"], METHODS["devnet"],
    ]  # fmt: skip
    drawn = [
        {"variant": "saliencycut", "augment.threshold": 0.2},
        {"variant": "saliencycut", "augment.threshold": 0.4},
        {"variant": "dra"},
        {"variant": "devnet"},
    ]
    assert listener.params == drawn
    assert [trial.user_attrs["params"] for trial in searcher.controller.record.load()] == drawn
    searcher.controller.record.close()

    again = Listener()
    resumed = open_searcher(study, again)
    assert resumed.suggest("a") == {
        "number": 0,
        "params": patch | {"augment.threshold": 0.2},
        "attempt": 2,
        "resources": ALONE,
        "launch": 1,
        "first_launch": 1,
        "avoid": [],
    }
    assert again.params == drawn[:1]
    assert resumed.controller.manifest.config_of(drawn[3]).flat() == load_profile("cpu").flat() | METHODS["devnet"]
    resumed.controller.record.close()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_visits_each_point_once_across_launches(tmp_path: Path, sampler: str) -> None:
    study = make_study(tmp_path, 9, sampler, variants=METHODS, parameters=THRESHOLD)
    for launch in ((0, 1), (2, 3, 4)):
        searcher = open_searcher(study)
        for number in launch:
            config = searcher.suggest(str(number))
            if not isinstance(config, dict):
                assert (number, searcher.controller.exhausted) == (4, "space exhausted after 4 of 9")
                break
            searcher.on_trial_complete(str(number), result(1, 0.5 + number / 10, epochs=1))
        stored = searcher.controller.record.load()
        searcher.controller.record.close()
    space = study.manifest.build_space()
    assert {space.key(trial.user_attrs["params"]) for trial in stored} == {space.key(p) for p in space.points()}
    assert len(stored) == 4
    assert {name for trial in stored for name in trial.params} == {"variant", "augment.threshold"}


def test_a_grid_over_a_continuous_parameter_of_a_variant_is_refused(tmp_path: Path) -> None:
    smooth = {"augment.threshold": {"type": "float", "low": 0.1, "high": 0.9, "when": {"variant": "saliencycut"}}}
    study = make_study(tmp_path, 4, variants=METHODS, parameters=smooth)
    with pytest.raises(ConfigError, match=r"sampler grid: augment\.threshold is continuous"):
        open_searcher(study)
