"""A density of the normal images beside the trained heads: model.normal_head, score.density."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from sctune.config import TrialConfig
from sctune.errors import CheckpointError, ConfigError, DataError, StoppedError
from sctune.methods.base import TaskImages
from sctune.methods.registry import fresh_method, trained_method
from sctune.train.rescore import rescored, score_variants
from sctune.train.trainer import Trainer


@pytest.fixture(scope="module")
def config(tiny: TrialConfig) -> TrialConfig:
    return tiny.override({"model.normal_head": "gaussian", "score.density": 2.0, "model.weights": "imagenet"})


@pytest.fixture(scope="module")
def trainer(config: TrialConfig) -> Trainer:
    """Trained to its end."""
    trainer = Trainer(config)
    for _ in trainer.fit():
        pass
    return trainer


def test_the_score_is_the_scaled_one_of_the_heads_and_that_of_the_gaussian(trainer, config):
    """Both parts made by themselves: the heads trained without the held-out normals, and the reference `gaussian`."""
    reference = Trainer(config.override({"method.name": "gaussian"}))
    reference.run_epoch()
    plain = Trainer(config.override({"model.normal_head": "mlp"}))
    everything = plain.method.step.images
    seen = trainer.method.trained_part.step.images
    held = np.setdiff1d(everything.normals, seen.normals)
    heads = fresh_method(config.override({"model.normal_head": "mlp"}), torch.device("cpu"))
    heads.prepare(TaskImages(everything.array, seen.normals, everything.anomalies))
    for epoch in range(config.epochs):
        heads.run_epoch(epoch, lambda: False)
    scale = heads.score(everything.take(held))
    images = trainer.selection.images
    own, beside = (heads.score(images) - scale.mean()) / max(scale.std(ddof=1), 0.05), reference.method.score(images)
    assert trainer.method.score(images) == pytest.approx(own + 2.0 * beside, rel=1e-5, abs=1e-5)
    assert np.ptp(own) > 1e-3 and np.ptp(beside) > 0.1


def test_held_out_normals_are_a_tenth_and_never_trained_on(trainer, config):
    everything = Trainer(config.override({"model.normal_head": "mlp"})).method.step.images
    seen = trainer.method.trained_part.step.images
    assert set(seen.normals) < set(everything.normals)
    assert len(everything.normals) - len(seen.normals) == max(4, len(everything.normals) // 10)
    assert np.array_equal(seen.anomalies, everything.anomalies)
    other = Trainer(config.override({"seed": 1})).method.trained_part.step.images
    assert set(other.normals) != set(seen.normals)


def test_a_stopped_training_goes_on_bit_by_bit(trainer, config):
    first = Trainer(config)
    report = first.run_epoch()
    assert {"density_normals", "density_push_weight", "held_out_score_sd"} <= report.metrics.keys()
    assert report.metrics["density_weight"] == first.method.weight(config)
    second = Trainer(config)
    second.load_state(*first.state())
    while second.epoch < config.epochs:
        second.run_epoch()
    images = trainer.selection.images
    assert np.array_equal(second.method.score(images), trainer.method.score(images))
    states = [one.state()[0] for one in (second, trainer)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_loaded_model_scores_the_same_whatever_stands_beside_an_image(trainer, config):
    images = trainer.selection.images
    loaded = trained_method(trainer.config, torch.device("cpu"), trainer.method.model_state())
    scores = loaded.score(images)
    assert np.array_equal(scores, trainer.method.score(images))
    assert np.array_equal(np.concatenate([loaded.score(image[None]) for image in images]), scores)
    assert trainer.method.scorer()(images) == pytest.approx(scores, rel=1e-4, abs=1e-4)


def test_the_module_and_onnx_give_the_scores(trainer, tmp_path):
    images = trainer.selection.images[:6]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    expected = trainer.method.score(images)
    module = trainer.method.module()
    with torch.inference_mode():
        assert module(pixels).numpy() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    program = torch.onnx.export(
        module, (pixels,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("images", min=1)},), verbose=False
    )
    program.save(tmp_path / "fused.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "fused.onnx")
    found = session.run(None, {session.get_inputs()[0].name: pixels[:4].numpy()})[0]
    assert found == pytest.approx(expected[:4], rel=1e-3, abs=1e-3)


def test_heat_maps_add_up(trainer):
    images = trainer.selection.images[:3]
    method = trainer.method
    parts = method.trained_part.cells(images) / float(method.scale[1]) + 2.0 * method.density.cells(images)
    assert method.cells(images) == pytest.approx(parts, rel=1e-5, abs=1e-5)
    maps = method.gradients(images)
    assert maps.shape == images.shape[:3] and np.ptp(maps, axis=(1, 2)).min() > 0


@pytest.mark.parametrize(
    ("shown", "values", "weight"),
    [
        (10, {}, 2.0),
        (9, {"data.n_anomalies": 10}, 10.0),
        (12, {"data.n_anomalies": 1, "data.anomalies": "all"}, 2.0),
        (10, {"data.setting": "hard", "data.known_class": "cut"}, 10.0),
        (0, {"data.setting": "anomaly-free"}, 10.0),
        (1, {"score.density": 0.5}, 0.5),
    ],
)
@pytest.mark.parametrize("trunk", ["frozen", "trained"])
def test_weight_goes_by_what_the_heads_were_shown(trainer, trunk, shown, values, weight):
    """Heads that know few of the defects to come, or none, are not to drown the density."""
    config = trainer.config.override({"score.density": "auto", "model.density_trunk": trunk} | values)
    everything = trainer.method.trained_part.step.images
    method = fresh_method(config, torch.device("cpu"))
    method.prepare(TaskImages(everything.array, everything.normals, np.resize(everything.anomalies, shown)))
    assert method.weight(config) == weight


def test_the_weight_stays_with_the_model(trainer):
    """A model that is loaded under another number of anomalies scores as it did."""
    config, images = trainer.config.override({"score.density": "auto"}), trainer.selection.images[:3]
    state = trainer.method.model_state()
    assert trainer.method.weight(config) == 10.0
    parts = [
        trained_method(config.override(change), torch.device("cpu"), state).score(images)
        for change in ({}, {"data.n_anomalies": 10, "data.anomalies": "all"}, {"score.density": 10.0})
    ]
    assert parts[0] == pytest.approx(parts[1], rel=1e-6) and parts[0] == pytest.approx(parts[2], rel=1e-6)
    with torch.inference_mode():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        module = trained_method(config, torch.device("cpu"), state).module()
        assert module(pixels).numpy() == pytest.approx(parts[0], rel=1e-3, abs=1e-3)
    # the weight was 1 where a state names none
    earlier = state | {"fused.scale": state["fused.scale"][:2]}
    found = trained_method(config, torch.device("cpu"), earlier).score(images)
    plain = trained_method(config.override({"score.density": 1.0}), torch.device("cpu"), state).score(images)
    assert found == pytest.approx(plain, rel=1e-6) and np.abs(found - parts[0]).max() > 0.1


def test_rescoring_tries_weights_of_the_density(trainer, config):
    variants = score_variants(trainer.config)
    assert variants[0]["score.density"] == 2.0
    assert {variant["score.density"] for variant in variants} == {0.0, 0.5, 1.0, 2.0, 4.0, 10.0}
    changes = ({}, {"score.density": 0.0}, {"score.top_k": 0.5}, {"score.turns": 4})
    chosen = [variants[0] | change for change in changes]
    raw = [scores[""] for _, scores in rescored(trainer, chosen)]
    images = trainer.selection.images
    state = trainer.method.model_state()
    for variant, scores in zip(chosen, raw, strict=True):
        loaded = trained_method(trainer.config.override(variant), torch.device("cpu"), state)
        assert scores == pytest.approx(loaded.score(images), rel=1e-4, abs=1e-4)


def test_turns_are_averaged_in_scores_maps_and_module(trainer):
    """An image that is turned by a quarter has the same score, and a heat map that is turned alike."""
    config = trainer.config.override({"score.turns": 4})
    method = trained_method(config, torch.device("cpu"), trainer.method.model_state())
    images = trainer.selection.images[:3]
    turned = np.rot90(images, 1, (1, 2))
    assert method.score(turned) == pytest.approx(method.score(images), rel=1e-4, abs=1e-4)
    assert trainer.method.score(turned) != pytest.approx(trainer.method.score(images), rel=1e-3, abs=1e-3)
    assert np.rot90(method.cells(turned), -1, (1, 2)) == pytest.approx(method.cells(images), rel=1e-3, abs=1e-3)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        assert method.module()(pixels).numpy() == pytest.approx(method.score(images), rel=1e-4, abs=1e-4)


def test_a_mixture_has_several_components(config):
    trainer = Trainer(config.override({"model.normal_head": "mixture", "model.density_components": 2}))
    trainer.run_epoch()
    state = trainer.method.model_state()
    assert state["density.fit.density.centres"].shape[0] == 2
    assert np.isfinite(trainer.method.score(trainer.selection.images)).all()


def test_other_states_are_refused(trainer, config):
    plain = Trainer(config.override({"model.normal_head": "mlp"}))
    with pytest.raises(CheckpointError, match=r"model\.normal_head"):
        trainer.method.load_model_state(plain.method.model_state())
    with pytest.raises(CheckpointError):
        plain.method.load_model_state(Trainer(config).method.model_state())


def test_too_few_normals_and_impossible_values_are_one_line(config, trainer):
    images = trainer.method.density._images
    few = fresh_method(config, torch.device("cpu"))
    with pytest.raises(DataError, match=r"7 are there.*model\.normal_head=mlp"):
        few.prepare(TaskImages(images.array, images.normals[:7], images.anomalies))
    mixture = config.override({"model.normal_head": "mixture", "model.density_components": 12})
    with pytest.raises(DataError, match="15 normal images are too few for 12 components"):
        fresh_method(mixture, torch.device("cpu")).prepare(
            TaskImages(images.array, images.normals[:15], images.anomalies)
        )
    with pytest.raises(ConfigError, match=r"score\.density"):
        config.override({"score.density": -1.0})
    with pytest.raises(ConfigError, match=r"model\.density_components"):
        config.override({"model.density_components": 1})


def test_a_stop_in_the_fit_is_noticed(config):
    asked = iter([False] * (config.budget.iterations + 1))
    trainer = Trainer(config, should_stop=lambda: next(asked, True))
    with pytest.raises(StoppedError):
        trainer.run_epoch()
