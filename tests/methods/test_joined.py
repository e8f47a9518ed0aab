"""A density of the trained trunk, or of cells, beside the heads: model.density_trunk, model.density_features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn

from sctune.backbones.trunk import build_backbone
from sctune.config import TrialConfig
from sctune.deploy.export import generated_images
from sctune.deploy.parity import score_parity
from sctune.errors import CheckpointError, DataError, NonFiniteError, StoppedError
from sctune.methods.base import Method, TaskImages
from sctune.methods.deviation import trunk_maps
from sctune.methods.deviation.density import trunk_ends
from sctune.methods.deviation.trunk_density import Training
from sctune.methods.pixels import normalise
from sctune.methods.registry import fresh_method, trained_method
from sctune.methods.untrained.crossfit import few_moments
from sctune.methods.untrained.extractor import FrozenChoice
from sctune.methods.untrained.reference import Picked
from sctune.metrics.objective import AUROC
from sctune.train.rescore import rescored, score_variants
from sctune.train.trainer import Trainer
from tests.builders import make_space

CPU = torch.device("cpu")
WEIGHT = 2.0
SHARE = 0.2
FEW_BYTES = 100_000
"""Room for what frozen blocks make of four images."""
TRUNK = ("stride4", "stride8", "stage4", "stride16")
"""The usual taps of a Gaussian as far as a trunk up to the middle reaches."""


@pytest.fixture(scope="module")
def config(tiny: TrialConfig) -> TrialConfig:
    more = {"model.normal_head": "gaussian", "score.density": WEIGHT, "score.top_k": SHARE}
    return tiny.override({**more, "model.weights": "imagenet", "model.freeze": 5, "optim.lr": 1e-3})


def trained_to_its_end(config: TrialConfig) -> Trainer:
    trainer = Trainer(config)
    list(trainer.fit())
    return trainer


@pytest.fixture(scope="module")
def pooled(config: TrialConfig) -> Trainer:
    return trained_to_its_end(config.override({"model.density_trunk": "trained"}))


@pytest.fixture(scope="module")
def cells(config: TrialConfig) -> Trainer:
    return trained_to_its_end(config.override({"model.density_trunk": "trained", "model.density_features": "cells"}))


@pytest.fixture(scope="module")
def frozen(config: TrialConfig) -> Trainer:
    return trained_to_its_end(config.override({"model.density_features": "cells"}))


@pytest.fixture(scope="module", params=["pooled", "cells", "frozen"])
def trainer(request: pytest.FixtureRequest) -> Trainer:
    found: Trainer = request.getfixturevalue(request.param)
    return found


def density_scores(method: Method, images: np.ndarray) -> np.ndarray:
    """From two weights of the density: the score is a sum."""
    without = trained_method(method.config.override({"score.density": 0.0}), CPU, method.model_state())
    return (method.score(images) - without.score(images)) / WEIGHT


def trunk(trainer: Trainer, taps: tuple[str, ...]) -> nn.Module:
    """The trained blocks in a network that is built here."""
    net = build_backbone(FrozenChoice("efficientnet_lite0", taps), None).eval()
    state = trainer.method.model_state()
    net.load_state_dict({name: state[f"backbone.{name}"] for name in net.state_dict()})
    return net


def maps_of(net: nn.Module, images: np.ndarray) -> list[list[Tensor]]:
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        return [net.maps(one) for one in normalise(pixels).split(1)]


def parts(trainer: Trainer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal images that were trained on, labelled anomalies, and normal ones that were held out."""
    everything = Trainer(trainer.config.override({"model.normal_head": "mlp"})).method.step.images
    seen = trainer.method.trained_part.step.images
    held = everything.normals[~np.isin(everything.normals, seen.normals)]
    assert len(held) >= 4 and len(seen.anomalies) == trainer.config.n_anomalies
    return everything.take(seen.normals), everything.take(seen.anomalies), everything.take(held)


def scaled(terms: np.ndarray, held: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Distance + half the push [N], each in deviations of held-out normals, half those of fitted ones at least."""
    deviations = np.maximum(held.std(axis=0, ddof=1), 0.5 * fitted.std(axis=0, ddof=1))
    return ((terms - held.mean(axis=0)) / deviations) @ np.array([1.0, 0.5])


def whitening(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, deviation and whitening matrix of rows [N, D], by scikit-learn."""
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    spread, axes = np.linalg.eigh(LedoitWolf(assume_centered=True).fit((rows - mean) / scale).covariance_)
    return mean, scale, axes / np.sqrt(spread) @ axes.T


def test_pooled_features_of_the_trained_trunk_beside_a_second_implementation(pooled: Trainer) -> None:
    net = trunk(pooled, TRUNK)

    def rows(images: np.ndarray) -> np.ndarray:
        return np.stack([np.concatenate([one[0].mean(dim=(1, 2)) for one in maps]) for maps in maps_of(net, images)])

    known, labelled, held = (rows(images).astype(np.float64) for images in parts(pooled))
    mean, scale, root = whitening(known)
    push = ((labelled - mean) / scale @ root).mean(axis=0)

    def terms(own: np.ndarray) -> np.ndarray:
        away = (own - mean) / scale @ root
        return np.column_stack([np.linalg.norm(away, axis=1), away @ push / np.linalg.norm(push)])

    images = pooled.selection.images
    expected = scaled(terms(rows(images).astype(np.float64)), terms(held), terms(known))
    assert density_scores(pooled.method, images) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_cells_of_the_trained_trunk_beside_a_second_implementation(cells: Trainer) -> None:
    """A mean for each place, one covariance; 64 px: all cells of all images are few enough to be fitted."""
    net = trunk(cells, ("stride8", "stride16"))

    def grids(images: np.ndarray) -> np.ndarray:
        """[N, S, S, C]: the coarser map interpolated, then means over what lies within a cell of each."""
        found = []
        for fine, coarse in maps_of(net, images):
            side = fine.shape[-1]
            both = torch.cat([fine, nn.functional.interpolate(coarse, size=side, mode="bilinear")], dim=1)[0].numpy()
            near = [
                [both[:, max(0, r - 1) : r + 2, max(0, c - 1) : c + 2].mean(axis=(1, 2)) for c in range(side)]
                for r in range(side)
            ]
            found.append((np.array(near), both.mean(axis=(1, 2))))
        return np.stack([one for one, _ in found]).astype(float), np.stack([one for _, one in found]).astype(float)

    (known, known_rows), (_, labelled_rows), (held, held_rows) = (grids(images) for images in parts(cells))
    place = known.mean(axis=0)
    _, scale, root = whitening((known - place).reshape(-1, known.shape[3]))
    mean, spread, other = whitening(known_rows)
    push = ((labelled_rows - mean) / spread @ other).mean(axis=0)

    def terms(own: np.ndarray, rows: np.ndarray) -> np.ndarray:
        away = np.linalg.norm((own - place) / scale @ root, axis=3).reshape(len(own), -1)
        top = np.sort(away, axis=1)[:, -round(SHARE * away.shape[1]) :].mean(axis=1)
        return np.column_stack([top, (rows - mean) / spread @ other @ push / np.linalg.norm(push)])

    images = cells.selection.images[:12]
    expected = scaled(terms(*grids(images)), terms(held, held_rows), terms(known, known_rows))
    assert density_scores(cells.method, images) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_a_frozen_density_of_cells_is_that_of_method_gaussian(frozen: Trainer) -> None:
    values = {"method.name": "gaussian", "method.features": "cells", "method.cell_share": SHARE}
    reference = Trainer(frozen.config.override(values))
    reference.run_epoch()
    images = frozen.selection.images
    assert density_scores(frozen.method, images) == pytest.approx(reference.method.score(images), rel=1e-4, abs=1e-4)


def test_what_is_reported_is_what_a_checkpoint_of_that_epoch_scores(config: TrialConfig, trainer: Trainer) -> None:
    """With averaged weights and new statistics after the last epoch too: the density is of the trunk that scores."""
    more = {"optim.average": "ema", "optim.final_statistics": "normals"}
    again = Trainer(trainer.config.override(more))
    fits = []
    for report in again.fit():
        state = again.method.model_state()
        loaded = trained_method(again.config, CPU, state)
        (scores,) = (row for name, row in report.scores.items() if name == again.task.key)
        assert np.array(scores) == pytest.approx(loaded.score(again.selection.images), rel=1e-3, abs=1e-3)
        fits.append(state["density.fit.density.mean"].clone())
    moves = again.config.model.density_trunk == "trained"
    assert torch.equal(*fits) != moves


def test_it_sees_defects_and_a_loaded_model_scores_the_same(trainer: Trainer) -> None:
    images, labels = trainer.selection.images, np.array(trainer.selection.labels)
    scores = trainer.method.score(images)
    assert AUROC.value(labels, density_scores(trainer.method, images)) > 0.9
    loaded = trained_method(trainer.config, CPU, trainer.method.model_state())
    assert np.array_equal(np.concatenate([loaded.score(image[None]) for image in images]), scores)
    assert trainer.method.scorer()(images) == pytest.approx(scores, rel=1e-4, abs=1e-4)
    assert len(trainer.method.score(images[:0])) == 0


def test_no_more_than_an_image_is_whitened_at_once(cells: Trainer) -> None:
    """In float64 the cells of a batch, in all of its turns, would take gigabytes; the trunk sees it whole."""
    method = trained_method(cells.config.override({"score.turns": 4}), CPU, cells.method.model_state())
    images, whitened, seen = cells.selection.images[:5], [], []
    method.density.fitted.bank.register_forward_hook(lambda _, args, __: whitened.append(len(args[0])))
    method.trained_part.scored.backbone.blocks[0].register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    quick = method.scorer()(images)
    assert whitened == [1] * 20 and seen == [20]
    method.density.by_share(images, [SHARE, 1.0])
    assert whitened == [1] * 25
    assert quick == pytest.approx(method.score(images), rel=1e-4, abs=1e-4)


def test_a_stopped_training_goes_on_bit_by_bit(trainer: Trainer) -> None:
    first = Trainer(trainer.config)
    report = first.run_epoch()
    assert {"density_normals", "density_push_weight", "density_shrinkage", "held_out_score_sd"} <= report.metrics.keys()
    second = Trainer(trainer.config)
    second.load_state(*first.state())
    second.run_epoch()
    states = [one.state()[0] for one in (second, trainer)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_trained_trunk_is_the_only_network_and_is_asked_once(pooled: Trainer, cells: Trainer) -> None:
    passes: list[int] = []
    for trainer in (pooled, cells):
        method = trainer.method
        names = [name for name in method.model_state() if name.startswith("density.")]
        assert names and all(name.startswith("density.fit.") for name in names)
        blocks = method.trained_part.detector.backbone.blocks
        hooks = [block.register_forward_hook(lambda *_: passes.append(1)) for block in blocks]
        passes.clear()
        method.score(trainer.selection.images[:3])
        for hook in hooks:
            hook.remove()
        assert len(passes) == 3 * len(blocks)


@pytest.mark.parametrize(
    ("freeze", "most"),
    [(0, trunk_maps.MAX_BYTES), (3, trunk_maps.MAX_BYTES), (12, trunk_maps.MAX_BYTES), (3, FEW_BYTES)],
)
@pytest.mark.parametrize("features", ["pooled", "cells"])
def test_kept_maps_of_frozen_blocks_change_nothing(
    freeze: int, features: str, most: int, config: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit that begins with what earlier ones kept, all or some, is that of a new method with the same weights."""
    monkeypatch.setattr(trunk_maps, "MAX_BYTES", most)
    values = {"model.freeze": freeze, "model.density_trunk": "trained", "model.density_features": features}
    trainer = Trainer(config.override(values))
    # a block that is watched is called itself, and rounds otherwise
    trainer.method.trained_part.scored.backbone.folds = False
    trainer.run_epoch()
    blocks, passes = trainer.method.trained_part.scored.backbone.blocks, []
    hook = blocks[0].register_forward_hook(lambda *_: passes.append(1))
    trainer.method.density.fit(lambda: None)
    hook.remove()
    loaded = trained_method(trainer.config, CPU, trainer.method.model_state())
    known, anomalies, held = (Picked(images, np.arange(len(images))) for images in parts(trainer))
    loaded.trained_part.scored.backbone.folds = False
    loaded.density.prepare(Training(known, anomalies, held))
    loaded.density.fit(lambda: None)
    again, fresh = trainer.method.model_state(), loaded.model_state()
    assert again.keys() == fresh.keys()
    assert all(torch.equal(value, fresh[name]) for name, value in again.items())
    # heat maps compare with typical images, whose maps no fit keeps
    typical, asked = min(64, len(known)) * (features == "pooled"), len(known) + len(anomalies) + len(held)
    if not freeze:
        assert len(passes) >= asked
    elif most > FEW_BYTES:
        assert len(passes) == typical
    else:
        assert typical < len(passes) < typical + 2 * asked


def test_module_and_turns(trainer: Trainer) -> None:
    images = trainer.selection.images[:5]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    for turns in (1, 4):
        method = trained_method(trainer.config.override({"score.turns": turns}), CPU, trainer.method.model_state())
        with torch.inference_mode():
            found = method.module()(pixels).numpy()
        assert found == pytest.approx(method.score(images), rel=1e-4, abs=1e-3)
        maps, turned = method.cells(images), method.cells(np.rot90(images, 1, (1, 2)))
        assert maps.shape == images.shape[:3]
        same = np.allclose(np.rot90(turned, -1, (1, 2)), maps, rtol=1e-3, atol=1e-3)
        assert same == (turns == 4)


@pytest.mark.parametrize("values", [{"model.density_trunk": "trained"}, {"model.density_features": "cells"}])
def test_the_mean_over_turns_of_held_out_normals_has_mean_0_and_deviation_1(
    values: dict[str, object], config: TrialConfig
) -> None:
    trainer = Trainer(config.override({**values, "score.turns": 4}))
    trainer.run_epoch()
    held = parts(trainer)[2]
    scores = density_scores(trainer.method, held)
    assert abs(scores.mean()) < 1e-3 and scores.std(ddof=1) == pytest.approx(1, abs=1e-3)
    # more than one: what a training without turns would have been scaled by
    alone = trained_method(trainer.config.override({"score.turns": 1}), CPU, trainer.method.model_state())
    assert density_scores(alone, held).std(ddof=1) > 1.05


def test_heat_maps_add_up(trainer: Trainer, pooled: Trainer) -> None:
    images = trainer.selection.images[:3]
    method = trainer.method
    own = method.trained_part.cells(images) / float(method.scale[1])
    beside = (method.cells(images) - own) / WEIGHT
    if trainer is pooled:
        # 64 px: every map has a whole number of pixels a cell, so raising it changes no mean
        assert beside.mean(axis=(1, 2)) == pytest.approx(density_scores(method, images), rel=1e-3, abs=1e-2)
    else:
        mean, deviation = (
            method.model_state()[f"density.fit.combination.{name}"][0] for name in ("means", "deviations")
        )
        away = (method.density.cells(images) - float(mean)) / float(deviation)
        assert beside == pytest.approx(away, rel=1e-3, abs=1e-2)
    planted = images[:1].copy()
    planted[0, 8:22, 36:50] = (250, 20, 20)
    more = (method.cells(planted) - method.cells(images[:1]))[0]
    row, column = np.unravel_index(more.argmax(), more.shape)
    assert 0 <= row < 30 and 28 <= column < 58
    assert np.ptp(method.gradients(images), axis=(1, 2)).min() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pooled", "cells"])
def test_onnx_gives_the_scores(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    trainer = request.getfixturevalue(name)
    method = trainer.method
    images = np.concatenate([trainer.selection.images[:8], generated_images(trainer.config.data.image_size)])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    program = torch.onnx.export(
        method.module(), (pixels,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("images", min=1)},), verbose=False
    )
    program.save(tmp_path / "joined.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "joined.onnx")
    for count in (1, len(images)):
        (found,) = session.run(None, {session.get_inputs()[0].name: pixels[:count].numpy()})
        parity = score_parity(method.score(images[:count]), found.astype(np.float64), None)
        assert parity.images == count and parity.holds, parity.line()


def test_rescoring_tries_shares_of_the_cells_too(trainer: Trainer) -> None:
    first = score_variants(trainer.config)[0]
    changes = ({}, {"score.density": 0.0}, {"score.top_k": 0.5}, {"score.turns": 4, "score.top_k": 0.05})
    chosen = [first | change for change in changes]
    images, state = trainer.selection.images, trainer.method.model_state()
    for variant, (_, scores) in zip(chosen, rescored(trainer, chosen), strict=True):
        loaded = trained_method(trainer.config.override(variant), CPU, state)
        assert scores[""] == pytest.approx(loaded.score(images), rel=1e-3, abs=1e-3)


def test_the_dry_run_scores_what_it_has_timed(trainer: Trainer) -> None:
    again = Trainer(trainer.config)
    seconds, steps = again.method.time_step()
    assert seconds > 0 and steps == trainer.config.budget.iterations
    assert np.isfinite(again.method.scorer()(trainer.selection.images[:3])).all()
    assert again.method.model_state().keys() == trainer.method.model_state().keys()


def test_a_mixture_has_kinds_of_cells(config: TrialConfig) -> None:
    for name in ("frozen", "trained"):
        values = {"model.density_trunk": name, "model.density_features": "cells", "model.normal_head": "mixture"}
        trainer = Trainer(config.override({**values, "model.density_components": 2}))
        trainer.run_epoch()
        state = trainer.method.model_state()
        assert state["density.fit.bank.gaussian.centres"].shape[0] == 2
        loaded = trained_method(trainer.config, CPU, state)
        images = trainer.selection.images[:4]
        assert np.array_equal(loaded.score(images), trainer.method.score(images))


@pytest.mark.parametrize("values", [{}, {"model.normal_head": "mixture", "model.density_components": 12}])
def test_too_few_normals_are_said_before_anything_is_trained(values: dict[str, object], pooled: Trainer) -> None:
    config = pooled.config.override(values)
    images = Trainer(config.override({"model.normal_head": "mlp"})).method.step.images
    few, least = (16, 13) if values else (13, 10)
    with pytest.raises(
        DataError, match=rf"needs {least} .*, and {few - 4} are there.*model\.normal_head=mlp"
    ) as caught:
        fresh_method(config, CPU).prepare(TaskImages(images.array, images.normals[:few], images.anomalies))
    assert "\n" not in str(caught.value)
    enough = TaskImages(images.array, images.normals[: least + 4], images.anomalies)
    fresh_method(config, CPU).prepare(enough)


def test_held_out_normals_that_lie_close_together_blow_no_score_up() -> None:
    held = np.array([[9.0, 1, 0], [9, 3, 0], [9, 1, 0], [9, 3, 0]])
    fitted = np.random.default_rng(0).normal(size=(500, 3)) * [4, 0.1, 0] + [8, 0, 0]
    means, deviations = few_moments(held, fitted)
    assert means.tolist() == [9, 2, 0]
    # the floor, four values by hand, and what is not there
    assert deviations == pytest.approx([2, np.sqrt(4 / 3), 1], rel=0.1)


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "no finite numbers"), (0.0, "the same features")])
def test_a_trunk_that_has_gone_astray_is_no_fault_of_the_images(
    value: float, message: str, pooled: Trainer, cells: Trainer
) -> None:
    for config in (pooled.config, cells.config):
        trainer = Trainer(config)
        with torch.no_grad():
            for weight in trainer.method.trained_part.scored.backbone.blocks.parameters():
                weight.fill_(value)
        with pytest.raises(NonFiniteError, match=message) as caught:
            trainer.method.density.fit(lambda: None)
        assert "\n" not in str(caught.value) and "optim.lr" in str(caught.value)


def test_other_states_are_refused(pooled: Trainer, cells: Trainer, frozen: Trainer) -> None:
    others = {"pooled": pooled, "cells": cells, "frozen": frozen}
    for name, own in others.items():
        for other, strange in others.items():
            if other != name:
                with pytest.raises(CheckpointError):
                    trained_method(own.config, CPU, strange.method.model_state())
    with pytest.raises(CheckpointError, match=r"model\.density_trunk=trained.*backbone of its own"):
        trained_method(pooled.config, CPU, frozen.method.model_state())


def test_a_stop_in_the_fit_is_noticed(cells: Trainer) -> None:
    asked: Iterator[bool] = iter([False] * (cells.config.budget.iterations + 1))
    trainer = Trainer(cells.config, should_stop=lambda: next(asked, True))
    with pytest.raises(StoppedError):
        trainer.run_epoch()


def test_where_a_density_looks_in_a_trained_trunk(config: TrialConfig) -> None:
    """Number of leading blocks -> channels: the taps of method `gaussian` as far as the trunk reaches."""
    trained = config.override({"model.density_trunk": "trained"})
    of_cells = trained.override({"model.density_features": "cells"})
    deep = {"model.tap": "deep", "data.image_size": 160}
    assert trunk_ends(trained) == {4: 24, 6: 40, 9: 80, 12: 112}
    assert trunk_ends(trained.override(deep)) == {4: 24, 6: 40, 9: 80, 12: 112, 17: 320}
    assert trunk_ends(of_cells) == trunk_ends(of_cells.override(deep)) == {6: 40, 12: 112}
    # none of the usual ones: its own
    assert trunk_ends(of_cells.override({"model.taps": "stride4"})) == {4: 24}


def test_a_network_of_timm_gives_the_maps_of_its_detector(config: TrialConfig) -> None:
    pytest.importorskip("timm")
    values = {"model.backbone": "timm/resnet18", "model.weights": "random", "model.freeze": 0}
    for features in ("pooled", "cells"):
        more = {"model.density_trunk": "trained", "model.density_features": features, "budget.epochs": 1}
        trainer = Trainer(config.override({**values, **more}))
        trainer.run_epoch()
        loaded = trained_method(trainer.config, CPU, trainer.method.model_state())
        images = trainer.selection.images[:3]
        assert np.array_equal(loaded.score(images), trainer.method.score(images))
        assert loaded.cells(images).shape == images.shape[:3]


def test_a_space_draws_them_only_beside_a_density(config: TrialConfig, tmp_path: Path) -> None:
    parameters = {
        "model.normal_head": {"values": ["mlp", "gaussian"]},
        "model.density_trunk": {"values": ["frozen", "trained"]},
        "model.density_features": {"values": ["pooled", "cells"]},
    }
    points = list(make_space(tmp_path, config, parameters=parameters).points())
    assert sorted(len(point) for point in points) == [1, 3, 3, 3, 3]
