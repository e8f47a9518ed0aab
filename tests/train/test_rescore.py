"""Other ways to score: the shared pass gives what a detector of that configuration gives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sctune.methods.deviation.detector import build_detector
from sctune.methods.deviation.rescore import score_variants, variant_scores
from tests.models import small_config, small_detector

IMAGES = np.random.default_rng(7).integers(0, 256, (5, 128, 128, 3), np.uint8)
CASES = {
    "patch": {"model__heads": "two_head_patch"},
    "latent, two scales": {"model__heads": "two_head_latent", "model__n_scales": 2},
    "four heads, two scales": {"model__heads": "four_head", "model__n_scales": 2},
    "one head": {"model__heads": "single_head"},
    "four turns": {"model__heads": "two_head_patch", "score__turns": 4},
}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_each_variant_is_the_detector_of_its_configuration(case: dict[str, object]) -> None:
    config = small_config(data__image_size=128, **case)
    detector = small_detector(config)
    if detector.needs_references:
        detector.set_references(IMAGES[: config.model.reference_count])
    variants = score_variants(config)
    found = variant_scores(detector, IMAGES, variants)
    for number in {0, 1, len(variants) // 3, len(variants) // 2, len(variants) - 1}:
        other = build_detector(config.override(variants[number]))
        other.load_state_dict(detector.state_dict())
        np.testing.assert_array_equal(found[number], other.score_images(IMAGES))
    np.testing.assert_array_equal(found[0], detector.score_images(IMAGES))


def test_only_what_means_something_is_varied() -> None:
    names = {
        case: set(score_variants(small_config(data__image_size=128, **values))[0]) for case, values in CASES.items()
    }
    assert names["patch"] == {"score.top_k", "score.turns", "model.patch_evaluation", "score.normal"}
    assert names["one head"] == {"score.top_k", "score.turns"}
    assert names["four heads, two scales"] == {
        "score.top_k", "score.turns", "score.normal", "score.seen", "score.pseudo", "score.full_scale",
    }  # fmt: skip
    variants = score_variants(small_config())
    assert len(variants) == len({tuple(one.items()) for one in variants}) == 7 * 2 * 6 * 2
    assert variants[0] == {
        "score.top_k": 0.1,
        "score.turns": 1,
        "model.patch_evaluation": "exact",
        "score.normal": 1.0,
    }


def test_weights_by_hand() -> None:
    """score = anomaly - w normal: three weights of one image lie on a straight line."""
    detector = small_detector(small_config())
    rows = variant_scores(detector, IMAGES[:, :64, :64], [{"score.normal": weight} for weight in (0.0, 1.0, 3.0)])
    np.testing.assert_allclose(rows[2] - rows[0], 3 * (rows[1] - rows[0]), rtol=1e-4)
    assert (rows[0] >= 0).all() and (rows[1] <= rows[0]).all()


def test_order_number_and_company_never_change_a_score() -> None:
    detector = small_detector(small_config())
    images = IMAGES[:, :64, :64]
    whole = detector.score_alike(images)
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 17):
        np.testing.assert_array_equal(detector.score_alike(images[list(order)]), whole[list(order)])
    for count in range(1, 5):
        np.testing.assert_array_equal(detector.score_alike(images[:count]), whole[:count])
    np.testing.assert_allclose(whole, detector.score_images(images), atol=1e-5)
