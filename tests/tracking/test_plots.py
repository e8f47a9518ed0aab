from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from sctune.metrics.merit import in_order
from sctune.metrics.objective import AUROC
from sctune.tracking import plots
from sctune.tracking.leaderboard import leaderboard_csv, leaderboard_markdown, optuna_plots


@dataclass(frozen=True)
class PlainRow:
    number: int
    state: str
    value: float | None
    values: Mapping[int, float] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)


ROWS = [
    PlainRow(0, "COMPLETE", 0.8, {1: 0.6, 2: 0.8}, {"a|b": 0.25, "c": "x"}),
    PlainRow(1, "PRUNED", 0.9, {1: 0.9}, {"a|b": 0.5}),
    PlainRow(2, "FAIL", None),
    PlainRow(3, "COMPLETE", 0.85, {1: 0.5, 2: 0.85}, {"a|b": 0.75, "c": "y"}),
]


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_curve_by_hand_and_against_scikit_learn() -> None:
    false, true = plots.roc_points(np.array([0, 1, 1, 0]), np.array([0.1, 0.9, 0.4, 0.4]))
    # from the highest score: one anomaly alone, then the tie of one anomaly and one normal, then a normal
    assert false.tolist() == [0, 0, 0.5, 1]
    assert true.tolist() == [0, 0.5, 1, 1]
    random = np.random.default_rng(0)
    labels, scores = random.integers(0, 2, 200), random.integers(0, 20, 200).astype(float)
    false, true = plots.roc_points(labels, scores)
    assert np.trapezoid(true, false) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_pictures_are_written_and_are_not_empty(tmp_path: Path) -> None:
    labels, scores = np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.2, 0.6, 0.5, 0.9])
    paths = [
        plots.roc_curve(labels, scores, tmp_path / "new" / "roc.png"),
        plots.score_histogram(labels, scores, tmp_path / "histogram.png"),
        plots.learning_curves(ROWS, tmp_path / "curves.png", AUROC),
        plots.search_picture(ROWS, tmp_path / "search.png", AUROC),
    ]
    for path in paths:
        assert picture(path).std() > 5, path.name
    again = plots.search_picture(ROWS, tmp_path / "again.png", AUROC)
    assert again.read_bytes() == paths[-1].read_bytes(), "the same study gives the same file"


def test_a_search_without_values_still_gives_pictures(tmp_path: Path) -> None:
    assert plots.search_picture([], tmp_path / "none.png", AUROC).is_file()
    assert plots.learning_curves([PlainRow(0, "FAIL", None)], tmp_path / "fail.png", AUROC).is_file()


def test_the_gallery_shows_its_images_and_the_attribution(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    row = plots.GalleryRow(red, red // 2, random.random((32, 32)), random.random((32, 32)) > 0.5, red)
    plain = picture(plots.gallery([row, row], tmp_path / "plain.png", None))
    named = picture(plots.gallery([row, row], tmp_path / "named.png", "Images: somebody, CC BY-NC-SA 4.0"))
    assert (plain == [255, 0, 0]).all(axis=-1).sum() > 1000, "the donor is in the picture"
    strip = named[-20:].mean(axis=-1)
    assert (strip < 128).any(), "text stands under the picture"
    assert not (plain[-20:].mean(axis=-1) < 128).all(axis=1).any()


def test_the_leaderboard_ranks_full_runs_before_early_stopped_ones(tmp_path: Path) -> None:
    assert [row.number for row in in_order(ROWS, AUROC)] == [3, 0, 1, 2]
    with leaderboard_csv(ROWS, tmp_path / "l" / "board.csv", AUROC).open() as stream:
        table = list(csv.DictReader(stream))
    assert [line["trial"] for line in table] == ["3", "0", "1", "2"]
    assert table[0] == {
        "rank": "1", "trial": "3", "state": "COMPLETE", "epochs": "2", "selection_auroc": "0.85",
        "a|b": "0.75", "c": "y",
    }  # fmt: skip
    assert (table[3]["selection_auroc"], table[2]["c"]) == ("", "")
    text = leaderboard_markdown(ROWS, AUROC).splitlines()
    assert text[2] == "| 1 | 3 | COMPLETE | 2 | 0.8500 | 0.75 | y |"
    assert "a\\|b" in text[0]


def study_of(count: int, *names: str) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for n in range(count):
        distributions = {name: optuna.distributions.FloatDistribution(0, 1) for name in names}
        params = {name: (n * 7 % 5) / 5 + i / 10 for i, name in enumerate(names)}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=n / 10))
    return study


def test_optuna_figures_are_self_contained(tmp_path: Path) -> None:
    paths = optuna_plots(study_of(6, "augment.threshold", "optim.lr"), tmp_path / "optuna")
    assert [path.name for path in paths] == [
        "history.html",
        "importance.html",
        "slice.html",
        "parallel_coordinate.html",
    ]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert "Plotly.newPlot" in text
        assert '<script src="' not in text and 'src="https' not in text, "nothing is loaded from elsewhere"


@pytest.mark.parametrize(
    ("study", "reason"), [(study_of(1, "a", "b"), "2 complete trials"), (study_of(5, "a"), "2 varied")]
)
def test_an_importance_that_cannot_be_known_says_why(tmp_path: Path, study: optuna.Study, reason: str) -> None:
    paths = optuna_plots(study, tmp_path)
    assert reason in paths[1].read_text()
    assert "Plotly.newPlot" in paths[0].read_text(encoding="utf-8")


def test_a_study_without_complete_trials_gives_four_notes(tmp_path: Path) -> None:
    assert all("No " in path.read_text() for path in optuna_plots(study_of(0), tmp_path))
