"""References at rest: what the record keeps of them, the paired error against the best trial, and the words for it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from typer.testing import CliRunner

from sctune.cli import app
from sctune.config import Task, TrialConfig, load_profile, methods, register
from sctune.config.methods import MethodEntry, MethodSection
from sctune.metrics.objective import AUROC, FPR95
from sctune.pages.commands import search_words
from sctune.pages.compare import compare_studies
from sctune.pages.report import write_report
from sctune.report import EpochReport
from sctune.search.plan.options import SearchOptions
from sctune.search.plan.plan import make_plan
from sctune.search.plan.references import Limit, reference_limit
from sctune.search.run import session
from sctune.search.study.leaderboard import TrialRow
from sctune.search.study.manifest import ResourceSpec, StudyManifest
from sctune.search.study.references import (
    Against,
    Reference,
    against_best,
    best_reference,
    read_references,
    reference_fields,
    stored_name,
    verdict_line,
)
from sctune.search.study.stored import load_result
from sctune.search.study.study import Study
from tests.builders import FEW, make_manifest, make_space
from tests.pages.studies import drawn_scores, make_study, record_trial

PARAMS = {"augment.threshold": 0.4, "optim.lr": 1e-3}


class PlainSection(MethodSection):
    name: str = "plain"
    power: float = 2.0


class BareSection(MethodSection):
    name: str = "bare"


ENTRY = MethodEntry(
    name="plain",
    description="a method that is never built here",
    section=PlainSection,
    implementation="nowhere:Plain",
    uses=("model.backbone", "model.weights"),
    trains=False,
    reference=True,
)


@pytest.fixture
def plain() -> Iterator[None]:
    """A reference that this process knows."""
    register(ENTRY)
    yield
    methods.forget("plain")


def report(value: float, scores: dict[str, list[float]], metric: str = "selection_auroc") -> EpochReport:
    return EpochReport(1, 1, {metric: value, "seconds": 2.0}, scores, metric.removeprefix("selection_"))


def told(value: float, key: str, time: int = 7) -> dict[str, Any]:
    return {"report": report(value, {key: [0.0, value]}).to_dict(), "time": time}


FAILED = {"failure": {"kind": "WeightsError", "message": "no weights"}, "time": 9}


@pytest.fixture
def manifest(tmp_path: Path) -> StudyManifest:
    tasks = (Task(seed=1), Task(seed=2))
    return make_manifest(make_space(tmp_path, parameters=FEW), tasks=tasks, references=("one", "two"))


def test_a_reference_is_whole_when_all_tasks_are(manifest: StudyManifest) -> None:
    first, second = (task.key for task in manifest.tasks)
    stored = {stored_name("one", first): told(0.8, first), stored_name("one", second): told(0.6, second, time=12)}
    one, two = read_references(manifest, stored | {stored_name("two", second): FAILED})
    assert one.report is not None and one.value == pytest.approx(0.7) and one.state == "COMPLETE"
    assert one.report.scores == {first: [0.0, 0.8], second: [0.0, 0.6]}
    assert (one.missing, one.begun, one.told, one.seconds) == ((), 7, 12, 4.0)
    assert (two.value, two.state, two.missing) == (None, "FAIL", (first, second))
    assert two.failure == FAILED["failure"]
    # once the weights are there, what failed is run again and its failure forgotten
    whole = stored | {stored_name("two", key): told(0.9, key) for key in (first, second)}
    again = read_references(manifest, whole)
    assert again[1].failure is None and best_reference(again, AUROC) == again[1]
    assert best_reference(again, FPR95) == again[0]
    assert best_reference(read_references(manifest, {}), AUROC) is None


def row(value: float) -> TrialRow:
    return TrialRow(3, "COMPLETE", {}, {1: value}, value, None, None, None)


def reference(name: str, value: float, scores: list[float]) -> Reference:
    return Reference(name, report(value, {"t": scores}))


def test_the_paired_error_by_hand() -> None:
    """Two anomalies, three normal images; the trial is perfect, the reference ranks two normals above an anomaly.

    DeLong: the differences are 0 and 2/3 for the anomalies, 0, 1/2 and 1/2 for the normals; their variances 2/9 and
    1/12, so that the error is the root of 2/9 / 2 + 1/12 / 3 = 5/36.
    """
    labels = {"t": [0, 0, 0, 1, 1]}
    rival = reference("one", 2 / 3, [0.1, 0.6, 0.7, 0.9, 0.5])
    worse = reference("two", 0.5, [0.6, 0.6, 0.6, 0.6, 0.6])
    found = against_best(row(1.0), {"t": [0.0, 0.1, 0.2, 0.8, 0.9]}, [worse, rival], labels, AUROC)
    assert found is not None and (found.trial, found.reference, found.value) == (3, "one", 2 / 3)
    assert found.difference == found.ahead == pytest.approx(1 / 3)
    assert found.error == pytest.approx(math.sqrt(5 / 36))
    assert found.beats is False and not found.loses, "a third is less than twice .37"
    # what the record lost leaves the difference without an error
    for scores, truth in (({}, labels), ({"t": [0.1]}, labels), ({"t": [0.0, 0.1, 0.2, 0.8, 0.9]}, None)):
        bare = against_best(row(1.0), scores, [rival], truth, AUROC)
        assert bare is not None and (bare.error, bare.beats) == (None, None)
        assert bare.difference == pytest.approx(1 / 3)


def test_every_reference_is_to_be_beaten() -> None:
    """One that is worse in the mean, on other images, may leave the difference less certain."""
    random = np.random.default_rng(1)
    truth = [0] * 60 + [1] * 40
    good = random.normal(size=100) + 2.2 * np.array(truth)
    # the best reference errs where the trial does, the other one elsewhere
    near, far = good - 0.5 * np.array(truth), random.normal(size=100) + 1.6 * np.array(truth)
    values = [AUROC.value(truth, scores.tolist()) for scores in (good, near, far)]
    assert values[0] > values[1] > values[2]
    rivals = [reference("near", values[1], near.tolist()), reference("far", values[2], far.tolist())]
    found = against_best(row(values[0]), {"t": good.tolist()}, rivals, {"t": truth}, AUROC)
    alone = against_best(row(values[0]), {"t": good.tolist()}, rivals[:1], {"t": truth}, AUROC)
    assert alone is not None and alone.beats and alone.unbeaten is None
    assert found is not None and (found.reference, found.beats, found.loses) == ("near", False, False)
    assert found.unbeaten is not None and found.unbeaten.reference == "far" and found.unbeaten.beats is False
    line = verdict_line(rivals, found, True, AUROC)
    assert line is not None and line.startswith(
        "the best trial (3) does not beat every reference: the best reference (near"
    )
    assert f"but far {values[2]:.4f} by " in line
    assert found.to_dict()["unbeaten"]["reference"] == "far"  # type: ignore[index]


def test_lower_false_alarms_are_ahead() -> None:
    random = np.random.default_rng(0)
    truth = [0] * 200 + [1] * 50
    good = (random.normal(size=250) + 3.0 * np.array(truth)).tolist()
    bad = (random.normal(size=250) + 0.3 * np.array(truth)).tolist()
    rival = Reference("one", report(FPR95.value(truth, bad), {"t": bad}, "selection_fpr95"))
    found = against_best(row(FPR95.value(truth, good)), {"t": good}, [rival], {"t": truth}, FPR95)
    assert found is not None and found.difference < 0 < found.ahead and found.beats
    turned = against_best(
        row(FPR95.value(truth, bad)), {"t": bad}, [Reference("g", report(0.1, {"t": good}))], {"t": truth}, FPR95
    )
    assert turned is not None and turned.loses and turned.beats is False


def test_the_last_line_says_which_it_is() -> None:
    rivals = [Reference("one", report(0.9, {})), Reference("two", failure={"kind": "X", "message": "no weights"})]
    line = lambda against, has_best=True, of=rivals: verdict_line(of, against, has_best, AUROC)  # noqa: E731
    ahead = Against(3, "one", 0.9, 0.05, 0.05, 0.02)
    named = "the best reference (one 0.9000)"
    assert line(ahead) == (f"the best trial (3) beats {named}: +0.0500 +- 0.0200, more than two paired standard errors")
    assert line(replace(ahead, error=0.026)) == (
        f"the best trial (3) does not beat {named}: +0.0500 +- 0.0260, not more than two paired standard errors"
    )
    assert line(replace(ahead, difference=-0.05, ahead=-0.05)) == (
        f"the best trial (3) does not beat {named}, which is better: -0.0500 +- 0.0200, more than two paired standard "
        "errors"
    )
    assert line(replace(ahead, error=None)) == (
        f"the best trial (3) differs from {named} by +0.0500; no standard error is known"
    )
    assert line(None, has_best=False) == f"no full run to compare with {named}"
    assert line(ahead, of=rivals[1:]) == "no reference to compare the best trial with (two: no weights)"
    assert line(ahead, of=[Reference("one")]) == ("no reference to compare the best trial with (none has been run yet)")
    assert line(None, of=[]) is None
    # two that are equal image by image are not told apart, however many there are
    assert replace(ahead, difference=0.0, ahead=0.0, error=0.0).beats is False


def test_the_record_keeps_them_from_the_samplers(tmp_path: Path) -> None:
    space = make_space(tmp_path, parameters=FEW)
    study = Study.create(tmp_path / "root", make_manifest(space, references=("one",)))
    study.record.tell_reference("one:t", FAILED)
    study.record.tell_reference("one:t", told(0.8, "t"))
    study.record.set_study_attrs({"qmc:x": 3})
    study.record.close()
    again = Study.open(tmp_path / "root", "s").record
    assert again.load_references() == {"one:t": told(0.8, "t")}
    assert again.load_study_attrs() == {"qmc:x": 3}
    again.close()


@pytest.fixture
def recorded(tmp_path: Path, tiny: TrialConfig) -> Study:
    """Two full runs and a reference that is far behind; another reference failed."""
    study = make_study(tmp_path / "studies", tiny, references=("one", "two"))
    (key,) = (task.key for task in study.manifest.tasks)
    best, rival = drawn_scores(study, 9.0), drawn_scores(study, 0.1, seed=3)
    record_trial(study, 0, TrialState.COMPLETE, PARAMS, scores=best)
    record_trial(study, 1, TrialState.COMPLETE, {**PARAMS, "optim.lr": 2e-3}, scores=drawn_scores(study, 0.5, seed=1))
    value = AUROC.value(_labels(study)[key], rival[key])
    study.record.tell_reference(stored_name("one", key), {"report": report(value, rival).to_dict(), "time": 5})
    study.record.tell_reference(stored_name("two", key), FAILED)
    study.record.close()
    return study


def _labels(study: Study) -> dict[str, list[int]]:
    from sctune.search.study.splits import selection_labels, study_splits

    return selection_labels(study.manifest, study_splits(study.manifest))


def command(study: Study, *words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--study-root", str(study.folder.parent)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_status_ends_with_the_verdict(recorded: Study) -> None:
    result = load_result(recorded.folder.parent, "small")
    assert result.against is not None and result.against.beats
    *_, failed, last = command(recorded, "status", "small").splitlines()
    assert last == result.verdict and last.startswith("the best trial (0) beats the best reference (one 0.")
    assert failed == "reference two was left out: no weights"
    document = json.loads(command(recorded, "status", "small", "--json"))
    one, two = document["references"]
    assert (one["name"], one["value"], one["seconds"]) == ("one", result.references[0].value, 2.0)
    assert one["se"] == pytest.approx(AUROC.standard_error(*_pair(recorded, result.references[0])))
    assert (two["value"], two["failure"]) == (None, FAILED["failure"])
    assert document["best_vs_reference"] == {
        "trial": 0,
        "reference": "one",
        "difference": pytest.approx(document["best_value"] - one["value"]),
        "se": result.against.error,
        "beats": True,
        "unbeaten": None,
    }


def _pair(study: Study, one: Reference) -> tuple[Any, Any]:
    ((key, truth),) = _labels(study).items()
    assert one.report is not None
    return truth, one.report.scores[key]


def test_report_and_comparison_show_them(recorded: Study, tmp_path: Path) -> None:
    root = recorded.folder.parent
    made = write_report(root, "small", tmp_path / "r.html").path.read_text(encoding="utf-8")
    part = made.partition('id="references"')[2].partition("<section")[0]
    assert "The best trial (0) beats the best reference (one 0." in part
    assert "WeightsError: no weights" in part and "2.0" in part
    rows = {name: cells for name, *cells in compare_studies(root, ["small"]).rows()}
    assert rows["best reference"][0].endswith("(one)") and rows["best trial minus it"][0].startswith("+0.")


def test_a_study_of_before_has_no_word_about_them(tmp_path: Path, tiny: TrialConfig) -> None:
    study = make_study(tmp_path / "studies", tiny)
    record_trial(study, 0, TrialState.COMPLETE, PARAMS, scores=drawn_scores(study, 2.0))
    study.record.close()
    path = study.folder / "study.json"
    content = json.loads(path.read_text())
    del content["references"]
    path.write_text(json.dumps(content))
    assert Study.open(study.folder.parent, "small").manifest.references == ()
    shown = command(study, "status", "small")
    assert "reference" not in shown
    document = json.loads(command(study, "status", "small", "--json"))
    assert (document["references"], document["best_vs_reference"]) == ([], None)
    rows = [name for name, *_ in compare_studies(study.folder.parent, ["small"]).rows()]
    assert "best reference" not in rows


def test_hooks_are_told_of_them(recorded: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(session, "notify", lambda hooks, document: sent.append(document))
    result = load_result(recorded.folder.parent, "small")
    session._notify(recorded, ["x"], "done", "done", result)
    session._notify(recorded, ["x"], "failed", "the disk is full")
    assert [one["verdict"] for one in sent] == [result.verdict, None]
    assert sent[0]["references"] == sent[1]["references"] == {"one": result.references[0].value, "two": None}
    assert json.loads(json.dumps(sent[0])) == sent[0]


def planned(image_folder: Path, **changes: Any) -> Any:
    fields: dict[str, Any] = {"name": "s", "profile": "smoke", "data": str(image_folder), "selection": "extra"}
    return make_plan(SearchOptions(**fields | changes), has_gpu=False)


@pytest.mark.usefixtures("plain")
def test_a_profile_or_an_option_asks_for_them(image_folder: Path) -> None:
    small: dict[str, Any] = {"profile": "cpu", "overrides": {"data.image_size": 96, "model.weights": "random"}}
    assert planned(image_folder).manifest.references == ()
    asked = planned(image_folder, references=True).manifest
    assert "plain" in asked.references
    assert "plain" in planned(image_folder, **small).manifest.references
    without = planned(image_folder, references=False, **small).manifest
    assert without.references == ()
    assert "--no-references" in search_words(without, "t") and "--references" in search_words(asked, "t")
    again = search_words(planned(image_folder).manifest, "t")
    assert not {"--references", "--no-references"} & set(again)


def limit(folder: Path, concurrent: int, left_s: float | None, ran_s: Sequence[float] = (), **changes: Any) -> Limit:
    """Of two references on two tasks of the profile `cpu`, each with 346 selection images."""
    config = load_profile("cpu").override(changes.pop("overrides", {})).model_dump()
    tasks = (Task(seed=1), Task(seed=2))
    fields: dict[str, Any] = {"config": config, "tasks": tasks, "references": ("one", "two"), "trials": 12}
    manifest = make_manifest(make_space(folder, parameters=FEW), **fields | changes)
    splits: Any = {task.key: SimpleNamespace(selection=range(346)) for task in tasks}
    return reference_limit(manifest, splits, concurrent, left_s, ran_s)


def test_a_tenth_of_the_searchs_time_is_theirs(tmp_path: Path) -> None:
    assert limit(tmp_path, 2, 600.0) == (60.0, "10 % of the time budget")
    # by full runs of 150 s on both tasks in the mean: 12 of them, two at a time
    found = limit(tmp_path, 2, None, [1000.0, 5000.0, 3000.0])
    assert found.seconds == pytest.approx(0.1 * 12 * 3000 / 2) and "by its full runs; --time-budget" in found.what
    # six epochs of 20 x 18 and 346 images of 160 x 160 px, each pixel 7000 multiply-adds, on two tasks
    trial = 2 * (1.5 + 6 * (20 * 18 + 346) * 160**2 * 7000 / 2e9)
    found = limit(tmp_path, 1, None)
    assert found.seconds == pytest.approx(0.1 * 12 * trial) and "on a slow machine" in found.what
    assert limit(tmp_path, 1, None, trials=24).seconds == pytest.approx(2 * found.seconds)
    # a method that says itself how many updates it makes: 300 in all
    updates = limit(tmp_path, 1, None, trials=24, overrides={"method.name": "kdad"}).seconds
    assert updates == pytest.approx(0.1 * 24 * 2 * (1.5 + (300 * 18 + 6 * 346) * 160**2 * 7000 / 2e9))


def test_a_fast_search_keeps_its_references(tmp_path: Path) -> None:
    """Four works, two minutes for each turn, however short the search is, and where nothing is known of it."""
    short = {"overrides": {"budget.epochs": 1}}
    for concurrent, turns in ((1, 4), (2, 2), (3, 2), (4, 1), (9, 1)):
        seconds, what = limit(tmp_path, concurrent, None, **short)
        assert seconds == 120 * turns >= 60 and what.startswith("the least that references get; --time-budget")
    assert limit(tmp_path, 2, None, [1.0] * 3).seconds == 240
    assert limit(tmp_path, 2, None, resources=ResourceSpec(gpus=1.0)).seconds == 240
    assert limit(tmp_path, 2, 30.0, **short).seconds == 3, "a budget is what was asked for"


def test_one_that_does_not_fit_is_told_before_anything_starts(image_folder: Path) -> None:
    register(replace(ENTRY, settings=("anomaly-free",)))
    try:
        plan = planned(image_folder, references=True)
    finally:
        methods.forget("plain")
    assert "plain" not in plan.manifest.references
    (line,) = [line for line in plan.warnings if "plain" in line]
    assert line.startswith("reference plain is left out: data.setting=general: method plain cannot be trained in it")


@pytest.mark.usefixtures("plain")
def test_a_base_without_a_backbone_takes_the_profiles(tiny: TrialConfig) -> None:
    register(replace(ENTRY, name="bare", section=BareSection, uses=(), reference=False))
    try:
        bare = tiny.override({"method.name": "bare"})
        made = bare.override(reference_fields(bare, "plain", "cpu"))
    finally:
        methods.forget("bare")
    assert bare.model == TrialConfig().model
    assert (made.method.name, made.model.backbone) == ("plain", load_profile("cpu").model.backbone)


@pytest.mark.usefixtures("plain")
def test_a_study_of_the_very_method_has_it_with_its_defaults(tiny: TrialConfig) -> None:
    own = tiny.override({"method.name": "plain", "method.power": 3.0})
    assert own.override(reference_fields(own, "plain", "cpu")).flat()["method.power"] == 2.0
    other = tiny.override(reference_fields(tiny, "plain", "gpu"))
    assert (other.method.name, other.model.backbone, other.model.weights) == ("plain", "efficientnet_lite0", "random")
    assert other.epochs == 1 and other.model.freeze == TrialConfig().model.freeze
