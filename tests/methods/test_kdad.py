"""KDAD: its cloner, its loss and its kept maps beside second implementations, and what every method must hold."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sctune.backbones.registry import backbone_entry
from sctune.config import TrialConfig, load_profile
from sctune.deploy.export import export_model, run_exported
from sctune.deploy.locate import open_model
from sctune.errors import CheckpointError, ConfigError, DataError, NonFiniteError, StoppedError, WeightsError
from sctune.methods.base import TaskImages
from sctune.methods.kdad import method as kdad_method
from sctune.methods.kdad.cloner import Cloner, stages_of
from sctune.methods.kdad.entry import critical_taps
from sctune.methods.kdad.heat import opened
from sctune.methods.kdad.kept import KeptMaps, KeptRows
from sctune.methods.kdad.method import KdadMethod
from sctune.methods.kdad.pair import Pair
from sctune.methods.named import method_values
from sctune.methods.registry import fresh_method, trained_method
from sctune.search.plan.options import SearchOptions
from sctune.search.run.driver import run_search
from sctune.search.space.definition import load_space
from sctune.train.heatmap import heat_maps
from sctune.train.rescore import score_variants
from sctune.train.trainer import Trainer
from tests.methods.kdad_fits import OTHER, copies, kdad, parts, source_maps

CPU = torch.device("cpu")
VGG_STRIDES = "stride4,stride8,stride16,stride32"


@pytest.fixture(scope="module", params=["usual", "other"])
def trainer(request: pytest.FixtureRequest, tiny: TrialConfig) -> Trainer:
    trained = Trainer(kdad(tiny, {} if request.param == "usual" else OTHER))
    list(trained.fit())
    return trained


@pytest.fixture(scope="module")
def learned(tiny: TrialConfig) -> Trainer:
    """One that has learned long enough to see defects."""
    trained = Trainer(kdad(tiny, {"method.total_updates": 40}))
    list(trained.fit())
    return trained


@pytest.fixture
def method(trainer: Trainer) -> KdadMethod:
    assert isinstance(trainer.method, KdadMethod)
    return trainer.method


@pytest.fixture(scope="module")
def images(trainer: Trainer) -> np.ndarray:
    """Some of both classes."""
    return np.array(trainer.selection.images[:: max(1, len(trainer.selection.images) // 7)])


def is_rectified(trainer: Trainer) -> bool:
    return bool(trainer.config.method.model_dump()["ends"] == "relu")


# the cloner


def described(net: nn.Module) -> list[str]:
    """Each layer in order: a convolution with its channels, a norm, a ReLU, a pool."""
    words = {nn.BatchNorm2d: "norm", nn.ReLU: "relu", nn.MaxPool2d: "pool"}
    return [
        f"{layer.in_channels}-{layer.out_channels}" if isinstance(layer, nn.Conv2d) else words[type(layer)]
        for layer in net.modules()
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.ReLU | nn.MaxPool2d)
    ]


def cloner(kind: str, backbone: str, rectified: bool = True, taps: str = VGG_STRIDES) -> Cloner:
    found = [backbone_entry(backbone).tap(name) for name in taps.split(",")]
    return Cloner(stages_of(found, kind, 16), rectified)  # type: ignore[arg-type]


def test_the_small_cloner_of_vgg16_is_the_published_one() -> None:
    """Cloner B: 16, 16, M, 16, 128, M, 16, 16, 256, M, 16, 16, 512, M, 16, 16, 512, M; norms but before pools."""
    net = cloner("small", "vgg16")
    first, second = ["norm", "relu"], ["pool", "relu"]
    expected = ["3-16", *first, "16-16", *second, "16-16", *first, "16-128", *second]
    for into, out in ((128, 256), (256, 512), (512, 512)):
        expected += [f"{into}-16", *first, "16-16", *first, f"16-{out}", *second]
    assert described(net) == expected
    convolutions = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    assert all(layer.bias is None and layer.kernel_size == (3, 3) and layer.padding == (1, 1) for layer in convolutions)
    # 343,728 of convolutions, 2 x 16 of each of eight norms
    assert sum(weight.numel() for weight in net.parameters()) == 343_728 + 256
    for layer in convolutions:
        bound = (6 / (9 * (layer.in_channels + layer.out_channels))) ** 0.5
        assert 0.9 * bound < float(layer.weight.detach().abs().max()) <= bound


def test_widths_of_other_cloners() -> None:
    widths = {
        ("equal", "vgg16"): [64, 64, 128, 128, *[256] * 3, *[512] * 6],
        ("small", "resnet18"): [16, 16, 16, 64, 16, 16, 128, 16, 16, 256, 16, 16, 512],
        ("equal", "resnet18"): [32, 32, 64, 64, *[128] * 3, *[256] * 3, *[512] * 3],
        ("small", "efficientnet_lite0"): [16, 16, 16, 24, 16, 16, 40, 16, 16, 112, 16, 16, 320],
        ("equal", "efficientnet_lite0"): [12, 12, 24, 24, *[40] * 3, *[112] * 3, *[320] * 3],
    }
    for (kind, backbone), expected in widths.items():
        net = cloner(kind, backbone)
        assert [layer.out_channels for layer in net.modules() if isinstance(layer, nn.Conv2d)] == expected
    # stages that nothing is taken of: half of the next one, or the width
    for kind, expected in (("equal", [10, 10, 20, 20, 40, 40, 40]), ("small", [16] * 6 + [40])):
        net = cloner(kind, "efficientnet_lite0", taps="stride8")
        assert [layer.out_channels for layer in net.modules() if isinstance(layer, nn.Conv2d)] == expected


def test_copies_have_the_shapes_of_the_maps(tiny: TrialConfig) -> None:
    for backbone in ("efficientnet_lite0", "resnet18"):
        config = kdad(tiny, {"model.backbone": backbone, "model.weights": "random", "data.image_size": 96})
        pair = fresh_method(config, CPU).pair  # type: ignore[attr-defined]
        pixels = torch.rand(2, 3, 96, 96)
        expected = [(tap.channels, 96 // tap.stride, 96 // tap.stride) for tap in critical_taps(config)]
        with torch.inference_mode():
            for maps in (
                pair.source_maps(pixels),
                pair.copies(pixels),
                pair.unrolled(pair.rows(pair.source_maps(pixels))),
            ):
                assert [tuple(one.shape) for one in maps] == [(2, *shape) for shape in expected]
            assert bool((torch.cat([one.flatten() for one in pair.copies(pixels)]) < 0).any()) == (
                backbone == "efficientnet_lite0"
            )


def test_the_cloner_beside_a_second_implementation(method: KdadMethod, trainer: Trainer, images: np.ndarray) -> None:
    with torch.inference_mode():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        found = method.pair.copies(pixels)
    for one, other in zip(found, copies(method, images, is_rectified(trainer), batch=False), strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-3, atol=1e-4)


# loss and score


def test_the_loss_of_a_step_by_numpy(trainer: Trainer) -> None:
    """Values over the mean square of the source's maps of all normals, or as they are."""
    fresh = fresh_method(trainer.config, CPU)
    assert isinstance(fresh, KdadMethod)
    held = trainer.method.training.images  # type: ignore[attr-defined]
    fresh.prepare(held)
    section = trainer.config.method.model_dump()
    places = next(fresh.training.batches(0))
    seen = held.take(held.normals[places])
    scale = np.ones(len(fresh.pair.shapes))
    if section["relative"]:
        everything = source_maps(fresh, held.take(held.normals))
        scale = np.array([np.square(one).mean() for one in everything])
        fresh.training.measure(lambda: None)
        np.testing.assert_allclose(fresh.pair.scale, scale, rtol=1e-3)
    by_layer = parts(source_maps(fresh, seen), copies(fresh, seen, is_rectified(trainer), batch=True), scale).mean(
        axis=0
    )
    direction, value = by_layer.sum(axis=0)
    before = {name: weight.detach().clone() for name, weight in fresh.pair.cloner.named_parameters()}
    fresh.pair.cloner.train()
    figures = fresh.training.run(places)
    assert float(figures["loss_direction"]) == pytest.approx(direction, rel=1e-3)
    assert float(figures["loss_value"]) == pytest.approx(value, rel=2e-3)
    assert float(figures["loss"]) == pytest.approx(direction + section["value_weight"] * value, rel=2e-3)
    # Adam's first step is its rate in every weight that has a gradient
    moved = torch.cat([(w.detach() - before[n]).abs().flatten() for n, w in fresh.pair.cloner.named_parameters()])
    assert float(moved.max()) == pytest.approx(section["cloner_lr"], rel=1e-2)
    assert float(moved.median()) == pytest.approx(section["cloner_lr"], rel=0.1)
    if section["relative"]:
        # so both parts begin about equally large
        assert 0.3 < direction / value < 3


def test_scores_by_numpy(method: KdadMethod, trainer: Trainer, images: np.ndarray) -> None:
    """The shallowest layer trains and does not score, unless that is asked for."""
    scale = method.pair.scale.numpy().astype(np.float64)
    own = parts(source_maps(method, images), copies(method, images, is_rectified(trainer), batch=False), scale)
    other = trainer.config.method.model_dump()["score_skip"] == 0
    expected = own.sum(axis=1) @ [1, 2] if other else own[:, 1:].sum(axis=1) @ [1, 0.5]
    np.testing.assert_allclose(method.score(images), expected, rtol=1e-3)


def test_other_ways_to_score(trainer: Trainer, images: np.ndarray) -> None:
    variants = score_variants(trainer.config)
    layers = len(trainer.method.pair.shapes)  # type: ignore[attr-defined]
    assert len(variants) == len({tuple(one.items()) for one in variants}) >= layers * 6
    found = trainer.method.variant_scores(images, variants)
    np.testing.assert_array_equal(found[0], trainer.method.score(images))
    for number in (1, len(variants) // 2, len(variants) - 1):
        changed = trainer.config.override(variants[number])
        np.testing.assert_array_equal(
            found[number], trained_method(changed, CPU, trainer.method.model_state()).score(images)
        )
    assert not np.array_equal(found[1], found[-1])


def test_defects_score_above_normals(learned: Trainer) -> None:
    metrics, _ = learned.selection.evaluate(learned.method.score)
    assert metrics["selection_auroc"] > 0.7


def test_the_same_image_has_the_same_score_whatever_it_is_scored_with(
    trainer: Trainer, method: KdadMethod, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = trainer.method.score(images)
    assert scores.dtype == np.float64 and len(np.unique(scores)) == len(images)
    np.testing.assert_array_equal(scores, [trainer.method.score(image[None])[0] for image in images])
    np.testing.assert_array_equal(scores, trainer.method.score(images[::-1])[::-1])
    # with room for what the source makes of all images, of three, and of none
    for room in (kdad_method.REPEATED_BYTES, 3 * 4 * method.pair.dimension, 0):
        monkeypatch.setattr(kdad_method, "REPEATED_BYTES", room)
        scorer = trained_method(trainer.config, CPU, trainer.method.model_state()).scorer()  # type: ignore[attr-defined]
        for _ in range(2):
            np.testing.assert_array_equal(scores, scorer(images))
    assert trainer.method.score(images[:0]).shape == (0,)


# kept maps


def test_maps_are_made_once_and_equal_fresh_ones() -> None:
    array = np.random.default_rng(0).integers(0, 256, (9, 2, 2, 3), np.uint8)
    looked: list[int] = []

    def look(some: np.ndarray) -> np.ndarray:
        looked.extend(int(image[0, 0, 0]) for image in some)
        return some.reshape(len(some), -1).astype(np.float32) / 7

    normals = np.array([8, 1, 2, 6, 4])
    expected = (array[normals].reshape(5, -1).astype(np.float32) / 7).astype(np.float16)
    kept = KeptMaps(look, TaskImages(array, normals, np.zeros(0, int)), 12, 3 * 12 * 2 + 5, "net")
    orders = [np.array(order) for order in ([0, 4, 0], [4, 3, 2], [1, 0, 2, 1], [0, 1, 2, 3, 4])]
    for order in orders:
        np.testing.assert_array_equal(kept.of(order).numpy(), expected[order])
    # three find room; the fourth and fifth are looked at each time that they are drawn
    times = [looked.count(int(array[row, 0, 0, 0])) for row in normals]
    assert kept.room == kept.held == 3 and times == [1, 1, 1, 2, 3]


def test_maps_that_half_precision_cannot_hold_are_the_sources_fault() -> None:
    def kept(value: float) -> KeptMaps:
        images = TaskImages(np.zeros((3, 2, 2, 3), np.uint8), np.arange(3), np.zeros(0, int))
        return KeptMaps(lambda some: np.full((len(some), 4), value, np.float32), images, 4, 2**20, "net")

    for value in (7e4, -7e4, np.nan):
        maps = kept(value)
        with pytest.raises(NonFiniteError, match=r"^net gives normal images maps .* use other model\.weights"):
            maps.of(np.array([0, 2]))
        assert maps.held == 0
    assert kept(6e4).of(np.array([1])).max() == pytest.approx(6e4, rel=1e-3)


def test_the_first_rows_of_arrays_are_kept_as_long_as_there_is_room() -> None:
    asked: list[int] = []

    def look(images: np.ndarray) -> np.ndarray:
        asked.append(len(images))
        return images.reshape(len(images), -1).astype(np.float32)

    arrays = [np.full((count, 2, 2, 3), count, np.uint8) for count in (40, 7, 3)]
    kept = KeptRows(look, 12, limit=44 * 12 * 4 + 5)
    for _ in range(2):
        for images, rows in zip(arrays, (40, 4, 0), strict=True):
            np.testing.assert_array_equal(kept.of(images), np.full((rows, 12), len(images)))
    # a few at a time, and once
    assert asked == [32, 8, 4]


def test_room_for_maps_changes_no_bit(trainer: Trainer, tiny: TrialConfig) -> None:
    if not trainer.config.method.model_dump()["relative"]:
        pytest.skip("one of them is enough")
    states = []
    for room in (640, 0):
        other = Trainer(kdad(tiny, {"method.cache_mb": room}))
        (*_, last) = other.fit()
        # a configuration of its own, so only its tensors can be compared
        states.append((other.state()[0], last.metrics["kept_images"], last.metrics["loss"]))
    assert states[0][1] > 0 == states[1][1] and states[0][2] == states[1][2]
    assert all(torch.equal(value, states[1][0][name]) for name, value in states[0][0].items())


# training


def batches(method: KdadMethod, epochs: int) -> list[list[list[int]]]:
    return [[places.tolist() for places in method.training.batches(epoch)] for epoch in range(epochs)]


def test_how_long_an_epoch_is(tiny: TrialConfig) -> None:
    array = np.zeros((20, 64, 64, 3), np.uint8)
    lengths = {7: [3, 4], "iterations": [2, 2], "pass": [3, 3]}
    for total, expected in lengths.items():
        made = fresh_method(kdad(tiny, {"method.total_updates": total, "model.weights": "random"}), CPU)
        assert isinstance(made, KdadMethod)
        made.prepare(TaskImages(array, np.arange(14), np.arange(14, 20)))
        found = batches(made, 2)
        assert [len(epoch) for epoch in found] == [made.training.length.of(number) for number in range(2)] == expected
        if total == "pass":
            assert [len(one) for one in found[0]] == [6, 6, 2]
            assert all(sorted(chain(*epoch)) == list(range(14)) for epoch in found) and found[0] != found[1]
        else:
            assert {len(one) for epoch in found for one in epoch} == {6}
        assert made.images_per_epoch == expected[0] * 6


def test_it_goes_on_from_a_checkpoint_bit_by_bit(trainer: Trainer, images: np.ndarray) -> None:
    first = Trainer(trainer.config)
    first.run_epoch()
    tensors, meta = first.state()
    later = Trainer(trainer.config)
    later.load_state(tensors, json.loads(json.dumps(meta)))
    (report,) = later.fit()
    assert report.scores[trainer.task.key] == trainer.method.score(trainer.selection.images).tolist()
    done, _ = trainer.state()
    assert all(torch.equal(value, later.state()[0][name]) for name, value in done.items())


def test_a_checkpoint_fits_what_only_scores_otherwise(learned: Trainer) -> None:
    tensors, meta = learned.state()
    with pytest.raises(CheckpointError, match="config differs"):
        Trainer(learned.config.override({"method.cloner_lr": 0.5})).load_state(tensors, meta)
    Trainer(learned.config.override({"method.score_value": 3.0})).load_state(tensors, meta)


def test_labelled_anomalies_change_nothing_and_the_seed_does(trainer: Trainer, images: np.ndarray) -> None:
    held: TaskImages = trainer.method.training.images  # type: ignore[attr-defined]
    assert len(held.anomalies)

    def prepared(seed: int, anomalies: np.ndarray) -> tuple[KdadMethod, list[list[list[int]]], torch.Tensor]:
        made = fresh_method(trainer.config.override({"seed": seed}), CPU)
        assert isinstance(made, KdadMethod)
        made.prepare(TaskImages(held.array, held.normals, anomalies))
        return made, batches(made, 2), made.model_state()["cloner.stages.0.0.weight"].clone()

    seed = trainer.config.seed
    (_, with_them, begun), (other, without, first), (_, elsewhere, strange) = (
        prepared(seed, held.anomalies),
        prepared(seed, held.anomalies[:0]),
        prepared(seed + 5, held.anomalies[:0]),
    )
    assert with_them == without != elsewhere
    assert torch.equal(begun, first) and not torch.equal(first, strange)
    # what is trained of the same batches and weights is the same, which one of the two is enough to show
    if trainer.config.method.model_dump()["relative"]:
        for epoch in range(2):
            other.run_epoch(epoch, lambda: False)
        np.testing.assert_array_equal(other.score(images), trainer.method.score(images))


def test_the_source_stays_as_it_was(trainer: Trainer, method: KdadMethod) -> None:
    before = fresh_method(trainer.config, CPU).model_state()
    after = method.model_state()
    sources = [name for name in after if name.startswith("source.")]
    assert sources and all(torch.equal(after[name], before[name]) for name in sources)
    assert not torch.equal(after["cloner.stages.0.0.weight"], before["cloner.stages.0.0.weight"])
    assert not method.pair.training


def test_without_anomalies(tiny: TrialConfig) -> None:
    (*_, report) = Trainer(kdad(tiny, {"data.setting": "anomaly-free", "data.selection": "auto"})).fit()
    assert np.isfinite(report.value) and np.isfinite(report.metrics["loss"])


def test_in_half_precision(trainer: Trainer, images: np.ndarray) -> None:
    half = trained_method(trainer.config.override({"runtime.precision": "bf16"}), CPU, trainer.method.model_state())
    scores, own = half.score(images[:3]), trainer.method.score(images[:3])
    np.testing.assert_allclose(scores, own, rtol=0.1)
    assert not np.array_equal(scores, own)


def test_it_stops_when_it_is_told(trainer: Trainer) -> None:
    held = trainer.method.training.images  # type: ignore[attr-defined]
    for count in (0, 4):
        answers = iter([False] * count + [True])
        fresh = fresh_method(trainer.config, CPU)
        fresh.prepare(held)
        with pytest.raises(StoppedError, match="stopped in epoch 1"):
            fresh.run_epoch(0, lambda answers=answers: next(answers))  # type: ignore[misc]


@pytest.mark.parametrize("room", [640, 0])
def test_the_dry_run_counts_what_is_looked_at(room: int, tiny: TrialConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which a look at an image is a second, and nothing else takes time."""
    trainer = Trainer(kdad(tiny, {"method.total_updates": 10, "method.cache_mb": room}))
    method, looks = trainer.method, [0]
    assert isinstance(method, KdadMethod)
    training, dimension = method.training, method.pair.dimension

    def look(images: np.ndarray) -> np.ndarray:
        looks[0] += len(images)
        return np.ones((len(images), dimension), np.float32)

    def afresh() -> None:
        training.kept, looks[0] = KeptMaps(look, training.images, dimension, room * 2**20, "net"), 0

    monkeypatch.setattr(kdad_method, "now", lambda _: float(looks[0]))
    afresh()
    seconds, steps = method.time_step()
    assert steps == 5
    afresh()
    for epoch in range(2):
        method.run_epoch(epoch, lambda: False)
    # a batch in which one permutation of the images ends may hold one twice
    assert seconds * 10 == pytest.approx(looks[0], abs=3) and looks[0] >= len(training.images.normals)


def test_losses_that_are_no_numbers(trainer: Trainer) -> None:
    fresh = fresh_method(trainer.config, CPU)
    assert isinstance(fresh, KdadMethod)
    fresh.prepare(trainer.method.training.images)  # type: ignore[attr-defined]
    with torch.no_grad():
        next(fresh.pair.cloner.parameters()).fill_(np.nan)
    with pytest.raises(NonFiniteError, match=r"loss is nan in epoch 2; a smaller method\.cloner_lr may help"):
        fresh.run_epoch(1, lambda: False)


def test_one_normal_image_is_too_few(trainer: Trainer) -> None:
    held = trainer.method.training.images  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="needs 2 normal training images at least, and 1 are there"):
        fresh_method(trainer.config, CPU).prepare(TaskImages(held.array, held.normals[:1], held.anomalies))


# models


def test_a_model_of_its_tensors_scores_the_same(trainer: Trainer, images: np.ndarray) -> None:
    stored = {name: value.clone() for name, value in trainer.method.model_state().items()}
    model = trained_method(trainer.config, CPU, stored)
    np.testing.assert_array_equal(model.score(images), trainer.method.score(images))
    embedded = model.embed(images)
    assert embedded is not None
    maps = source_maps(trainer.method, images)  # type: ignore[arg-type]
    np.testing.assert_allclose(embedded, np.concatenate([one.mean(axis=(2, 3)) for one in maps], 1), atol=1e-4)


def test_what_is_no_model_of_it_is_refused(trainer: Trainer) -> None:
    stored, some = trainer.method.model_state(), "cloner.stages.1.0.weight"
    for wrong in (
        {},
        {name: value for name, value in stored.items() if name != some},
        stored | {some: stored[some][:, :-1]},
        stored | {some: stored[some].double()},
        stored | {"more": torch.zeros(1)},
    ):
        with pytest.raises(CheckpointError, match="none of method kdad as it is configured") as caught:
            trained_method(trainer.config, CPU, wrong)
        assert "\n" not in str(caught.value)
    tensors, meta = trainer.state()
    of_one = {name: value for name, value in tensors.items() if not name.startswith("optim/0/")}
    fresh = Trainer(trainer.config)
    for strange in (of_one, *(tensors | {name: torch.zeros(2)} for name in ("optim/0/exp_avg", "optim/999/step"))):
        with pytest.raises(CheckpointError, match="does not fit the optimiser"):
            fresh.load_state(strange, meta)


@pytest.mark.slow
def test_onnx_gives_the_same_scores(learned: Trainer, tmp_path: Path) -> None:
    images = np.array(learned.selection.images[:: max(1, len(learned.selection.images) // 7)])
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    shapes = ({0: torch.export.Dim("images")},)
    program = torch.export.export(learned.method.module(), (pixels[:2],), dynamic_shapes=shapes, strict=False)
    made = torch.onnx.export(program, input_names=["pixels"], dynamo=True, external_data=False, verbose=False)
    assert made is not None
    made.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for some in (pixels, pixels[:1]):
        (scores,) = session.run(None, {"pixels": some.numpy()})
        np.testing.assert_allclose(scores, learned.method.score(images)[: len(some)], rtol=1e-4, atol=1e-4)


# heat maps


def test_opened_maps_by_numpy() -> None:
    gradient = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    kernel = np.exp(-np.square(np.arange(-4, 5)) / 2)
    kernel /= kernel.sum()
    for one, found in zip(gradient.numpy(), opened(gradient), strict=True):
        grey = np.pad(np.abs(one).sum(axis=0), 4, mode="symmetric")
        rows = np.stack([np.convolve(row, kernel, "valid") for row in grey])
        smooth = np.stack([np.convolve(column, kernel, "valid") for column in rows.T]).T
        for choose in (np.min, np.max):
            padded = np.pad(smooth, 1, mode="symmetric")
            smooth = choose(np.lib.stride_tricks.sliding_window_view(padded, (3, 3)), axis=(2, 3))
        np.testing.assert_allclose(found, smooth, rtol=1e-4)


def test_a_planted_defect_is_seen_where_it_is(learned: Trainer) -> None:
    normal = learned.selection.images[int(np.flatnonzero(learned.selection.labels == 0)[0])]
    places = [(4, 6), (40, 38), (10, 44)]
    marked = np.stack([normal] * len(places))
    for image, (row, column) in zip(marked, places, strict=True):
        image[row : row + 14, column : column + 14] = (250, 20, 20)
    assert (learned.method.score(marked) > learned.method.score(normal[None])).all()
    maps = heat_maps(learned.method, marked, "gradient")
    assert maps is not None and maps.shape == marked.shape[:3] and maps.dtype == np.float32
    for (row, column), one in zip(places, maps, strict=True):
        inside = np.zeros(one.shape, bool)
        inside[row : row + 14, column : column + 14] = True
        assert one[inside].mean() > 1.2 * one[~inside].mean()
    assert heat_maps(learned.method, marked, "score") is None


# configurations


def test_published_recipes() -> None:
    paper = load_profile("paper").override(method_values("kdad", "paper"))
    section = paper.method.model_dump()
    assert (paper.model.backbone, paper.data.image_size) == ("vgg16", 128)
    assert (paper.budget.epochs, paper.budget.batch_size, section["total_updates"]) == (601, 64, "pass")
    assert (section["value_weight"], section["cloner_lr"], section["normalise"], section["relative"]) == (
        0.5,
        1e-3,
        False,
        False,
    )
    for name, backbone in (("kdad_lite0", "efficientnet_lite0"), ("kdad_resnet18", "resnet18")):
        for profile in ("cpu", "paper"):
            ours = load_profile(profile).override(method_values(name, profile))
            assert ours.model.backbone == backbone and ours.method.name == "kdad"
            assert f"our reading with {backbone} for VGG-16" in ours.entry.describe(ours)
        assert ours.budget.epochs == 601 and ours.data.image_size == 128
    cpu = load_profile("cpu").override(method_values("kdad_lite0", "cpu"))
    assert (cpu.data.image_size, cpu.budget, cpu.method.model_dump()["total_updates"]) == (
        160,
        load_profile("cpu").budget,
        300,
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "the published recipe: small cloner of width 16"),
        ({"method.cache_mb": 1, "method.ends": "relu"}, "the published recipe: "),
        ({"method.total_updates": 700}, "the published recipe but for its length (700 updates): "),
        ({"budget.epochs": 30}, "the published recipe but for its length (30 passes): "),
        (
            {"method.total_updates": "iterations", "budget.epochs": 3, "budget.iterations": 9},
            "the published recipe but for its length (27 updates): ",
        ),
        ({"method.relative": True}, "our reading with another relative: "),
        (
            {"model.weights": "random", "data.image_size": 160, "budget.batch_size": 18, "method.cloner_lr": 0.01},
            "our reading with another cloner_lr, model.weights, data.image_size, budget.batch_size: ",
        ),
    ],
)
def test_what_is_called_the_published_recipe(values: dict[str, object], words: str) -> None:
    config = load_profile("paper").override({**method_values("kdad", "paper"), **values})
    assert config.entry.describe(config).startswith(f"kdad, {words}")


def test_vgg16_without_a_download_says_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_arguments: object, **_options: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    config = load_profile("cpu").override(method_values("kdad", "cpu"))
    with pytest.raises(WeightsError, match=r"ImageNet weights of vgg16 .*--set model\.weights=FILE") as caught:
        fresh_method(config, CPU)
    assert "\n" not in str(caught.value)


def test_vgg16_from_a_file_learns(tiny: TrialConfig, tmp_path: Path) -> None:
    file = tmp_path / "vgg16.pth"
    torch.manual_seed(0)
    torch.save(backbone_entry("vgg16").build().state_dict(), file)
    values = {
        **method_values("kdad", "cpu"),
        "data.image_size": 32,
        "model.weights": str(file),
        "method.total_updates": 12,
    }
    made = fresh_method(tiny.override(values), CPU)
    array = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    made.prepare(TaskImages(array, np.arange(6), np.zeros(0, int)))
    first, second = (made.run_epoch(epoch, lambda: False) for epoch in range(2))
    assert second["loss"] < first["loss"] and first["kept_images"] == 6


def test_its_space(tiny: TrialConfig) -> None:
    base = kdad(tiny)
    space = load_space("kdad", base)
    assert set(space.by_name) == set(base.entry.hyperparameters)
    width = space.by_name["method.cloner_width"]
    assert space.is_active(width, {})
    equal = load_space("kdad", base.override({"method.cloner": "equal"}))
    assert not equal.is_active(equal.by_name["method.cloner_width"], {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method.taps": "stride4,stage9"}, r"method\.taps=stride4,stage9: efficientnet_lite0 has no tap 'stage9'"),
        ({"method.taps": ["deep", "stage7"]}, "name one map of efficientnet_lite0 twice"),
        (
            {"method.taps": "stage4,stage5,deep"},
            r"at different strides of 2, 4, 8 \.\.\., and those of .* at 16, 16, 32",
        ),
        ({"data.image_size": 80}, r"data\.image_size=80: kdad needs a multiple of 32"),
        ({"method.score_skip": 4}, r"method\.score_skip=4: of 4 critical layers one at least must score"),
        ({"method.total_updates": "never"}, r"method\.total_updates"),
        ({"method.cloner_width": 1}, r"method\.cloner_width=1: input should be greater than or equal to 2"),
        ({"method.value_weight": -1.0}, r"method\.value_weight=-1\.0: input should be greater"),
        ({"method.cloner": "large"}, r"method\.cloner='large': input should be 'small' or 'equal'"),
        ({"method.clone": "small"}, r"'method\.clone'; did you mean 'method\.cloner'"),
        ({"data.shuffle_labels": True}, r"data\.shuffle_labels=true: kdad learns from normal images alone"),
        ({"model.freeze": 3}, r"model\.freeze=3: method kdad has no use for it"),
        ({"optim.lr": 0.1}, r"optim\.lr=0\.1: method kdad has no use for it"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tiny: TrialConfig, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        kdad(tiny).override(values)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_from_a_search_to_an_exported_model(image_folder: Path, tmp_path: Path) -> None:
    options = SearchOptions(
        space="kdad",
        name="k",
        profile="smoke",
        data=str(image_folder),
        selection="extra",
        trials=2,
        max_concurrent=1,
        overrides={"method.total_updates": 12},
    )
    document = run_search(options).to_dict()
    assert [trial["state"] for trial in document["trials"]] == ["COMPLETE"] * 2
    model = open_model("models:/k@candidate", document["tracking_uri"], "cpu")
    assert model.config.method.name == "kdad" and model.threshold is not None
    pixels = np.stack([model.prepare(path).pixels for path in sorted(image_folder.rglob("*.png"))[:5]])
    exported = export_model(model, "onnx", tmp_path / "model.onnx", pixels)
    assert exported.parity.holds
    np.testing.assert_allclose(run_exported(exported.file, "onnx", pixels), model.score(pixels), rtol=1e-4, atol=1e-4)


def test_the_room_of_kept_rows_can_be_taken_at_once() -> None:
    """What is held stays, and what is not is looked at when it is asked for."""
    array = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) + np.zeros((1, 2, 2, 3), np.uint8)
    looked: list[int] = []

    def look(images: np.ndarray) -> np.ndarray:
        looked.extend(images[:, 0, 0, 0].tolist())
        return images.reshape(len(images), -1).astype(np.float32)

    kept = KeptMaps(look, TaskImages(array, np.arange(5), np.zeros(0, int)), 12, 4 * 12 * 2, "net")
    kept.of(np.array([1]))
    kept.take_room()
    assert kept.held == 1 and kept.of(np.array([1, 3, 4]))[:, 0].tolist() == [1, 3, 4]
    assert looked == [1, 3, 4]


def test_cells_that_are_copied_well_are_dark() -> None:
    """By hand: the same direction at twice the length, a right angle, the opposite; nothing was copied."""
    maps = torch.tensor([[[[1.0, 1.0, 1.0, 3.0]], [[0.0, 0.0, 0.0, 4.0]]]])
    copies = torch.tensor([[[[2.0, 0.0, -1.0, 0.0]], [[0.0, 5.0, 0.0, 0.0]]]])
    (found,) = Pair.cell_differences([maps], [copies])
    torch.testing.assert_close(found, torch.tensor([[[0.0, 1.0, 1.0, 1.0]]]))
