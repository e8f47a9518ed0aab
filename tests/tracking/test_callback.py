from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from sctune.config import TrialConfig
from sctune.report import OBJECTIVE, EpochReport
from sctune.search.reconcile.recorded import shown_fields
from sctune.tracking.callback import StudyFacts, TrackingCallback, short_names
from sctune.tracking.events import well_formed
from tests.builders import make_space


class EventList:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def put(self, event: dict[str, Any]) -> None:
        self.events.append(event)


def callback() -> tuple[TrackingCallback, list[dict[str, Any]]]:
    sink = EventList()
    facts = StudyFacts(
        study_id="u1",
        name="first",
        base=TrialConfig().flat(),
        data_digest="d1",
        git_commit="c1",
        versions={"torch": "2.14.1"},
        seed=42,
        tasks=["elpv/general/42"],
    )
    return TrackingCallback(sink, facts), sink.events


def test_every_call_gives_one_well_formed_event_that_survives_json(tmp_path: Path) -> None:
    observer, events = callback()
    observer.on_study_start()
    observer.on_start(3, {"augment.threshold": 0.3}, attempt=1)
    observer.on_report(3, EpochReport(1, 4, {OBJECTIVE: 0.5, "loss": 2.0}), 1234)
    observer.on_end(3, "PRUNED", 0.5, {"stop_reason": "rung 1"})
    observer.on_artifact(None, tmp_path, "plots")
    observer.on_tags(3, {"best": "yes"})
    observer.on_study_end("FINISHED", {})
    assert [event["kind"] for event in events] == [
        "study", "trial_start", "report", "trial_end", "artifact", "tags", "study_end",
    ]  # fmt: skip
    assert all(well_formed(json.loads(json.dumps(event))) for event in events)
    assert {event["study"] for event in events} == {"u1"}
    assert [event["trial"] for event in events] == [None, 3, 3, 3, None, 3, None]
    assert observer.calls == 7
    assert 0 < observer.max_seconds <= observer.total_seconds


def test_a_child_run_shows_the_merged_configuration_and_the_facts() -> None:
    observer, events = callback()
    observer.on_start(0, {"augment.threshold": 0.3, "model.patch_count": 5}, attempt=2)
    params, tags = events[0]["params"], events[0]["tags"]
    assert (params["_threshold"], params["augment.threshold"]) == (0.3, 0.3)
    assert (params["_patch_count"], params["model.patch_count"]) == (5, 5)
    assert set(TrialConfig().flat()) < set(params)
    assert params["optim.lr"] == TrialConfig().optim.lr
    assert (tags["data_digest"], tags["seed"], tags["version.torch"]) == ("d1", "42", "2.14.1")
    assert (tags["mlflow.source.git.commit"], tags["attempt"], events[0]["resumed"]) == ("c1", "2", True)


def test_a_child_run_of_a_variant_shows_the_variant_and_the_fields_that_it_sets() -> None:
    sink = EventList()
    facts = StudyFacts("u1", "first", TrialConfig().flat(), "d1", None, {}, 42, ["elpv"])
    fields = {"model.heads": "four_head", "augment.kind": "cutmix"}
    observer = TrackingCallback(sink, facts, lambda params: {"optim.lr": params["optim.lr"], **fields})
    observer.on_start(0, {"variant": "dra", "optim.lr": 0.01}, attempt=1)
    params = sink.events[0]["params"]
    assert {name: params[name] for name in TrialConfig().flat()} == TrialConfig().flat() | fields | {"optim.lr": 0.01}
    assert set(params) - set(TrialConfig().flat()) == {"variant", "_variant", "_lr"}
    assert (params["variant"], params["_lr"]) == ("dra", 0.01)


def test_a_point_carries_the_time_it_is_given_and_all_metrics() -> None:
    observer, events = callback()
    observer.on_report(1, EpochReport(2, 4, {OBJECTIVE: 0.5, f"{OBJECTIVE}/elpv": 0.4}), 99)
    assert (events[0]["time"], events[0]["step"]) == (99, 2)
    assert events[0]["metrics"] == {OBJECTIVE: 0.5, f"{OBJECTIVE}/elpv": 0.4}


def test_a_run_of_another_method_than_the_base_s_has_all_of_its_own_fields(tmp_path: Path) -> None:
    variants = {"ours": {"method.name": "deviation"}, "cloner": {"method.name": "kdad", "method.total_updates": 7}}
    space = make_space(tmp_path, variants=variants)
    fields = shown_fields(space)
    assert fields({"variant": "ours"}) == {"method.name": "deviation"}
    point = {"variant": "cloner"}
    assert fields(point) == space.base.override(variants["cloner"]).flat()
    # what the base has and kdad has no use for is not told of its run
    shown = {**space.base.flat(), **fields(point)}
    assert space.base.model.normal_head == "mixture" and shown["model.normal_head"] == TrialConfig().model.normal_head
    assert shown["method.total_updates"] == 7 and "method.cache_mb" in shown


def test_short_names_that_clash_stay_dotted() -> None:
    assert short_names({"a.size": 1, "b.size": 2, "c.lr": 3}) == {"_lr": 3, "_a.size": 1, "_b.size": 2}


def test_the_time_spent_is_measured() -> None:
    class Slow:
        def put(self, event: dict[str, Any]) -> None:
            time.sleep(0.02)

    facts = StudyFacts("u", "n", {}, "d", None, {}, 0, [])
    observer = TrackingCallback(Slow(), facts)
    observer.on_tags(0, {})
    observer.on_tags(1, {})
    assert observer.total_seconds == pytest.approx(observer.max_seconds * 2, rel=0.5)
    assert observer.max_seconds >= 0.02
