"""Frozen blocks are run once for the images that are scored after every epoch, and no score changes by it."""

import numpy as np
import pytest

from sctune.methods.deviation import scorer
from sctune.methods.deviation.scorer import RepeatedScorer
from sctune.train.trainer import Trainer


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"model.freeze": 0},
        {"model.freeze": 12},  # more than there are: everything is frozen
        {"model.n_scales": 2, "data.image_size": 128},
        {"model.heads": "four_head", "augment.kind": "cutmix"},
        {"runtime.precision": "bf16"},
        {"model.backbone": "resnet18", "model.freeze": 3},
    ],
)
def test_scores_are_equal_before_and_after_training(tiny, values):
    trainer = Trainer(tiny.override(values))
    images = trainer.selection.images
    first = trainer.method.scorer()(images)
    assert np.array_equal(first, trainer.method.detector.score_images(images))
    trainer.run_epoch()
    again = trainer.method.scorer()(images)
    assert np.array_equal(again, trainer.method.detector.score_images(images))
    assert not np.array_equal(again, first)
    assert np.array_equal(trainer.method.scorer()(images[:5].copy()), trainer.method.detector.score_images(images[:5]))


def test_frozen_blocks_run_once_for_each_set_of_images(tiny):
    trainer = Trainer(tiny.override({"data.setting": "anomaly-free", "data.selection": "auto"}))
    trainer.run_epoch()  # files and three makers
    runs = []
    trainer.method.detector.backbone.blocks[0].register_forward_hook(
        lambda module, inputs, output: runs.append(len(output))
    )
    values, _ = trainer.selection.evaluate(trainer.method.scorer())
    assert not runs
    assert trainer.selection.evaluate(trainer.method.detector.score_images)[0] == values
    assert sum(runs) == 4 * len(trainer.selection.images)


def test_too_large_maps_are_not_kept(tiny, monkeypatch):
    trainer = Trainer(tiny)
    images = trainer.selection.images
    expected = trainer.method.scorer()(images)
    assert trainer.method.detector.frozen_maps(images, 1) is None
    monkeypatch.setattr(scorer, "MAX_BYTES", 1)
    small = RepeatedScorer(trainer.method.detector)
    assert np.array_equal(small(images), expected) and np.array_equal(small(images), expected)
