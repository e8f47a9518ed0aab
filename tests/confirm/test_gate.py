"""The promotion gate step by step: each passes, and each fails alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sctune.confirm.gate import (
    Acceptance,
    acceptance_step,
    export_form,
    latency_step,
    licence_step,
    parity_step,
    unseen,
)
from sctune.data.images import file_digest
from sctune.deploy.model import Model, load_model_folder
from sctune.deploy.speed import measure
from sctune.metrics.threshold import Threshold
from tests.models import noise_png, small_config, write_small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model_folder(write_small_model(tmp_path_factory.mktemp("model") / "m"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Acceptance:
    """20 normal images, 20 with a bright square."""
    folder, paths = tmp_path_factory.mktemp("accepted"), []
    for number in range(40):
        paths.append(folder / f"{number:02d}.png")
        paths[-1].write_bytes(noise_png(number, spot=number >= 20))
    return Acceptance("a test set", tuple(paths), (0,) * 20 + (1,) * 20)


def changed(model: Model, threshold: float | None = None, development: list[str] | None = None) -> Model:
    """The same network with another threshold or other data."""
    parts = model.parts
    if threshold is not None:
        parts = replace(parts, threshold=Threshold(threshold, "given"))
    if development is not None:
        parts = replace(parts, development=development)
    return Model(model.method, model.config, parts)


class Backwards(Model):
    """Calls normal what the other calls anomalous."""

    def score(self, images):  # type: ignore[no-untyped-def]
        return -super().score(images)


def test_licences() -> None:
    assert licence_step("CC BY 4.0", accepted=False).passed
    assert licence_step(None, accepted=False).passed
    for licence in ("CC BY-NC-SA 4.0", "free for non-commercial use", "CC BY NC 2.0", "research only", "unclear"):
        refused = licence_step(licence, accepted=False)
        assert not refused.passed and "--accept-licence" in refused.detail
        assert licence_step(licence, accepted=True).passed


def test_latency(model: Model) -> None:
    speed = measure(model, [noise_png(number) for number in range(6)])
    assert 0 < speed.median_ms <= speed.p95_ms and speed.images == 6
    assert latency_step(speed, speed.p95_ms).passed
    slow = latency_step(speed, speed.p95_ms * 0.99)
    assert not slow.passed and "--max-latency" in slow.detail


def test_parity() -> None:
    trained = np.array([0.1, 0.5, 0.9])
    assert parity_step(trained, {"loaded": trained + 5e-5}, 0.6).passed
    assert not parity_step(trained, {"loaded": trained, "exported": trained + 2e-4}, None).passed
    # a difference within the limit that turns a label over
    flipped = parity_step(trained, {"loaded": trained + 5e-5}, 0.50002)
    assert not flipped.passed and "loaded 5.0e-05, 1 flipped" in flipped.detail
    # rounding alone decides the label of an image on the threshold, as for an exported file
    tie = parity_step(trained, {"loaded": trained + 1e-9}, 0.5)
    assert tie.passed and "0 flipped, 1 on the threshold itself" in tie.detail


def test_a_score_that_is_no_number_is_no_parity() -> None:
    trained = np.array([0.1, 0.9])
    assert not parity_step(trained, {"exported": np.array([np.nan, 0.9])}, 0.5).passed
    assert not parity_step(np.array([np.nan, 0.9]), {"exported": np.array([np.nan, 0.9])}, 0.5).passed


@pytest.mark.slow
def test_parity_with_a_real_export(model: Model, tmp_path: Path) -> None:
    """The quick tests deploy one in tests/e2e/test_confirm.py."""
    pixels = np.stack([model.prepare(noise_png(number, spot=number % 2 == 0)).pixels for number in range(4)])
    name, scores = export_form(model, pixels, tmp_path)
    assert name == "exported (onnx)"
    step = parity_step(model.method.score(pixels), {name: scores}, None)
    assert step.passed, step.detail


def test_images_that_a_model_was_made_from_are_left_out(model: Model, images: Acceptance) -> None:
    digests = [file_digest(path) for path in images.paths]
    candidate, champion = changed(model, development=digests[:3]), changed(model, development=digests[2:5])
    files = [(path.name, label) for path, label in zip(images.paths, images.labels, strict=True)]
    found = unseen("a test set", images.paths[0].parent, files, [candidate, champion])
    assert found.paths == images.paths[5:] and found.labels == images.labels[5:] and found.left_out == 5


def test_the_same_model_is_not_worse(model: Model, images: Acceptance) -> None:
    step = acceptance_step(model, model, images)
    assert step.passed and "difference +0.0000" in step.detail


def test_a_worse_auroc_is_refused(model: Model, images: Acceptance) -> None:
    worse = Backwards(model.method, model.config, model.parts)
    assert not acceptance_step(worse, model, images).passed
    assert acceptance_step(model, changed(worse, threshold=1e9), images).passed


def test_more_escapes_are_refused(model: Model, images: Acceptance) -> None:
    """The same scores, and a threshold that lets everything through."""
    blind = changed(model, threshold=1e9)
    step = acceptance_step(blind, model, images)
    assert not step.passed and "difference +0.0000" in step.detail and "escapes 20 of 20" in step.detail
    assert acceptance_step(model, blind, images).passed


def test_another_products_champion_is_not_replaced(model: Model, images: Acceptance) -> None:
    stranger = changed(model, development=["f" * 64])
    step = acceptance_step(model, stranger, images)
    assert not step.passed and "may be of another product" in step.detail


def test_too_little_to_compare_with(model: Model, images: Acceptance) -> None:
    few = Acceptance(images.source, images.paths[11:], images.labels[11:], 11)
    step = acceptance_step(model, model, few)
    assert not step.passed and "9 normal and 20 anomalous images" in step.detail and "--acceptance" in step.detail


def test_a_champion_that_cannot_be_compared(model: Model, images: Acceptance, tmp_path: Path) -> None:
    bare = load_model_folder(write_small_model(tmp_path / "m", small_config(), calibrated=0))
    assert "has no threshold" in acceptance_step(model, bare, images).detail
    assert "has no threshold" in acceptance_step(bare, model, images).detail
    unknown = acceptance_step(model, changed(model, development=[]), images)
    assert not unknown.passed and "the champion does not say which images" in unknown.detail
