"""Final forms of a confirmed model: how they are asked for, compared by hand-made scores, kept and told."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sctune.config import TrialConfig, load_profile
from sctune.confirm.comparison import compare_forms
from sctune.confirm.final import Final, Form, asked_form, check_form, unfit
from sctune.confirm.refit import final_trainings, fold_trainings, refit_folds
from sctune.confirm.results import Confirmation, final_lines
from sctune.errors import ConfigError, DataError
from sctune.train.trainer import task_of

PATHS = ("a", "b", "c", "d", "e", "f")
LABELS = np.array([0, 0, 0, 1, 1, 1])
DRAWN = {
    (1, "fold 0"): np.array([0.1, 0.5, 0.3, 0.2, 0.6, 0.9]),
    (1, "fold 1"): np.array([0.4, 0.2, 0.1, 0.3, 0.15, 0.8]),
    (2, "fold 0"): np.array([0.3, 0.1, 0.2, 0.9, 0.15, 0.7]),
    (2, "fold 1"): np.array([0.2, 0.7, 0.1, 0.6, 0.9, 0.3]),
}
ALL = {key: scores + 0.3 * LABELS for key, scores in DRAWN.items()}


def table(
    scores: dict[tuple[int, str], np.ndarray],
) -> dict[tuple[int, str], tuple[tuple[str, ...], np.ndarray, np.ndarray]]:
    return {key: (PATHS, LABELS, values) for key, values in scores.items()}


def mean_of_folds(scores: dict[tuple[int, str], np.ndarray], together: bool) -> float:
    if not together:
        return float(np.mean([roc_auc_score(LABELS, values) for values in scores.values()]))
    means = [np.mean([scores[seed, fold] for seed in (1, 2)], axis=0) for fold in ("fold 0", "fold 1")]
    return float(np.mean([roc_auc_score(LABELS, values) for values in means]))


def test_each_form_beside_the_single_model() -> None:
    found = compare_forms({"single model": table(DRAWN), "refit": table(ALL)}, Form(True, 2))
    wanted = {
        "single model": mean_of_folds(DRAWN, False),
        "ensemble of 2": mean_of_folds(DRAWN, True),
        "refit": mean_of_folds(ALL, False),
        "refit, ensemble of 2": mean_of_folds(ALL, True),
    }
    assert {one.name: pytest.approx(one.estimate.value) for one in found} == wanted
    assert len(set(wanted.values())) == 4
    base = wanted["single model"]
    gaps = {one.name: one.difference.value for one in found if one.difference is not None}
    assert gaps == {name: pytest.approx(value - base) for name, value in wanted.items() if name != "single model"}
    # an ensemble is one model: it has no spread over seeds of its own
    stds = {one.name: one.estimate.std for one in found}
    assert stds["ensemble of 2"] is None and stds["single model"] is not None
    for one in found:
        assert one.difference is None or one.difference.low <= one.difference.value <= one.difference.high


def test_a_refit_of_one_seed_has_two_rows() -> None:
    one = {key: scores for key, scores in table(DRAWN).items() if key[0] == 1}
    rows = compare_forms({"single model": one, "refit": one}, Form(True, 1))
    assert [row.name for row in rows] == ["single model", "refit"]
    assert rows[1].difference is not None and rows[1].difference.value == 0


@pytest.mark.parametrize(
    ("refit", "size", "name", "words"),
    [
        (None, 1, "single model", ""),
        ("all", 1, "refit", " --refit all"),
        (None, 3, "ensemble of 3", " --ensemble 3"),
        ("all", 2, "refit, ensemble of 2", " --refit all --ensemble 2"),
    ],
)
def test_what_is_asked_for(refit: str | None, size: int, name: str, words: str) -> None:
    form = asked_form(refit, size, 3)
    assert (form.name, form.words, form.is_plain) == (name, words, name == "single model")
    assert not {" ", ","} & set(form.slug)


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"--ensemble 4: the confirmation has 3 seeds.*--n-seeds 4"):
        asked_form(None, 4, 3)
    with pytest.raises(ConfigError, match="--refit some: only `all` is known"):
        asked_form("some", 1, 3)


def elpv(**fields: object) -> TrialConfig:
    return load_profile("cpu").override({f"data.{name}": value for name, value in fields.items()})


def test_trainings_in_folds_differ_in_their_anomalies_only() -> None:
    config = elpv()
    single = fold_trainings("trial-3", config, task_of(config), (1001, 1002))
    refit = refit_folds(single)
    assert len(single) == len(refit) == 6 and len({one.name for one in (*single, *refit)}) == 12
    for a, b in zip(single, refit, strict=True):
        assert (a.task, a.split.selection, a.anomalies, b.anomalies) == (b.task, b.split.selection, "drawn", "all")
        assert [one.split.summary()["train_anomalies"] for one in (a, b)] == [10, 124] and not (a.keeps or b.keeps)
    members = final_trainings("trial-3", config, task_of(config), (1001, 1002))
    assert [one.split.summary()["train_anomalies"] for one in members] == [186, 186]
    assert all(one.keeps and not one.split.summary()["selection_anomalies"] for one in members)
    assert fold_trainings("other", config, task_of(config), (1001,))[0].name != single[0].name


@pytest.mark.parametrize("fields", [{"n_anomalies": "all"}, {"anomalies": "all"}])
def test_what_cannot_differ_is_not_trained_twice(fields: dict[str, object]) -> None:
    config = elpv(**fields)
    with pytest.raises(DataError, match="no more anomalies are left than the single model is trained on"):
        refit_folds(fold_trainings("trial-3", config, task_of(config), (1001,)))


def test_forms_that_a_configuration_cannot_have() -> None:
    free = elpv(setting="anomaly-free")
    assert "no labelled anomalies" in str(unfit(Form(True, 1), free)) and unfit(Form(False, 2), free) is None
    gaussian = load_profile("cpu").override({"method.name": "gaussian"})
    assert "trains nothing" in str(unfit(Form(True, 2), gaussian))
    assert unfit(Form(True, 1), gaussian) is None and unfit(Form(True, 2), elpv()) is None


def test_no_refit_of_what_learns_nothing_from_anomalies() -> None:
    blind = [elpv().override({"method.name": name}) for name in ("ssm", "kdad", "cutpaste")]
    for config in blind:
        assert f"method {config.method.name}, as it is configured, learns nothing" in str(unfit(Form(True, 1), config))
        assert unfit(Form(False, 2), config) is None
    seeing = [
        blind[2].override({"method.seen": "class"}),
        *(elpv().override({"method.name": n}) for n in ("mlep", "saoe")),
    ]
    assert [unfit(Form(True, 1), config) for config in seeing] == [None] * 3
    # refused at once where nothing else can win
    with pytest.raises(ConfigError, match="--refit all: method ssm"):
        check_form(Form(True, 1), blind)
    check_form(Form(True, 1), [*blind, seeing[0]])
    check_form(Form(False, 3), blind)


def final(form: Form) -> Final:
    rows = compare_forms({"single model": table(DRAWN), "refit": table(ALL)}, form)
    seeds = tuple(range(1001, 1001 + form.size))
    return Final(subset="", candidate="trial-3", refit=form.refit, seeds=seeds, basis="2 folds", compared=rows)


def test_it_is_kept_once_for_each_form_and_told(bare: Confirmation) -> None:
    single, both = final(Form(True, 1)), final(Form(True, 2))
    found = bare.with_final(single).with_final(both).with_final(single)
    assert [one.form for one in found.finals] == [Form(True, 2), Form(True, 1)]
    assert Confirmation.model_validate(found.model_dump(mode="json")) == found
    assert "finals" not in bare.model_dump(mode="json")
    assert found.final("trial-3", "", Form(True, 2)) == both and found.final("other", "", Form(True, 2)) is None
    assert both.gap == both.compared[-1].difference
    head, *rows = final_lines(both)
    assert head == "final model: trial-3, refit, ensemble of 2 (seeds 1001, 1002); 2 folds"
    assert rows[0].strip().startswith("single model: AUROC") and "minus" not in rows[0]
    assert "refit, ensemble of 2: AUROC" in rows[3] and "minus the single model +" in rows[3]
    assert rows[-1].strip() == "not scored on the test images"


@pytest.fixture
def bare() -> Confirmation:
    return Confirmation(
        study="s",
        study_id="0" * 32,
        confirm_study="s-confirm",
        written="2026-11-29T00:00:00+00:00",
        mode="extra",
        seeds=(1001, 1002),
        ranking=(),
        reference=None,
        false_alarm_rate=0.01,
    )
