"""SSM through the protocol of methods: training, checkpoints, scores, maps, exports and other ways to score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sctune.config import TrialConfig
from sctune.deploy.export import export_parity, generated_images
from sctune.deploy.model import Model, ModelParts
from sctune.errors import CheckpointError, ConfigError, DataError, NonFiniteError, StoppedError
from sctune.methods.base import TaskImages
from sctune.methods.pixels import ALIKE_BATCH, to_pixels
from sctune.methods.registry import fresh_method, trained_method
from sctune.methods.ssm.entry import SIDE
from sctune.methods.ssm.method import CALIBRATION_NORMALS, SsmMethod
from sctune.train.heatmap import heat_maps
from sctune.train.rescore import rescored
from sctune.train.trainer import Trainer

CPU = torch.device("cpu")
FORMS = {
    "once": {"method.score_cells": "4,8"},
    "refined": {
        "method.score_cells": "4,8",
        "method.refine": True,
        "method.refine_quantile": 0.6,
        "method.sigma": 2.0,
    },
}
two_rounds = pytest.mark.parametrize("trainer", ["refined"], indirect=True)
"""For what holds of one round where it holds of two."""


@pytest.fixture(scope="module")
def small(tiny: TrialConfig) -> TrialConfig:
    """Two epochs of two steps of two images, at 64 px."""
    few = {"data.selection_limit": 6, "method.width": 2, "method.lr": 5e-3}
    return tiny.override({"method.name": "ssm", **few})


@pytest.fixture(scope="module", params=list(FORMS))
def trainer(request: pytest.FixtureRequest, small: TrialConfig) -> Trainer:
    trainer = Trainer(small.override(FORMS[request.param]))
    trainer.reports = list(trainer.fit())  # type: ignore[attr-defined]
    return trainer


@pytest.fixture(scope="module")
def images(trainer: Trainer) -> np.ndarray:
    return np.array(trainer.selection.images[::3])


def ssm_of(trainer: Trainer) -> SsmMethod:
    assert isinstance(trainer.method, SsmMethod)
    return trainer.method


def of_noise(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), np.uint8)


def test_a_step_hides_cells_of_normal_images_alone(small: TrialConfig) -> None:
    array, rows = of_noise(8, 0), np.arange(5)
    drawn = []
    for anomalies in (np.array([5, 6, 7]), np.array([7])):
        method = SsmMethod.fresh(small.override({"budget.batch_size": 11}), CPU)
        method.prepare(TaskImages(array, rows, anomalies))
        assert method.images_per_epoch == 2 * 3
        drawn.append([method.batch(number) for number in range(10)])
    for (first, masks), (second, others) in zip(*drawn, strict=True):
        assert first.shape == (3, 3, SIDE, SIDE) and masks.shape == (1, 3, 1, SIDE, SIDE)
        assert torch.equal(first, second) and torch.equal(masks, others)
    # 30 images of 5 normal ones: each six times
    normals = method.network.shrunk(torch.from_numpy(array[:5]).permute(0, 3, 1, 2).float() / 255)
    seen = torch.cat([first for first, _ in drawn[0]])
    nearest = (seen[:, None] - normals).abs().amax((2, 3, 4)).min(1)
    assert nearest.values.max() < 1e-5 and nearest.indices.bincount(minlength=5).tolist() == [6] * 5
    # all three sides are drawn: a cell of eight pixels is whole, one of two is not
    whole = {next(cell for cell in (8, 4, 2) if torch.equal(masks, grown(masks, cell))) for _, masks in drawn[0]}
    assert whole == {2, 4, 8}


def grown(masks: torch.Tensor, cell: int) -> torch.Tensor:
    return masks[..., ::cell, ::cell].repeat_interleave(cell, 3).repeat_interleave(cell, 4)


def test_it_learns_to_fill_in_what_is_hidden(small: TrialConfig) -> None:
    trainer = Trainer(small.override({"budget.epochs": 4, "budget.iterations": 6, "optim.step_fraction": 1.0}))
    first, *_, last = [report.metrics for report in trainer.fit()]
    for name in ("loss", "loss_mse", "loss_mask"):
        assert last[name] < 0.8 * first[name]
    assert first["lr"] == 5e-3
    assert last["loss"] == pytest.approx(sum(last[f"loss_{part}"] for part in ("mse", "gms", "ssim", "mask")), rel=1e-5)


@pytest.mark.parametrize(
    "setting",
    [
        {"data.setting": "anomaly-free", "data.selection": "auto"},
        {"data.setting": "hard", "data.known_class": "spot", "data.selection": "auto"},
    ],
)
def test_every_setting_trains(small: TrialConfig, setting: dict[str, object]) -> None:
    (report,) = Trainer(small.override(setting | {"budget.epochs": 1, "data.selection_limit": 4})).fit()
    assert np.isfinite(report.metrics["selection_auroc"])


def test_the_same_image_has_the_same_score_whatever_it_is_scored_with(trainer: Trainer, images: np.ndarray) -> None:
    scores = trainer.method.score(images)
    assert scores.dtype == np.float64 and len(np.unique(scores)) == len(images)
    assert scores.min() > 0 and scores.max() < 1
    np.testing.assert_array_equal(scores, [trainer.method.score(image[None])[0] for image in images])
    np.testing.assert_array_equal(scores, trainer.method.score(images[::-1])[::-1])
    assert trainer.method.score(images[:0]).shape == (0,)


def test_a_model_of_its_tensors_scores_the_same(trainer: Trainer, images: np.ndarray) -> None:
    stored = {name: value.clone() for name, value in trainer.method.model_state().items()}
    # masks and filters are made anew
    assert all(name == "threshold" or name.startswith("unet.") for name in stored)
    np.testing.assert_array_equal(
        trained_method(trainer.config, CPU, stored).score(images), trainer.method.score(images)
    )
    wider = trainer.config.override({"method.width": 3})
    for config, tensors in (
        (wider, stored),
        (trainer.config, {}),
        (trainer.config, stored | {"threshold": stored["threshold"].double()}),
    ):
        with pytest.raises(CheckpointError, match="none of method ssm") as caught:
            trained_method(config, CPU, tensors)
        assert "\n" not in str(caught.value)


@two_rounds
def test_it_goes_on_from_a_checkpoint_bit_by_bit(trainer: Trainer) -> None:
    reports = trainer.reports  # type: ignore[attr-defined]
    first = Trainer(trainer.config)
    assert first.run_epoch().scores == reports[0].scores != reports[1].scores
    tensors, meta = first.state()
    later = Trainer(trainer.config)
    later.load_state(tensors, json.loads(json.dumps(meta)))
    (last,) = later.fit()
    assert last.scores == reports[1].scores
    whole = trainer.state()[0]
    assert whole.keys() == later.state()[0].keys()
    assert all(torch.equal(value, whole[name]) for name, value in later.state()[0].items())


def test_another_seed_is_another_training(small: TrialConfig) -> None:
    one, two = (SsmMethod.fresh(small.override({"seed": seed}), CPU) for seed in (1, 2))
    assert not torch.equal(one.model_state()["unet.out.weight"], two.model_state()["unet.out.weight"])
    again = SsmMethod.fresh(small.override({"seed": 1}), CPU)
    assert torch.equal(one.model_state()["unet.out.weight"], again.model_state()["unet.out.weight"])


def test_a_stop_is_heard_and_too_few_images_are_refused(small: TrialConfig) -> None:
    method = fresh_method(small, CPU)
    method.prepare(TaskImages(of_noise(4, 0), np.arange(4), np.arange(0)))
    with pytest.raises(StoppedError, match="epoch 1"):
        method.run_epoch(0, lambda: True)
    with pytest.raises(DataError, match="method ssm needs 2 normal training images"):
        fresh_method(small, CPU).prepare(TaskImages(of_noise(1, 0), np.arange(1), np.arange(0)))


def test_the_threshold_is_the_quantile_of_errors_of_normal_training_images(trainer: Trainer) -> None:
    method = ssm_of(trainer)
    if not method.network.section.refine:
        assert method.network.threshold.isnan() and "sure_below" not in trainer.reports[-1].metrics  # type: ignore[attr-defined]
        return
    errors = []
    with torch.no_grad():
        for image in method.images.take(method.some_normals(CALIBRATION_NORMALS)):
            shrunk = method.network.shrunk(torch.from_numpy(image[None]).permute(0, 3, 1, 2).float() / 255)
            errors.append(method.network.first_round(shrunk))
    threshold = float(method.network.threshold)
    assert threshold == pytest.approx(trainer.reports[-1].metrics["sure_below"])  # type: ignore[attr-defined]
    assert float((torch.cat(errors) < threshold).float().mean()) == pytest.approx(0.6, abs=1e-3)


def test_heat_maps_of_both_kinds(trainer: Trainer, images: np.ndarray) -> None:
    maps = heat_maps(trainer.method, images, "score")
    assert maps is not None and maps.shape == images.shape[:3] and maps.dtype == np.float32
    # the highest pixel is the score, but for the resizing
    np.testing.assert_allclose(maps.max((1, 2)), trainer.method.score(images), rtol=0.03)
    slopes = heat_maps(trainer.method, images[:3], "gradient")
    assert slopes is not None and slopes.shape == (3, 64, 64) and np.isfinite(slopes).all() and slopes.max() > 0
    alone = heat_maps(trainer.method, images[1:2], "gradient")
    assert alone is not None
    np.testing.assert_array_equal(slopes[1], alone[0])


def test_views_are_what_is_hidden_and_what_is_made_of_it(trainer: Trainer, images: np.ndarray) -> None:
    network, some = ssm_of(trainer).network, images[:2]
    views = trainer.method.views(some)
    hidden, made, *sure = views.values()
    assert [name[:9] for name in views] == ["hidden, c", "made anew", *["surely no"] * len(sure)]
    assert len(sure) == network.section.refine
    with torch.inference_mode():
        shrunk = network.shrunk(to_pixels(some, CPU))
        shown = (network.get_buffer("masks_0")[3:4] == 1).expand_as(shrunk).permute(0, 2, 3, 1).numpy()
        again = network.reconstructed(shrunk, network.get_buffer("masks_0"))[:, 1]
    pixels = shrunk.permute(0, 2, 3, 1).numpy()
    assert abs(hidden / 255 - pixels)[shown].max() < 0.51 / 255 and not hidden[~shown].any()
    # a third of the cells, of 256
    assert (~shown[0, ::8, ::8, 0]).sum() == 86
    expected = again.clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(made / 255, expected, atol=0.51 / 255)
    for share in sure:
        assert share.shape == (2, 128, 128) and set(np.unique(share)) <= {0.0, 1.0}


def test_a_spot_is_where_the_map_is_highest(small: TrialConfig) -> None:
    method = SsmMethod.fresh(small.override({"method.sigma": 2.0}), CPU)
    flat = np.full((1, 64, 64, 3), 128, np.uint8)
    spotted = flat.copy()
    spotted[:, 40:48, 10:18] = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    away = method.cells(spotted) - method.cells(flat)
    row, column = np.unravel_index(away[0].argmax(), (64, 64))
    assert 36 <= row <= 52 and 6 <= column <= 22


@two_rounds
def test_the_module_scores_alike(trainer: Trainer, images: np.ndarray) -> None:
    """In any batch, and as a traced program: all of an export but its translation to ONNX, which takes most of it."""
    module, score = trainer.method.module(), trainer.method.score
    pixels = np.concatenate([images, generated_images(64, 6)])
    inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    shapes = ({0: torch.export.Dim("images")},)
    traced = torch.export.export(module, (inputs[:2],), dynamic_shapes=shapes, strict=False).module()
    with torch.no_grad():
        for some in (inputs, inputs[:1]):
            for run in (module, traced):
                np.testing.assert_allclose(run(some).numpy(), score(pixels)[: len(some)], atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(400)
@two_rounds
def test_an_exported_model_scores_alike(trainer: Trainer, images: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = Model(trainer.method, trainer.config, ModelParts({}))
    pixels = np.concatenate([images, generated_images(64, 6)])
    found = export_parity(model, tmp_path, "onnx", pixels)
    assert found.holds and found.difference < 1e-5


def test_other_ways_to_score(trainer: Trainer, images: np.ndarray) -> None:
    method, config = ssm_of(trainer), trainer.config
    variants = SsmMethod.variants(config)
    own = {name: config.flat()[name] for name in variants[0]}
    assert variants[0] == own and len({json.dumps(each, sort_keys=True) for each in variants}) == len(variants)
    # three sides alone, four sets of several by either weight, four sigmas; two rounds only where they were asked for
    assert len(variants) == (3 + 4 * 2) * 4 + own["method.refine"]
    chosen = [variants[0], variants[5], variants[-1]]
    found = method.variant_scores(images, chosen)
    # but for rounding, which hangs on how many sides are hidden at once
    np.testing.assert_allclose(found[0], method.score(images), rtol=1e-5)
    for variant, scores in zip(chosen[1:], found[1:], strict=True):
        other = trained_method(config.override(variant), CPU, method.model_state())
        np.testing.assert_allclose(scores, other.score(images), rtol=1e-5)
    (value, raw), *_ = rescored(trainer, variants[:1])
    assert raw[""] == pytest.approx(trainer.method.score(trainer.selection.images), rel=1e-5) and 0 <= value <= 1


def test_a_checkpoint_fits_other_ways_to_score(trainer: Trainer) -> None:
    tensors, meta = trainer.state()
    other = trainer.config.override({"method.sigma": 4.0, "method.refine": False, "method.score_cells": "2"})
    Trainer(other).load_state(tensors, json.loads(json.dumps(meta)))
    with pytest.raises(CheckpointError, match="config differs"):
        Trainer(other.override({"method.cells": "8"})).load_state(tensors, json.loads(json.dumps(meta)))


def test_a_training_may_go_over_the_normal_images_in_each_epoch(small: TrialConfig) -> None:
    own = small.override({"method.total_updates": "pass", "budget.batch_size": 9, "budget.iterations": 1})
    method = prepared(own)
    # four images, three in a step
    assert [list(method.steps(epoch)) for epoch in (0, 1)] == [[0, 1], [2, 3]] and method.images_per_epoch == 6
    assert [list(prepared(small.override({"method.total_updates": 5})).steps(epoch)) for epoch in (0, 1)] == [
        [0, 1],
        [2, 3, 4],
    ]
    with pytest.raises(ConfigError, match=r"method\.total_updates=1: each of budget\.epochs=2 needs one"):
        small.override({"method.total_updates": 1})


def prepared(config: TrialConfig) -> SsmMethod:
    method = SsmMethod.fresh(config, CPU)
    method.prepare(TaskImages(of_noise(4, 0), np.arange(4), np.arange(0)))
    return method


def test_two_rounds_need_a_training_with_them(small: TrialConfig) -> None:
    method, asked = prepared(small), small.override({"method.refine": True})
    # one that has learned nothing gets its threshold with its first epoch
    trained_method(asked, CPU, method.model_state())
    method.step(0)
    with pytest.raises(CheckpointError, match=r"trained with method\.refine=false") as caught:
        trained_method(asked, CPU, method.model_state())
    assert "\n" not in str(caught.value)
    trained_method(asked, CPU, method.model_state() | {"threshold": torch.tensor(0.1)})


def test_a_training_of_no_numbers_fails_as_one(small: TrialConfig) -> None:
    method = prepared(small.override({"budget.iterations": 1}))
    with torch.no_grad():
        next(method.network.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="in epoch 1; a smaller learning rate may help"):
        method.run_epoch(0, lambda: False)


def test_a_training_compiles_its_network(small: TrialConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def compiled(module: torch.nn.Module) -> Callable[..., object]:
        def run(*inputs: torch.Tensor) -> object:
            ran.append(module)
            return module(*inputs)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    method = prepared(small.override({"runtime.compile": True}))
    method.step(0)
    assert ran == [method.network.unet]
    prepared(small).step(0)
    assert len(ran) == 1


def test_a_pass_hides_as_many_cells_for_several_sides(small: TrialConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALIKE_BATCH, "cpu", 3)
    method, passes = SsmMethod.fresh(small.override({"method.score_cells": "2,4,8"}), CPU), []
    method.network.unet.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    method.scorer()(of_noise(2, 0))
    # three masks of each of three sides, of one image at once
    assert passes == [9, 9, 9]
