"""The score as a mean over quarter turns: by hand, the same for a turned image, in every form of a detector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sctune.config import TrialConfig
from sctune.deploy.export import Kind, export_model, run_exported
from sctune.deploy.model import Model, ModelParts
from sctune.deploy.parity import TOLERANCE
from sctune.methods.deviation.detector import Detector, build_detector
from sctune.methods.deviation.method import DeviationMethod
from sctune.methods.deviation.rescore import variant_scores
from sctune.methods.pixels import to_pixels
from sctune.train.heatmap import KINDS, heat_maps
from sctune.train.trainer import Trainer
from tests.models import small_config, small_detector

HEADS = ("two_head_patch", "two_head_latent", "four_head", "single_head")
IMAGES = np.random.default_rng(7).integers(0, 256, (3, 64, 64, 3), np.uint8)


def turned(images: np.ndarray, turn: int) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(images, turn, (1, 2)))


def other(detector: Detector, **changes: object) -> Detector:
    """A detector of the same weights under a changed configuration."""
    config = detector.config.override({name.replace("__", "."): value for name, value in changes.items()})
    made = build_detector(config).eval()
    made.load_state_dict(detector.state_dict())
    return made


@pytest.fixture(scope="module", params=HEADS)
def detector(request: pytest.FixtureRequest) -> Detector:
    # references and patches cost little here: no patch head at two scales
    scales = 1 if request.param == "two_head_patch" else 2
    values = {"model__n_scales": scales, "model__reference_count": 2, "model__freeze": 3, "score__turns": 4}
    found = small_detector(small_config(model__heads=request.param, **values))
    if found.needs_references:
        found.set_references(np.random.default_rng(5).integers(0, 256, found.references.shape, np.uint8))
    return found


def test_the_score_is_the_mean_of_those_of_the_turned_images(detector: Detector) -> None:
    """Where images are compared with references, these are turned alike."""
    single, scores = other(detector, score__turns=1), []
    for turn in range(4):
        if single.needs_references:
            single.set_references(turned(detector.references.numpy(), turn))
        scores.append(single.score_images(turned(IMAGES, turn)))
    assert np.ptp(scores, axis=0).min() > 1e-3, "turns that do not count would show nothing"
    np.testing.assert_allclose(detector.score_images(IMAGES), np.mean(scores, axis=0), rtol=1e-5)


def test_a_turned_image_has_the_same_score(detector: Detector) -> None:
    if detector.needs_references:
        pytest.skip("its references are not turned with it")
    whole = detector.score_images(IMAGES)
    for turn in (1, 2, 3):
        np.testing.assert_allclose(detector.score_images(turned(IMAGES, turn)), whole, rtol=1e-4)


def test_all_ways_to_score_agree(detector: Detector) -> None:
    expected = detector.score_images(IMAGES)
    maps = detector.frozen_maps(IMAGES, 2**30)
    assert maps is not None and np.array_equal(detector.score_maps(maps), expected)
    np.testing.assert_allclose(detector.score_alike(IMAGES), expected, rtol=1e-4)
    module = DeviationMethod(detector.config, torch.device("cpu"), detector).module()
    np.testing.assert_allclose(module(to_pixels(IMAGES, torch.device("cpu"))).numpy(), expected, rtol=1e-4)
    variants = [{"score.turns": 1}, {"score.turns": 4}, {"score.turns": 4, "score.top_k": 0.5}]
    rows = variant_scores(other(detector, score__turns=1), IMAGES, variants)
    assert np.array_equal(rows[0], other(detector, score__turns=1).score_images(IMAGES))
    assert np.array_equal(rows[1], expected)
    assert np.array_equal(rows[2], other(detector, score__top_k=0.5).score_images(IMAGES))


@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_turned_back(detector: Detector, kind: str) -> None:
    """The map of a turned image is the turned map, as it is not with a single turn."""
    if detector.needs_references:
        pytest.skip("its references are not turned with it")
    for turns, alike in ((4, True), (1, False)):
        method = DeviationMethod(detector.config, torch.device("cpu"), other(detector, score__turns=turns))
        maps, again = heat_maps(method, IMAGES, kind), heat_maps(method, turned(IMAGES, 1), kind)
        assert maps is not None and again is not None
        assert np.allclose(np.rot90(maps, 1, (1, 2)), again, rtol=1e-3, atol=1e-5) == alike


def test_a_map_by_hand(detector: Detector) -> None:
    single, parts = other(detector, score__turns=1), []
    for turn in range(4):
        if single.needs_references:
            single.set_references(turned(detector.references.numpy(), turn))
        maps = heat_maps(DeviationMethod(single.config, torch.device("cpu"), single), turned(IMAGES, turn), "score")
        assert maps is not None
        parts.append(np.rot90(maps, -turn, (1, 2)))
    found = heat_maps(DeviationMethod(detector.config, torch.device("cpu"), detector), IMAGES, "score")
    np.testing.assert_allclose(found, np.mean(parts, axis=0), rtol=1e-4, atol=1e-6)


EXPORTED: dict[str, Kind] = {"two_head_patch": "torch", "two_head_latent": "onnx"}
"""A head of patches and one with references, which are turned too; each kind of file once."""


def test_exported_files_turn_too(detector: Detector, tmp_path: Path) -> None:
    kind = EXPORTED.get(detector.config.model.heads)
    if kind is None:
        pytest.skip("the others show it")
    method = DeviationMethod(detector.config, torch.device("cpu"), detector)
    model = Model(method, detector.config, ModelParts({"study": "first", "trial": 0}))
    exported = export_model(model, kind, tmp_path / "model")
    expected = model.score(IMAGES)
    assert np.ptp(expected) > 100 * TOLERANCE, "equal scores would show nothing"
    for count in (1, 3):
        np.testing.assert_allclose(run_exported(exported.file, kind, IMAGES[:count]), expected[:count], atol=TOLERANCE)


def test_training_is_the_same_and_a_checkpoint_fits_either_way(tiny: TrialConfig) -> None:
    one, four = Trainer(tiny), Trainer(tiny.override({"score.turns": 4}))
    first, second = one.run_epoch(), four.run_epoch()
    assert first.metrics["loss"] == second.metrics["loss"] and dict(first.scores) != dict(second.scores)
    later = Trainer(tiny.override({"score.turns": 4}))
    later.load_state(*one.state())
    assert dict(later.run_epoch().scores) == dict(four.run_epoch().scores)
