"""Methods that train a network of their own: what every score, state, picture and export of theirs must hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sctune.backbones.trunk import Backbone
from sctune.config import TrialConfig, load_profile, method_entry
from sctune.deploy.build import model_parts
from sctune.deploy.export import generated_images
from sctune.deploy.parity import score_parity
from sctune.errors import CheckpointError, ConfigError, DataError, NonFiniteError, StoppedError
from sctune.methods.base import TaskImages
from sctune.methods.named import method_values
from sctune.methods.network import NetworkMethod
from sctune.methods.registry import fresh_method, trained_method
from sctune.search.space.definition import load_space
from sctune.train.heatmap import heat_maps
from sctune.train.rescore import rescored, score_variants
from sctune.train.trainer import Trainer

PUBLISHED = {"mlep": "mlep_image", "saoe": "saoe_no_outliers"}
"""Method -> its name for `--method`."""
CPU = torch.device("cpu")


def small(tiny: TrialConfig, name: str) -> TrialConfig:
    """Trained for two epochs, from ImageNet's weights, so that different images have different scores."""
    more: dict[str, object] = {"model.weights": "imagenet", "augment.rotation": "quarter", "optim.lr": 2e-3}
    # two members stand for three
    own = {"method.turned": "always", "method.members": "confetti,turned"} if name == "saoe" else {}
    return tiny.override({"method.name": name, **more, **own})


@pytest.fixture(scope="module", params=list(PUBLISHED))
def trainer(request: pytest.FixtureRequest, tiny: TrialConfig) -> Trainer:
    trainer = Trainer(small(tiny, request.param))
    trainer.reports = list(trainer.fit())  # type: ignore[attr-defined]
    return trainer


@pytest.fixture(scope="module")
def images(trainer: Trainer) -> np.ndarray:
    """Some of both classes."""
    return np.array(trainer.selection.images[:: max(1, len(trainer.selection.images) // 7)])


def task_images(trainer: Trainer) -> TaskImages:
    found: TaskImages = trainer.method.images  # type: ignore[attr-defined]
    return found


def test_profiles_and_spaces_know_them(tiny: TrialConfig) -> None:
    for name, published in PUBLISHED.items():
        entry = method_entry(name)
        assert entry.trains and entry.settings == ("general", "hard", "anomaly-free")
        searched = load_space(name, tiny).by_name
        assert set(searched) == set(entry.hyperparameters)
        paper = load_profile("paper").override(method_values(published, "paper"))
        assert (paper.data.image_size, paper.model.backbone, paper.normal_slots) == (448, "resnet18", 32)
        assert (paper.optim.lr, paper.optim.weight_decay) == (2e-4, 1e-5)
        assert (paper.budget.epochs, paper.budget.iterations, paper.budget.batch_size) == (30, 20, 48)
        rates = [paper.learning_rate(epoch) for epoch in range(30)]
        assert rates == pytest.approx([2e-4] * 10 + [2e-5] * 10 + [2e-6] * 10)
        cpu = load_profile("cpu").override(method_values(published, "cpu"))
        assert (cpu.data.image_size, cpu.model.backbone) == (160, "efficientnet_lite0")
        assert "our" in entry.describe(cpu)


def test_the_same_image_has_the_same_score_whatever_it_is_scored_with(trainer: Trainer, images: np.ndarray) -> None:
    scores = trainer.method.score(images)
    assert scores.dtype == np.float64 and len(np.unique(scores)) == len(images)
    np.testing.assert_array_equal(scores, [trainer.method.score(image[None])[0] for image in images])
    np.testing.assert_array_equal(scores, trainer.method.score(images[::-1])[::-1])
    assert trainer.method.score(images[:0]).shape == (0,)


def test_a_model_of_its_tensors_scores_the_same(trainer: Trainer, images: np.ndarray) -> None:
    stored = {name: value.clone() for name, value in trainer.method.model_state().items()}
    model = trained_method(trainer.config, CPU, stored)
    np.testing.assert_array_equal(model.score(images), trainer.method.score(images))
    assert model_parts(trainer, {}).threshold is not None
    embedded = trainer.method.embed(images)
    assert embedded is not None and len(embedded) == len(images) and embedded.ndim == 2
    for wrong in (
        {},
        {name: value for name, value in stored.items() if name != min(stored)},
        stored | {"more": torch.zeros(1)},
        stored | {min(stored): stored[min(stored)].double()},
    ):
        with pytest.raises(CheckpointError, match=f"none of method {trainer.config.method.name}") as caught:
            trained_method(trainer.config, CPU, wrong)
        assert "\n" not in str(caught.value)


def test_it_goes_on_from_a_checkpoint_bit_by_bit(trainer: Trainer) -> None:
    first = Trainer(trainer.config)
    report = first.run_epoch()
    reports = trainer.reports  # type: ignore[attr-defined]
    assert report.scores == reports[0].scores and reports[0].scores != reports[1].scores
    tensors, meta = first.state()
    later = Trainer(trainer.config)
    later.load_state(tensors, json.loads(json.dumps(meta)))
    (last,) = later.fit()
    assert last.scores == reports[1].scores
    whole = trainer.state()[0]
    assert whole.keys() == later.state()[0].keys()
    assert all(torch.equal(value, whole[name]) for name, value in later.state()[0].items())
    moments = [name for name in tensors if name.startswith("optim/")]
    for wrong in (
        {name: value for name, value in tensors.items() if name != moments[0]},
        # all of one weight, which else would begin anew
        {name: value for name, value in tensors.items() if name.rpartition("/")[0] != moments[0].rpartition("/")[0]},
        tensors | {"optim/9999/step": torch.zeros(())},
        tensors | {"odd": torch.zeros(())},
    ):
        with pytest.raises(CheckpointError, match="does not fit the optimiser"):
            later.load_state(wrong, json.loads(json.dumps(meta)))


def test_frozen_blocks_are_run_once_for_images_that_are_scored_again(
    trainer: Trainer, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = {name: value.clone() for name, value in trainer.method.model_state().items()}
    model = trained_method(trainer.config, CPU, stored)
    assert isinstance(model, NetworkMethod)
    scores, some = model.score(images), images[:2].copy()
    for _ in range(2):
        np.testing.assert_array_equal(model.scorer()(images), scores)
    # other weights of the frozen blocks
    model.load_model_state(
        {name: value * (0.9 if ".blocks.0." in name and "weight" in name else 1) for name, value in stored.items()}
    )
    other = model.scorer()(images)
    assert (other != scores).all()
    np.testing.assert_array_equal(other, model.score(images))

    def refuse(self: Backbone, images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("frozen blocks are run")

    monkeypatch.setattr(Backbone, "frozen", refuse)
    np.testing.assert_array_equal(model.scorer()(images), other)
    with pytest.raises(AssertionError, match="frozen blocks are run"):
        model.scorer()(some)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(
    ("case", "anomalies"),
    [
        ({"data.setting": "hard", "data.known_class": "spot"}, 3),
        ({"data.n_anomalies": 1, "runtime.precision": "bf16"}, 1),
        ({"data.setting": "anomaly-free", "data.selection": "auto", "model.freeze": 0}, 0),
    ],
)
def test_every_setting_trains(tiny: TrialConfig, name: str, case: dict[str, object], anomalies: int) -> None:
    more = {"method.name": name, "method.scale_normals": 4, "budget.iterations": 1, "budget.batch_size": 9}
    turned = {"method.turned": "always"} if name == "saoe" else {}
    method = fresh_method(tiny.override({**more, **turned, **case}), CPU)
    assert isinstance(method, NetworkMethod)
    images = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)
    method.prepare(TaskImages(images, np.arange(6), np.arange(6, 6 + anomalies)))
    figures = method.run_epoch(0, lambda: False)
    assert any(key.startswith("seen_") for key in figures) == (anomalies > 0)
    shown = images[9:]
    scores = method.score(shown)
    assert len(set(scores)) == 3 and np.isfinite(scores).all()
    for _ in range(2):
        np.testing.assert_array_equal(method.scorer()(shown), scores)


def module_inputs(trainer: Trainer) -> tuple[np.ndarray, torch.Tensor]:
    """Images, and the same as the module takes them."""
    images = np.concatenate([generated_images(trainer.config.data.image_size, 6), trainer.selection.images[:4]])
    return images, torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def exported_program(trainer: Trainer, pixels: torch.Tensor) -> torch.export.ExportedProgram:
    """The module for any number of images, traced with two."""
    shapes = ({0: torch.export.Dim("images")},)
    return torch.export.export(trainer.method.module(), (pixels[:2],), dynamic_shapes=shapes, strict=False)


def test_the_traced_module_scores_alike(trainer: Trainer) -> None:
    """All of an export but its translation to ONNX, which takes most of its time."""
    images, pixels = module_inputs(trainer)
    traced = exported_program(trainer, pixels).module()
    for some in (pixels, pixels[:1]):
        with torch.no_grad():
            scores = traced(some).double().numpy()
        assert score_parity(trainer.method.score(images)[: len(some)], scores, None).holds


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_exported_module_scores_alike(trainer: Trainer, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    images, pixels = module_inputs(trainer)
    program = exported_program(trainer, pixels)
    made = torch.onnx.export(program, input_names=["pixels"], dynamo=True, external_data=False, verbose=False)
    assert made is not None
    made.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for some in (pixels, pixels[:1]):
        (scores,) = session.run(None, {"pixels": some.numpy()})
        own = trainer.method.score(images)[: len(some)]
        assert score_parity(own, scores.astype(np.float64), None).holds


def test_it_stops_when_it_is_told(trainer: Trainer) -> None:
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > count

    for count in (0, 1, trainer.config.budget.iterations):
        asked, method = 0, fresh_method(trainer.config, CPU)
        method.prepare(task_images(trainer))
        with pytest.raises(StoppedError, match="stopped in epoch 1"):
            method.run_epoch(0, should_stop)
        assert asked == count + 1


def test_heat_maps(trainer: Trainer, images: np.ndarray) -> None:
    maps = heat_maps(trainer.method, images[:2], "score")
    assert maps is not None
    assert maps.shape == images[:2].shape[:3] and maps.dtype == np.float32 and np.isfinite(maps).all()
    gradients = heat_maps(trainer.method, images[:2], "gradient")
    assert gradients is not None and np.isfinite(gradients).all() and (gradients.max(axis=(1, 2)) > 0).all()


def test_rescoring_begins_with_the_score_itself(trainer: Trainer) -> None:
    variants = score_variants(trainer.config)
    assert len(variants) > 1 and len({json.dumps(one, sort_keys=True) for one in variants}) == len(variants)
    values = [raw for _, raw in rescored(trainer, variants)]
    np.testing.assert_allclose(values[0][""], trainer.method.score(trainer.selection.images), rtol=1e-4, atol=1e-4)
    assert any(not np.allclose(values[0][""], other[""]) for other in values[1:])


def test_a_training_of_no_numbers_fails_as_one(trainer: Trainer) -> None:
    method = fresh_method(trainer.config, CPU)
    method.prepare(task_images(trainer))
    with torch.no_grad():
        next(iter(method.network.parameters())).fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(NonFiniteError, match="in epoch 1; a smaller learning rate may help"):
        method.run_epoch(0, lambda: False)


def test_too_few_normals_are_one_line(trainer: Trainer) -> None:
    held = task_images(trainer)
    with pytest.raises(DataError, match="needs 2 normal training images at least, and 1 are there"):
        fresh_method(trainer.config, CPU).prepare(TaskImages(held.array, held.normals[:1], held.anomalies))


def test_the_dry_run_times_a_step_and_its_share_of_an_epoch(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    method = fresh_method(trainer.config, CPU)
    method.prepare(task_images(trainer))
    # a step of a second, a first fit of the scale of three, each other one of one
    times = iter((0.0, 1.0, 4.0, 5.0))
    monkeypatch.setattr("sctune.methods.network.now", lambda _: next(times))
    assert (trainer.config.epochs, trainer.config.budget.iterations) == (2, 2)
    assert method.time_step() == (1 + (3 + 1) / 4, 2)


def test_several_maps_are_looked_at_on_one_grid(trainer: Trainer, images: np.ndarray) -> None:
    several = trainer.config.override({"model.taps": "stride8,middle", "budget.epochs": 1})
    other = Trainer(several)
    other.run_epoch()
    scores = other.method.score(images)
    assert len(np.unique(scores)) == len(images)
    maps = heat_maps(other.method, images[:2], "score")
    assert maps is not None and maps.mean(axis=(1, 2)) == pytest.approx(scores[:2], rel=1e-3, abs=1e-3)


def test_shuffled_labels_train_otherwise(trainer: Trainer) -> None:
    reports = trainer.reports  # type: ignore[attr-defined]
    assert Trainer(trainer.config.override({"data.shuffle_labels": True})).run_epoch().scores != reports[0].scores


@pytest.mark.parametrize("field", ["model.top_k", "augment.kind", "loss.margin", "score.turns"])
def test_what_they_have_no_use_for_is_refused(field: str, tiny: TrialConfig) -> None:
    values = {"model.top_k": 0.2, "augment.kind": "cutmix", "loss.margin": 2.0, "score.turns": 4}
    for name in PUBLISHED:
        with pytest.raises(ConfigError, match=f"method {name} has no use for it"):
            small(tiny, name).override({field: values[field]})
