"""Escapes before and after: which images they are, by hand-made scores, and the picture of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sctune.config import TrialConfig
from sctune.confirm.escapes import Judged, Verdict, counts_line, judged, judged_by_folds, sorted_out
from sctune.confirm.final import Final
from sctune.confirm.gallery import DEVELOPMENT, TEST, Scene, galleries, gallery_lines, gallery_path, show_escapes
from sctune.confirm.results import Confirmation
from sctune.errors import DataError
from sctune.methods.base import Fitted
from sctune.methods.ensemble import Ensemble
from sctune.search.study.study import Study
from sctune.train.single import score_test
from sctune.train.trainer import Trainer
from tests.pages.studies import make_study

PATHS = ("n1", "n2", "n3", "a1", "a2", "a3", "a4", "a5")
LABELS = (0, 0, 0, 1, 1, 1, 1, 1)
SINGLE = (0.1, 0.6, 0.5, 0.2, 0.4, 0.9, 0.1, 0.5)
FINAL = (1.0, 1.0, 2.5, 3.0, 1.5, 1.9, 1.2, 2.1)
AT = (0.5, 2.0)
"""Thresholds: at 0.5 and 2.0 a score is not above."""


def names(rows: tuple[Judged, ...]) -> list[str]:
    return [row.path for row in rows]


def test_who_lets_what_through() -> None:
    found = sorted_out(judged(PATHS, LABELS, SINGLE, FINAL, AT))
    assert (found.normal, found.anomalous, found.single, found.final) == (3, 5, 4, 3)
    # the deepest escapes of the single model, then those of the final form
    assert names(found.found) == ["a1", "a5"] and names(found.both) == ["a4", "a2"] and names(found.lost) == ["a3"]
    # n2 is an alarm of the single model by 0.1, n3 one of the final form by 0.5
    assert names(found.alarms) == ["n3", "n2"]
    line = counts_line(found, "refit")
    assert line.startswith("of 5 anomalous images the single model lets 4 escape, the refit 3 (2 found, 1 lost); ")
    assert line.endswith("false alarms of 3: 1 with the single model and 1 with the refit")


def test_each_fold_has_thresholds_of_its_own_normals() -> None:
    """Of two normal images the conformal threshold is the higher score."""
    labels = np.array([0, 0, 1, 1])
    folds = [
        (("n1", "n2", "a1", "a2"), labels, np.array([1.0, 2.0, 1.5, 3.0]), np.array([1.0, 4.0, 5.0, 3.0])),
        (("n1", "n2", "a3", "a4"), labels, np.array([7.0, 2.0, 6.0, 8.0]), np.array([1.0, 2.0, 6.0, 1.5])),
    ]
    rows = {row.path: row for row in judged_by_folds(folds, 0.01)}
    assert list(rows) == ["n1", "n2", "a1", "a2", "a3", "a4"]
    assert rows["a1"] == Judged("a1", 1, Verdict(1.5, 2.0), Verdict(5.0, 4.0))
    assert rows["a4"] == Judged("a4", 1, Verdict(8.0, 7.0), Verdict(1.5, 2.0))
    # in both folds, and shown as it comes nearest to an alarm: 0 above in one, -1 or -5 in the other
    assert rows["n1"].single == Verdict(7.0, 7.0) and rows["n2"].final == Verdict(4.0, 4.0)
    found = sorted_out(rows.values())
    assert (names(found.found), names(found.both), names(found.lost)) == (["a3", "a1"], [], ["a2", "a4"])
    assert found.alarms == ()
    with pytest.raises(DataError, match="no normal images"):
        judged_by_folds([(("a1",), np.array([1]), np.array([1.0]), np.array([1.0]))], 0.01)


@pytest.fixture(scope="module")
def trainers(tiny: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> list[Trainer]:
    """Two seeds."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCTUNE_HOME", str(tmp_path_factory.mktemp("home")))
        for seed in (1, 2):
            trainer = Trainer(tiny.override({"seed": seed}))
            list(trainer.fit())
            found.append(trainer)
    return found


@pytest.fixture
def study(tmp_path: Path, tiny: TrialConfig) -> Study:
    return make_study(tmp_path / "studies", tiny)


@pytest.fixture
def found() -> Confirmation:
    return Confirmation(
        study="small",
        study_id="0" * 32,
        confirm_study="small-confirm",
        written="2026-11-29T00:00:00+00:00",
        mode="extra",
        seeds=(1, 2),
        ranking=(),
        reference=None,
        false_alarm_rate=0.01,
    )


def final(subset: str = "") -> Final:
    return Final(subset=subset, candidate="trial-3", refit=False, seeds=(1, 2), basis="3 folds", compared=())


def scene(trainers: list[Trainer], where: str, with_models: bool = True) -> tuple[Scene, dict[str, int]]:
    """Of the test images, or of development images, with thresholds that let about half of the anomalies escape."""
    first, both = trainers[0], Ensemble([one.method for one in trainers])
    rows = score_test(first)
    if where == DEVELOPMENT:
        held = first.selection
        scores = first.method.score(held.images)
        rows = [(path, int(of), float(s)) for path, of, s in zip(held.paths, held.labels, scores, strict=True)]
        final_scores = both.score(held.images)
    else:
        final_scores = np.array([score for _, _, score in score_test(first, both)])
    paths, labels, single = zip(*rows, strict=True)
    at = tuple(float(np.median(values)) for values in (single, final_scores))
    images = judged(paths, labels, single, final_scores, (at[0], at[1]))
    models: tuple[Fitted, Fitted] | None = (first.method, both) if with_models else None
    return Scene(where, first, images, models), dict(zip(paths, labels, strict=True))


def colourful(path: Path) -> float:
    """Share of pixels with a colour: heat maps, since images and text are grey."""
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB"), int)
    return float((np.ptp(pixels, axis=-1) > 60).mean())


def test_the_picture_has_the_heat_maps_of_both(trainers: list[Trainer], study: Study, found: Confirmation) -> None:
    one, labels = scene(trainers, TEST)
    counts, place, *rest = show_escapes(study, found, final(), one)
    path = gallery_path(study, found, final(), TEST)
    assert path.name == "trial-3--ensemble-of-2--escapes-test.png" and path.parent.name == "small-confirm"
    assert place.endswith(str(path)) and colourful(path) > 0.01
    assert f"on test images: of {sum(labels.values())} anomalous images the single model lets " in counts
    # the study has no store: the file stays
    (trouble,) = rest
    assert trouble.startswith("warning: the picture of its escapes is not in MLflow: its store ")
    assert gallery_lines(study, found, final()) == [place] and galleries(study, found, final()) == [path]
    before = path.read_bytes()
    show_escapes(study, found, final(), one)
    assert path.read_bytes() == before
    assert gallery_path(study, found, final("nut/bent lead"), TEST).name == (
        "trial-3--ensemble-of-2--nut_bent_lead--escapes-test.png"
    )


def test_what_was_learned_by_heart_gets_no_heat_map(trainers: list[Trainer], study: Study, found: Confirmation) -> None:
    one, _ = scene(trainers, DEVELOPMENT, with_models=False)
    show_escapes(study, found, final(), one)
    path = gallery_path(study, found, final(), DEVELOPMENT)
    assert colourful(path) == 0
    with_maps, _ = scene(trainers, DEVELOPMENT)
    show_escapes(study, found, final(), with_maps)
    assert colourful(path) > 0.01


def test_what_cannot_be_drawn_is_a_line(
    trainers: list[Trainer], study: Study, found: Confirmation, tmp_path: Path
) -> None:
    (missing,) = gallery_lines(study, found, final())
    assert missing.startswith("no picture of the escapes of trial-3, ensemble of 2, is in ")
    one, _ = scene(trainers, TEST)
    # a file lies where the folder would be
    gallery_path(study, found, final(), TEST).parent.parent.mkdir(parents=True)
    gallery_path(study, found, final(), TEST).parent.write_text("")
    (line,) = show_escapes(study, found, final(), one)
    assert line.startswith("no picture of its escapes: ")


def test_nothing_escapes(trainers: list[Trainer], study: Study, found: Confirmation) -> None:
    one, labels = scene(trainers, TEST)
    perfect = [Judged(path, of, Verdict(of, 0.5), Verdict(of, 0.5)) for path, of in labels.items()]
    counts, *_ = show_escapes(study, found, final(), one._replace(images=perfect))
    assert "lets 0 escape, the ensemble of 2 0 (0 found, 0 lost)" in counts
    assert galleries(study, found, final())
