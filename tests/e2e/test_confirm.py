"""From a finished search to a model in service, with the real commands: confirm, deploy, predict, rollback."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sctune.confirm import deploy as confirm_deploy
from sctune.confirm import run as confirm_run
from sctune.confirm.gallery import galleries
from sctune.confirm.results import read_confirmation
from sctune.confirm.run import ConfirmOptions, run_confirm
from sctune.data.split import split_for
from sctune.deploy.locate import open_model
from sctune.search.study.driver import running_driver
from sctune.search.study.ledger import looks
from sctune.search.study.record import Record
from sctune.search.study.splits import study_splits
from sctune.search.study.study import Study
from sctune.tracking.server import STUDY_TAG, TRIAL_TAG, mlflow_client

# the first test waits for a search and two trainings on fresh seeds
pytestmark = pytest.mark.timeout(600)

NAME = "way"
TRAINED = f"{NAME}-confirm"
OPTIONS = ConfirmOptions(top=1, n_seeds=2)


@pytest.fixture(scope="module")
def searched(sctune: Any, smoke: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    space = tmp_path_factory.mktemp("space") / "two.yaml"
    space.write_text("name: two\nparameters:\n  augment.threshold: {type: float, low: 0.5, high: 0.9}\n")
    words = ("--space", space, "--name", NAME, "--trials", "2", "--scheduler", "none", "--max-concurrent", "1")
    document: dict[str, Any] = sctune.json(*smoke, *words)
    return document


@pytest.fixture(scope="module")
def confirmed(sctune: Any, searched: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = sctune.json("confirm", NAME, "--top", "1", "--n-seeds", "2", "--max-concurrent", "1")
    return document


@pytest.fixture(scope="module")
def deployed(sctune: Any, confirmed: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = sctune.json("deploy", NAME, "--name", "stripes")
    return document


@pytest.fixture
def study(sctune: Any, confirmed: dict[str, Any]) -> Study:
    return Study.open(sctune.home / "studies", NAME)


def scores_of(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    labels, scores = (np.array([float(row[name]) for row in rows]) for name in ("label", "score"))
    return labels, scores, [row["path"] for row in rows]


def test_the_winner_has_the_best_mean_on_seeds_of_its_own(
    sctune: Any, searched: dict[str, Any], confirmed: dict[str, Any]
) -> None:
    ranking = confirmed["ranking"]
    assert [one["mean"] for one in ranking] == sorted((one["mean"] for one in ranking), reverse=True)
    assert {one["name"] for one in ranking} == {f"trial-{searched['best_trial']}", "reference"}
    assert confirmed["seeds"] == [1001, 1002] and confirmed["looks"] == 1
    (searched_one,) = (one for one in ranking if one["trial"] is not None)
    assert searched_one["search_value"] == searched["best_value"]
    # the mean over seeds is what the confirmation's own record says
    again = sctune.json("status", TRAINED)
    values = {trial["params"]["variant"]: trial["value"] for trial in again["trials"]}
    assert {one["name"]: pytest.approx(one["mean"]) for one in ranking} == values


def test_the_test_numbers_are_those_of_the_stored_scores(study: Study, confirmed: dict[str, Any]) -> None:
    test, folder = confirmed["test"], study.folder / "confirm" / TRAINED
    winner = confirmed["ranking"][0]["name"]
    values = {}
    for seed in (1001, 1002):
        labels, scores, _ = scores_of(folder / f"{winner}--seed{seed}.csv")
        values[seed] = roc_auc_score(labels, scores)
        assert [int((labels == label).sum()) for label in (0, 1)] == test["images"]
    assert test["winner"]["value"] == pytest.approx(np.mean(list(values.values())))
    assert test["winner"]["std"] == pytest.approx(np.std(list(values.values())))
    assert test["winner"]["low"] <= test["winner"]["value"] <= test["winner"]["high"]
    assert test["difference"]["value"] == pytest.approx(test["winner"]["value"] - test["reference"]["value"])
    assert test["optimism_confirm"] == pytest.approx(confirmed["ranking"][0]["mean"] - test["winner"]["value"])
    (model,) = test["models"]
    assert model["test_auroc"] == pytest.approx(values[model["seed"]])
    # the seed is chosen by the selection images
    assert model["selection"] == max(confirmed["ranking"][0]["seeds"].values())


def test_no_test_image_was_ever_read_in_training(study: Study) -> None:
    trained = Study.open(study.folder.parent, TRAINED)
    splits = [*study_splits(study.manifest).values(), *study_splits(trained.manifest).values()]
    tests = {file.path for split in splits for file in split.test}
    read = {
        file.path for split in splits for name in ("train", "selection", "calibration") for file in getattr(split, name)
    }
    assert tests and read and not tests & read
    assert len({tuple(file.path for file in split.test) for split in splits}) == 1
    # fresh seeds train on other anomalies
    seen = [{file.path for file in split.train if file.label} for split in splits]
    assert len({tuple(sorted(files)) for files in seen}) > 1


def test_a_confirmation_is_not_repeated_and_not_nested(sctune: Any, study: Study, confirmed: dict[str, Any]) -> None:
    assert json.loads(sctune.here("confirm", NAME, "--json").stdout) == confirmed
    assert len(looks(study)) == 1
    refused = sctune.here("confirm", TRAINED, code=2).stderr
    assert "is itself a confirmation" in refused


def test_an_interrupted_look_is_one_look(study: Study, monkeypatch: pytest.MonkeyPatch, sctune: Any) -> None:
    """The choice is on disk before a test image is read, and stands when the scoring goes on."""
    monkeypatch.setenv("SCTUNE_HOME", str(sctune.home))
    before = read_confirmation(study)
    assert before is not None and before.test is not None
    (study.folder / "confirm" / "confirmation.json").unlink()

    def interrupted(*_: object) -> None:
        found = read_confirmation(study)
        assert found is not None and found.test is None and found.ranking == before.ranking
        raise KeyboardInterrupt

    monkeypatch.setattr(confirm_run, "score_models", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_confirm(study.folder.parent, NAME, OPTIONS, lambda lines: None)
    monkeypatch.undo()
    monkeypatch.setenv("SCTUNE_HOME", str(sctune.home))
    outcome = run_confirm(study.folder.parent, NAME, OPTIONS, lambda lines: None)
    assert outcome.confirmation is not None and outcome.confirmation.test is not None
    assert outcome.confirmation.test.winner == before.test.winner
    assert len(looks(study)) == 1


def test_other_options_are_refused_where_one_is_under_way(
    study: Study, monkeypatch: pytest.MonkeyPatch, sctune: Any
) -> None:
    path = study.folder / "confirm" / "confirmation.json"
    kept = path.read_bytes()
    path.unlink()
    try:
        refused = sctune.here("confirm", NAME, "--top", "1", "--n-seeds", "3", code=2).stderr
        assert "was begun with" in refused and f"sctune delete {NAME}-confirm" in refused
    finally:
        path.write_bytes(kept)


def test_the_ledger_is_in_mlflow_and_told_on_the_way_on(
    sctune: Any, study: Study, runs_of: Callable[[str], dict[int | None, Any]]
) -> None:
    parent = runs_of(NAME)[None]
    assert parent.data.tags["test_looks"] == "1"
    (look,) = looks(study)
    assert (look.images, look.models, look.trials, look.decided) == (sum(look_images(study)), 4, 2, "nothing")
    sctune("status", NAME, "--check")


def look_images(study: Study) -> tuple[int, int]:
    found = read_confirmation(study)
    assert found is not None and found.test is not None
    return found.test.images


def test_the_deployed_model_scores_as_it_was_confirmed(
    sctune: Any, study: Study, confirmed: dict[str, Any], deployed: dict[str, Any], image_folder: Path
) -> None:
    assert deployed["promoted"] and [step["passed"] for step in deployed["steps"]] == [True] * 4
    steps = {step["name"]: step["detail"] for step in deployed["steps"]}
    assert steps.keys() == {"licence", "parity", "latency", "acceptance"} and "exported (onnx)" in steps["parity"]
    (model,) = confirmed["test"]["models"]
    labels, scores, paths = scores_of(study.folder / "confirm" / model["scores"])
    loaded = open_model("models:/stripes@champion", study.manifest.tracking_uri, "cpu")
    for path, score in list(zip(paths, scores, strict=True))[::5]:
        assert loaded.score([loaded.prepare(image_folder / path).pixels])[0] == score
    printed = sctune("predict", image_folder / "test", "--model", "models:/stripes@champion").stdout
    found = {
        Path(row["path"]).relative_to(image_folder).as_posix(): row for row in csv.DictReader(io.StringIO(printed))
    }
    predicted = [float(found[path]["score"]) for path in paths]
    assert roc_auc_score(labels, predicted) == pytest.approx(model["test_auroc"], abs=1e-12)
    assert model["threshold"]["value"] == loaded.threshold.value  # type: ignore[union-attr]
    alarms = [found[path]["label"] == "anomalous" for path, label in zip(paths, labels, strict=True) if label == 0]
    assert sum(alarms) == model["false_alarms"]["count"]


def test_the_card_tells_what_it_is(study: Study, confirmed: dict[str, Any], deployed: dict[str, Any]) -> None:
    client = mlflow_client(study.manifest.tracking_uri)
    version = client.get_model_version_by_alias("stripes", "champion")
    (model,) = confirmed["test"]["models"]
    for text in (f"test AUROC of this model: {model['test_auroc']:.4f}", "## Limits", "seed " + str(model["seed"])):
        assert text in version.description
    gate = json.loads(version.tags["sctune.gate"])
    assert [step["name"] for step in gate] == ["licence", "parity", "latency", "acceptance"]


def test_a_gate_that_fails_leaves_the_champion(sctune: Any, study: Study, deployed: dict[str, Any]) -> None:
    client = mlflow_client(study.manifest.tracking_uri)
    before = client.get_model_version_by_alias("stripes", "champion").version
    words = ("deploy", NAME, "--name", "stripes", "--max-latency", "0.001")
    failed = sctune(*words, code=2)
    assert "FAILED latency" in failed.stdout and "stays as it was: latency failed" in failed.stdout
    assert client.get_model_version_by_alias("stripes", "champion").version == before
    forced = sctune.json(*words, "--force", "the line stands still")
    assert forced["forced"] and "the line stands still" in forced["alias"]["reason"]


def test_a_champion_that_came_meanwhile_is_not_replaced(
    sctune: Any, study: Study, deployed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCTUNE_HOME", str(sctune.home))
    seen = iter([1, 7])
    monkeypatch.setattr(confirm_deploy, "aliased", lambda *_: next(seen))
    outcome = confirm_deploy.run_deploy(
        study.folder.parent, NAME, confirm_deploy.DeployOptions(name="stripes"), lambda lines: None
    )
    assert outcome.move is None and [step.name for step in outcome.failed] == ["unchanged"]
    assert "moved from 1 to 7 meanwhile" in outcome.failed[0].detail


def test_rollback_is_told(sctune: Any, study: Study, deployed: dict[str, Any]) -> None:
    only = sctune("rollback", "stripes", code=2).stderr
    assert "is the first champion of 'stripes'" in only


def test_what_is_not_confirmed_is_not_deployed(sctune: Any, confirmed: dict[str, Any]) -> None:
    assert f"run `sctune confirm {NAME}-confirm` first" in sctune("deploy", TRAINED, code=2).stderr
    assert "no study 'wya'" in sctune("deploy", "wya", code=2).stderr


def test_rescored_ways_are_told_and_kept(sctune: Any, study: Study, searched: dict[str, Any]) -> None:
    found = sctune.json("rescore", NAME)
    with closing(Record(study.record_url, study.name)) as record:
        value = {trial.number: trial.value for trial in record.load()}[searched["best_trial"]]
    assert found["trained"]["value"] == pytest.approx(value)
    values = [one["value"] for one in found["variants"]]
    assert values == sorted(values, reverse=True) and len(values) > 5
    table = scores_table(study.folder / "rescore" / f"trial-{searched['best_trial']:04d}.csv")
    assert [float(row["selection_auroc"]) for row in table] == [found["trained"]["value"], *values]
    client = mlflow_client(study.manifest.tracking_uri)
    condition = f"tags.`{STUDY_TAG}` = '{study.manifest.study_id}' and tags.`{TRIAL_TAG}` = '{searched['best_trial']}'"
    experiments = [one.experiment_id for one in client.search_experiments()]
    owner = client.search_runs(experiments, condition)[0].info
    (shown,) = client.search_runs([owner.experiment_id], f"tags.`mlflow.parentRunId` = '{owner.run_id}'")
    assert len(client.get_metric_history(shown.info.run_id, "selection_auroc")) == len(table)
    sctune("status", NAME, "--check")


def scores_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_mean_of_the_seeds_is_deployed_without_a_look(
    sctune: Any, study: Study, confirmed: dict[str, Any], image_folder: Path
) -> None:
    """The confirmation's own models as one; its scores are the mean of those of the test look."""
    before = len(looks(study))
    deployed = sctune.json("deploy", NAME, "--name", "both", "--ensemble", "2")
    assert deployed["promoted"] and len(looks(study)) == before
    parity = next(step["detail"] for step in deployed["steps"] if step["name"] == "parity")
    assert "exported (onnx)" in parity
    table = sctune.home / "both.csv"
    sctune("predict", image_folder / "test", "--model", "models:/both@champion", "--out", table)
    predicted = {Path(row["path"]).parts[-2:]: float(row["score"]) for row in scores_table(table)}
    folder = study.folder / "confirm" / TRAINED
    winner = confirmed["ranking"][0]["name"]
    members = [scores_of(folder / f"{winner}--seed{seed}.csv") for seed in (1001, 1002)]
    means = np.mean([scores for _, scores, _ in members], axis=0)
    for path, score in zip(members[0][2], means, strict=True):
        assert score == pytest.approx(predicted[Path(path).parts[-2:]], abs=1e-9)
    found = read_confirmation(study)
    assert found is not None
    (final,) = found.finals
    assert final.form.name == "ensemble of 2" and final.test is None
    # 16 anomalies, of which two seeds draw ten each, so that none is left to compare on but in folds
    assert final.basis.startswith("3 folds over 16 anomalies of the development pool")
    refit = folder / "refit"
    single, ensemble = final.compared
    assert single.estimate.value == pytest.approx(fold_value(refit, "drawn", 1001, 1002))
    assert ensemble.estimate.value == pytest.approx(fold_value(refit, "drawn", 1001, 1002, together=True))
    assert final.gap is not None
    assert final.gap.value == pytest.approx(ensemble.estimate.value - single.estimate.value)
    assert not list(refit.glob("*.safetensors"))
    # of the folds' images, since no test image was looked at
    (pictured,) = galleries(study, found, final)
    assert pictured.name == f"{winner}--ensemble-of-2--escapes-development.png" and pictured.parent == folder


def test_the_final_model_is_trained_on_all_and_compared_by_folds(
    sctune: Any, study: Study, confirmed: dict[str, Any], wait_until: Callable[..., None]
) -> None:
    """Stopped in its trainings, then to the end."""
    before = len(looks(study))
    told = sctune.home / "stopped.txt"
    with sctune.started("confirm", NAME, "--refit", "all", stderr=told) as process:
        wait_until(lambda: running_driver(Study.open(study.folder.parent, TRAINED)) is not None, 120, "a driver")
        refused = sctune.here("confirm", NAME, "--refit", "all", code=2).stderr
        assert f"is being run by process {process.pid}" in refused
        wait_until(lambda: "trained: " in told.read_text(), 120, "the end of a training")
        stopped = sctune("stop", TRAINED).stdout
        out, _ = process.communicate(timeout=60)
    err = told.read_text()
    assert "has ended: stopped" in stopped and "go on with the `sctune confirm` that began it" in stopped
    assert process.returncode == 3, out + err
    assert "the same command goes on with the others" in err and "Traceback" not in err
    assert len(looks(study)) == before
    document = sctune.json("confirm", NAME, "--refit", "all")
    assert document["looks"] == before + 1 and looks(study)[-1].command.endswith("--refit all")
    (final,) = (one for one in document["finals"] if one["refit"])
    folder = study.folder / "confirm" / TRAINED / "refit"
    (seed,) = final["seeds"]
    values = {"single model": fold_value(folder, "drawn", seed), "refit": fold_value(folder, "all", seed)}
    single, refit = final["compared"]
    assert (single["name"], refit["name"], single["difference"]) == (*values, None)
    for one in (single, refit):
        assert one["estimate"]["value"] == pytest.approx(values[one["name"]])
    assert refit["difference"]["value"] == pytest.approx(values["refit"] - values["single model"])
    labels, scores, _ = scores_of(study.folder / "confirm" / final["test"]["scores"])
    value = roc_auc_score(labels, scores)
    assert final["test"]["estimate"]["value"] == pytest.approx(value)
    (model,) = document["test"]["models"]
    assert final["test"]["difference"]["value"] == pytest.approx(value - model["test_auroc"])
    # nothing is trained, drawn or looked at again
    known = read_confirmation(study)
    assert known is not None
    pictures = galleries(study, known, next(one for one in known.finals if one.refit))
    assert [path.stem.rpartition("-")[2] for path in pictures] == ["development", "test"]
    made = [path.stat().st_mtime_ns for path in pictures]
    again = sctune("confirm", NAME, "--refit", "all", "--json")
    assert json.loads(again.stdout) == document and all(str(path) in again.stderr for path in pictures)
    assert [path.stat().st_mtime_ns for path in pictures] == made
    client = mlflow_client(study.manifest.tracking_uri)
    condition = f"tags.`{STUDY_TAG}` = '{study.manifest.study_id}' and tags.`sctune.role` = 'study'"
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()], condition)
    assert {Path(one.path).name for one in client.list_artifacts(run.info.run_id, "confirm")} >= {
        path.name for path in pictures
    }
    trained = Study.open(study.folder.parent, TRAINED)
    (task,) = (one for one in trained.manifest.tasks if one.seed == final["seeds"][0])
    config = trained.manifest.trial_config().override({"data.anomalies": "all", "data.selection": "proxy"})
    split = split_for(config.for_task(task), task)
    pool = {file.path for file in split.development if file.label == 1}
    assert {file.path for file in split.train if file.label == 1} == pool


def fold_value(folder: Path, anomalies: str, *seeds: int, together: bool = False) -> float:
    """Mean AUROC over folds and seeds of the stored trainings; together: of the seeds' mean scores."""
    files = [sorted(folder.glob(f"*--{anomalies}--*seed{seed}-fold*.json")) for seed in seeds]
    values = []
    for fold in zip(*files, strict=True):
        contents = [json.loads(file.read_text()) for file in fold]
        scores = [one["scores"] for one in contents]
        shown = [np.mean(scores, axis=0)] if together else scores
        values += [roc_auc_score(contents[0]["labels"], one) for one in shown]
    assert len(values) == 3 * (1 if together else len(seeds))
    return float(np.mean(values))


def test_final_forms_that_cannot_be_are_refused(sctune: Any, confirmed: dict[str, Any]) -> None:
    many = sctune("deploy", NAME, "--ensemble", "3", code=2).stderr
    assert "--ensemble 3: the confirmation has 2 seeds" in many and "--n-seeds 3" in many
    assert "only `all` is known" in sctune("deploy", NAME, "--refit", "some", code=2).stderr
    assert "--best-f1 needs anomalies" in sctune("deploy", NAME, "--ensemble", "2", "--best-f1", code=2).stderr


@pytest.mark.slow
def test_a_second_look_is_counted_and_a_champion_compared(
    sctune: Any, study: Study, deployed: dict[str, Any], image_folder: Path
) -> None:
    """A model of other seeds against the champion, on test images that neither has read; then the way back."""
    before = len(looks(study))
    again = sctune.json("confirm", NAME, "--top", "1", "--n-seeds", "1", "--again")
    assert again["seeds"] == [1003] and again["looks"] == before + 1 and again["confirm_study"] == f"{NAME}-confirm-2"
    document = sctune.json("deploy", NAME, "--name", "stripes", "--force", "to go back from")
    (step,) = (step for step in document["steps"] if step["name"] == "acceptance")
    assert "that neither has seen" in step["detail"] and "the champion's" in step["detail"]
    assert [look.decided for look in looks(study)][-1] == "whether the model takes the champion's place"
    assert document["promoted"] and document["alias"]["before"] == 1
    back = sctune.json("rollback", "stripes")
    assert (back["version"], back["before"]) == (1, document["model"]["version"])
    warned = sctune("resume", NAME, "--trials", "+1").stderr
    assert f"have been looked at {before + 2} times" in warned and "no longer blind" in warned
