"""MLEP's image form: its loss by hand, the images of a step, the decoder, the parts of a score and their scale."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sctune.backbones.trunk import build_backbone
from sctune.config import TrialConfig
from sctune.errors import ConfigError
from sctune.methods.base import TaskImages
from sctune.methods.mlep.loss import margin_loss, reconstruction, unit_rms
from sctune.methods.mlep.method import MlepMethod
from sctune.methods.mlep.network import Decoder, MlepNetwork
from sctune.methods.pixels import normalise, to_pixels
from sctune.methods.registry import fresh_method
from sctune.search.space.definition import load_space
from sctune.train.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(tiny: TrialConfig) -> TrialConfig:
    more = {"augment.rotation": "none", "model.weights": "imagenet", "budget.batch_size": 9, "optim.lr": 1e-3}
    return tiny.override({"method.name": "mlep", "method.distance": 0.5, **more})


@pytest.fixture(scope="module")
def trainer(config: TrialConfig) -> Trainer:
    trainer = Trainer(config)
    trainer.reports = list(trainer.fit())  # type: ignore[attr-defined]
    return trainer


def method_of(trainer: Trainer) -> MlepMethod:
    assert isinstance(trainer.method, MlepMethod)
    return trainer.method


def column(*values: float) -> Tensor:
    """Maps [N, 1, 1, 2] of the same value in both cells."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 1, 2)


def test_the_hinge_by_hand() -> None:
    # near: ((0 - 1)^2 + (2 - 2)^2) / 2 = 0.5; far: ((0 - 1)^2 + (2 - 3)^2) / 2 = 1
    found = margin_loss(column(0, 2), column(1, 2), column(1, 3), 1.0)
    assert (float(found.near), float(found.far), float(found.hinge)) == (0.5, 1.0, 0.5)
    # one hinge of the batch: the first triple alone would have 1 + 1 - 1 = 1, the second 1 + 0 - 1 = 0
    assert float(margin_loss(column(0, 2), column(1, 2), column(1, 3), 0.25).hinge) == 0.0
    # fewer negatives than anchors begin again: 0, 1 with 1, 1, then 4 with 1
    found = margin_loss(column(0, 1, 4), column(0, 1, 4), column(1), 2.0)
    assert float(found.far) == pytest.approx((1 + 0 + 9) / 3) and float(found.near) == 0.0
    # and more negatives than anchors all count
    assert float(margin_loss(column(0), column(0), column(1, 2, 3), 9.0).far) == pytest.approx((1 + 4 + 9) / 3)


def test_gradients_reach_all_three_only_inside_the_margin() -> None:
    parts = [column(*values).clone().requires_grad_() for values in ((0.0, 2.0), (1.0, 2.0), (1.0, 3.0))]
    margin_loss(*parts, 1.0).hinge.backward()
    assert all(part.grad is not None and float(part.grad.abs().sum()) > 0 for part in parts)
    parts = [part.detach().requires_grad_() for part in parts]
    margin_loss(*parts, 0.25).hinge.backward()
    assert all(float(part.grad.abs().sum()) == 0 for part in parts)  # type: ignore[union-attr]


def test_both_kinds_of_normal_images_count_alike() -> None:
    images, pictures = torch.zeros(3, 3, 2, 2), torch.zeros(3, 3, 2, 2)
    pictures[0], pictures[1], pictures[2] = 0.1, 0.3, -0.5
    assert float(reconstruction(images, pictures, 2)) == pytest.approx(0.2 + 0.5)


def test_unit_rms() -> None:
    maps = torch.stack([torch.full((2, 3, 3), 4.0), torch.arange(18.0).reshape(2, 3, 3), torch.zeros(2, 3, 3)])
    found = unit_rms(maps)
    assert found.square().mean(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1, 0])
    torch.testing.assert_close(found[1] / found[1].max(), maps[1] / 17)
    # whatever the scale of a map, two unit maps lie at most 4 apart, 2 where none is negative
    assert float((found[1] + found[1]).square().mean()) == pytest.approx(4.0)


def test_an_export_of_unit_rms_knows_maps_without_any_value() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    class UnitRms(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return unit_rms(maps)

    made = torch.onnx.export(UnitRms(), (torch.ones(1, 2, 2, 2),), input_names=["maps"], dynamo=True, verbose=False)
    assert made is not None
    session = onnxruntime.InferenceSession(made.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"maps": np.zeros((1, 2, 2, 2), np.float32)})
    assert (found == 0).all()


@pytest.mark.parametrize(
    ("size", "stages", "sides"), [(64, 4, [8, 16, 32, 64]), (448, 5, [28, 56, 112, 224, 448]), (50, 3, [12, 25, 50])]
)
def test_the_decoder_ends_at_the_images_size(size: int, stages: int, sides: list[int]) -> None:
    decoder = Decoder(40, stages, size, 64)
    assert decoder.sides == sides
    assert [stage[0].out_channels for stage in decoder.stages] == [64, 32, 16, 16, 16][:stages]
    if size < 100:
        pictures = decoder.eval().requires_grad_(False)(torch.randn(2, 40, size >> stages, size >> stages))
        assert pictures.shape == (2, 3, size, size) and 0 < float(pictures.min()) <= float(pictures.max()) < 1


def test_a_step_takes_anchors_positives_and_negatives(trainer: Trainer) -> None:
    method = method_of(trainer)
    triples, held = method.triples(5), method.images
    # 9 images, two thirds of them normal
    assert (len(triples.images), triples.positives, triples.negatives) == (9, 3, 6)

    def rows(part: Tensor) -> list[int]:
        pixels = (part.permute(0, 2, 3, 1) * 255).round().numpy().astype(np.uint8)
        return [int(np.flatnonzero((held.array == one).all(axis=(1, 2, 3)))[0]) for one in pixels]

    normal, seen = rows(triples.images[:6]), rows(triples.images[6:])
    assert set(normal) <= set(held.normals) and set(seen) <= set(held.anomalies) and len(set(normal)) == 6
    assert rows(method.triples(5).images) == normal + seen != rows(method.triples(6).images)


def test_a_step_lowers_the_loss_that_is_written_down(trainer: Trainer, config: TrialConfig) -> None:
    method = method_of(Trainer(config.override({"method.hinge_weight": 3.0})))
    triples, net = method.triples(0), method.network.train()
    z = unit_rms(net.backbone(normalise(triples.images))).detach()
    pictures = net.decoder(z[:6]).detach()
    error = sum((triples.images[part] - pictures[part]).abs().mean() for part in (slice(0, 3), slice(3, 6)))
    hinge = max(0.0, 1 + float((z[:3] - z[3:6]).square().mean()) - float((z[:3] - z[6:]).square().mean()))
    # as trained: batch norm of the frozen blocks stays, that of the others is the batch's
    fresh = method_of(Trainer(config.override({"method.hinge_weight": 3.0})))
    figures = fresh.step(0)
    assert float(figures["loss"]) == pytest.approx(float(error) + 3 * hinge, rel=1e-4)
    assert float(figures["loss_hinge"]) == pytest.approx(hinge, rel=1e-4) and hinge > 0
    again = fresh.network.train()
    with torch.no_grad():
        z = again.embed(triples.images)
        assert float(reconstruction(triples.images[:6], again.decoder(z[:6]), 3)) < float(error)


def test_without_anomalies_there_is_no_hinge(config: TrialConfig) -> None:
    free = config.override({"data.setting": "anomaly-free", "data.selection": "auto"})
    method = method_of(Trainer(free))
    triples = method.triples(0)
    assert (len(triples.images), triples.positives, triples.negatives) == (9, 5, 9)
    figures = method.run_epoch(0, lambda: False)
    assert figures["loss"] == pytest.approx(figures["loss_error"]) and "loss_hinge" not in figures
    assert not any(name.startswith("seen") for name in figures)
    # and what only the hinge needs is not searched
    space = load_space("mlep", free)
    assert not any(space.is_active(space.by_name[name], {}) for name in ("method.margin", "method.hinge_weight"))
    assert space.is_active(space.by_name["method.distance"], {})


def second_parts(trainer: Trainer, images: np.ndarray) -> np.ndarray:
    """Mean error, mean of the highest tenth, and z [N, ...] beside a second implementation of the network's parts."""
    method = method_of(trainer)
    state = method.model_state()
    backbone = build_backbone(trainer.config.model, None).eval()
    backbone.load_state_dict({name: state[f"backbone.{name}"] for name in backbone.state_dict()})
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        z = torch.cat([backbone(normalise(one)) for one in pixels.split(1)]).numpy().astype(np.float64)
        z = z / np.sqrt((z**2).mean(axis=(1, 2, 3), keepdims=True))
        pictures = method.network.decoder(torch.from_numpy(z).float()).numpy()
    errors = np.sort(np.abs(pixels.numpy() - pictures).mean(axis=1).reshape(len(images), -1), axis=1)
    return [errors.mean(axis=1), errors[:, -errors.shape[1] // 10 + 1 :].mean(axis=1), z]  # type: ignore[return-value]


def test_scores_are_deviations_of_normal_images(trainer: Trainer) -> None:
    method = method_of(trainer)
    normals, images = method.images.take(method.images.normals), trainer.selection.images
    known, found = second_parts(trainer, normals), second_parts(trainer, images)
    typical = known[2].mean(axis=0)
    for parts in (known, found):
        parts[2] = ((parts[2] - typical) ** 2).mean(axis=(1, 2, 3))  # type: ignore[call-overload]
    means, deviations = np.mean(known, axis=1), np.std(known, axis=1, ddof=1)
    z = (np.array(found) - means[:, None]) / deviations[:, None]
    assert method.score(images) == pytest.approx(z[0] + 0.5 * z[2], abs=2e-3)
    variants = [
        {"method.error": "mean", "method.distance": 0.0},
        {"method.error": "top", "method.distance": 2.0},
    ]
    plain, other = method.variant_scores(images, variants)
    assert plain == pytest.approx(z[0], abs=2e-3) and other == pytest.approx(z[1] + 2 * z[2], abs=4e-3)
    last = trainer.reports[-1].metrics  # type: ignore[attr-defined]
    assert last["normal_error"] == pytest.approx(means[0], rel=1e-4)
    seen = second_parts(trainer, method.images.take(method.images.anomalies))
    assert last["seen_error"] == pytest.approx(((seen[0] - means[0]) / deviations[0]).mean(), abs=2e-3)


def test_the_mean_of_a_heat_map_is_the_score(trainer: Trainer) -> None:
    images = trainer.selection.images[:5]
    maps = trainer.method.cells(images)
    assert maps is not None
    assert maps.mean(axis=(1, 2)) == pytest.approx(trainer.method.score(images), abs=1e-3)


def test_a_view_is_the_picture_that_the_error_is_of(trainer: Trainer) -> None:
    images, network = trainer.selection.images[:3], method_of(trainer).network
    (made,) = trainer.method.views(images).values()
    assert made.dtype == np.uint8 and made.shape == images.shape
    with torch.inference_mode():
        pixels = to_pixels(images, torch.device("cpu"))
        errors = network.errors(pixels, network.embed(pixels)).numpy()
    apart = abs(images.astype(float) - made.astype(float)).mean(axis=3) / 255
    np.testing.assert_allclose(apart, errors, atol=0.51 / 255)


def test_a_top_share_is_the_mean_of_a_maps_highest_pixels(config: TrialConfig) -> None:
    own = config.override({"method.error": "top", "method.error_share": 0.01, "method.distance": 0.0})
    trainer = Trainer(own.override({"budget.epochs": 1}))
    trainer.run_epoch()
    images = trainer.selection.images[:5]
    maps = trainer.method.cells(images)
    assert maps is not None
    highest = np.sort(maps.reshape(5, -1), axis=1)[:, -int(0.01 * 64 * 64) :]
    assert highest.mean(axis=1) == pytest.approx(trainer.method.score(images), abs=1e-3)


def test_alike_normals_are_not_blown_up(config: TrialConfig) -> None:
    trainer = Trainer(config)
    method = method_of(trainer)
    held = method.images
    held.normals[:] = held.normals[0]
    method.settle(lambda: None)
    # rounding of 1e-7 is 1e-4 of it, which a score may differ by
    assert method.network.moments[1].tolist() == pytest.approx([1e-3] * 3)
    assert np.isfinite(method.score(trainer.selection.images)).all()


def test_embeddings_of_normals_are_not_held(config: TrialConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (49, 64, 64, 3), np.uint8)
    method = fresh_method(config.override({"model.weights": "random"}), CPU)
    assert isinstance(method, MlepMethod)
    method.prepare(TaskImages(images, np.arange(49), np.arange(0)))
    alive: list[int] = []
    made: list[weakref.ref[Tensor]] = []
    embed = MlepNetwork.embed

    def seen(self: MlepNetwork, pixels: Tensor, *more: Tensor | None) -> Tensor:
        alive.append(sum(one() is not None for one in made))
        z = embed(self, pixels, *more)
        made.append(weakref.ref(z))
        return z

    monkeypatch.setattr(MlepNetwork, "embed", seen)
    method.settle(lambda: None)
    # four batches of sixteen at most, looked at twice
    assert len(alive) == 8 and max(alive) == 1


def test_few_normals_give_the_scale_where_that_is_asked_for(config: TrialConfig) -> None:
    method = method_of(Trainer(config.override({"method.scale_normals": 5})))
    rows = method.some_normals(5)
    assert len(set(rows)) == 5 and set(rows) <= set(method.images.normals)
    method.settle(lambda: None)
    network: MlepNetwork = method.network
    typical = method.over(method.images.take(rows), network.embed).mean(axis=0)
    torch.testing.assert_close(network.typical, torch.from_numpy(typical), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method.margin": 0.0}, r"method\.margin=0\.0: input should be greater than 0"),
        ({"method.error": "max"}, r"method\.error='max': input should be 'mean' or 'top'"),
        ({"method.decoder_width": 8}, r"method\.decoder_width=8: input should be greater than or equal to 16"),
        ({"method.score": "recon"}, r"unknown configuration key 'method\.score'"),
        ({"model.tap": "shallow"}, r"model\.tap"),
        (
            {"data.shuffle_labels": True, "data.setting": "anomaly-free", "data.selection": "auto"},
            "data.setting=anomaly-free mlep learns from normal images alone, so there are no labels to shuffle",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(config: TrialConfig, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config.override(values)
    assert "\n" not in str(caught.value)
