"""Both references through the protocol of methods: what every score, state, picture and export of theirs must hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sctune.config import TrialConfig, method_entries, method_entry
from sctune.deploy.export import export_model, run_exported
from sctune.deploy.locate import open_model
from sctune.errors import CheckpointError, ConfigError, DataError, StoppedError
from sctune.methods.base import TaskImages
from sctune.methods.registry import fresh_method, trained_method
from sctune.search.plan.options import SearchOptions
from sctune.search.run.driver import run_search
from sctune.search.space.definition import load_space
from sctune.train.heatmap import heat_maps
from sctune.train.trainer import Trainer
from tests.builders import make_space
from tests.methods.untrained_fits import CELLS, fitted, reference

NAMES = ("gaussian", "patch_bank")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=(*NAMES, CELLS))
def trainer(request: pytest.FixtureRequest, tiny: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    config = reference(tiny, request.param, model__weights="imagenet")
    return fitted(config, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def images(trainer: Trainer) -> np.ndarray:
    """Some of both classes."""
    return np.array(trainer.selection.images[:: max(1, len(trainer.selection.images) // 7)])


def planted(image: np.ndarray, row: int, column: int) -> np.ndarray:
    changed = image.copy()
    changed[row : row + 14, column : column + 14] = (250, 20, 20)
    return changed


def test_searches_know_them(tiny: TrialConfig) -> None:
    assert [entry.name for entry in method_entries() if entry.reference] == list(NAMES)
    for name in NAMES:
        assert not method_entry(name).trains and tiny.override({"method.name": name}).epochs == 1
        searched = load_space(name, tiny).by_name
        assert set(searched) == set(method_entry(name).hyperparameters)
        # nothing pushes where no anomaly is labelled
        unlabelled = tiny.override({"data.setting": "anomaly-free", "data.selection": "auto"})
        space = load_space(name, unlabelled)
        assert not space.is_active(space.by_name["method.push"], {})
        assert load_space(name, tiny).is_active(space.by_name["method.push"], {})


def test_a_space_draws_only_what_the_chosen_one_has(tiny: TrialConfig, tmp_path: Path) -> None:
    parameters = {
        "method.components": {"values": [1, 2, 3]},
        "model.top_k": {"values": [0.1, 0.2]},
        "method.push": {"values": ["auto", 0.5]},
        "method.name": {"values": ["deviation", *NAMES]},
    }
    points = list(make_space(tmp_path, tiny, parameters=parameters).points())
    drawn = {name: [set(point) - {"method.name"} for point in points if point["method.name"] == name] for name in NAMES}
    assert drawn["gaussian"] == [{"method.components", "method.push"}] * 6
    assert drawn["patch_bank"] == [{"method.push"}] * 2
    assert len(points) == 6 + 2 + 2


def test_a_share_of_cells_is_drawn_only_where_cells_have_a_distance(tiny: TrialConfig, tmp_path: Path) -> None:
    parameters = {
        "method.name": {"values": list(NAMES)},
        "method.features": {"values": ["pooled", "cells"]},
        "method.cell_share": {"values": [0.05, 0.1]},
        "method.top_k": {"values": [0.2, 0.3]},
    }
    points = list(make_space(tmp_path, tiny, parameters=parameters).points())
    cells = {"method.name": "gaussian", "method.features": "cells"}
    expected = [
        {"method.name": "gaussian", "method.features": "pooled"},
        *({**cells, "method.cell_share": share} for share in (0.05, 0.1)),
        *({"method.name": "patch_bank", "method.top_k": share} for share in (0.2, 0.3)),
    ]
    assert len(points) == len(expected) and all(point in points for point in expected)


def test_defects_score_above_normals(trainer: Trainer) -> None:
    metrics, _ = trainer.selection.evaluate(trainer.method.score)
    assert metrics["selection_auroc"] > 0.9


def test_the_same_image_has_the_same_score_whatever_it_is_scored_with(trainer: Trainer, images: np.ndarray) -> None:
    scores = trainer.method.score(images)
    assert scores.dtype == np.float64 and len(np.unique(scores)) == len(images)
    alone = [trainer.method.score(image[None])[0] for image in images]
    backwards = trainer.method.score(images[::-1])[::-1]
    many = trainer.method.score(np.concatenate([images[3:], np.zeros_like(images[:30]), images[:3]]))
    np.testing.assert_array_equal(scores, alone)
    np.testing.assert_array_equal(scores, backwards)
    np.testing.assert_array_equal(scores, np.concatenate([many[-3:], many[: len(images) - 3]]))
    assert trainer.method.score(images[:0]).shape == (0,)


def test_a_model_of_its_tensors_scores_the_same(trainer: Trainer, images: np.ndarray) -> None:
    stored = {name: value.clone() for name, value in trainer.method.model_state().items()}
    model = trained_method(trainer.config, CPU, stored)
    np.testing.assert_array_equal(model.score(images), trainer.method.score(images))
    np.testing.assert_array_equal(model.embed(images), trainer.method.embed(images))
    with torch.inference_mode():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        np.testing.assert_allclose(model.module()(pixels).numpy(), model.score(images), rtol=1e-5, atol=1e-5)


def test_what_is_no_model_of_it_is_refused(trainer: Trainer) -> None:
    stored = trainer.method.model_state()
    some = next(name for name in stored if name.startswith("fit.") and stored[name].ndim == 2)
    for wrong in (
        {},
        {name: value for name, value in stored.items() if name != some},
        stored | {some: stored[some][:, :-1]},
        {name: value for name, value in stored.items() if not name.startswith("network.")},
        stored | {"fit.more": torch.zeros(1)},
    ):
        with pytest.raises(CheckpointError, match=f"none of method {trainer.config.method.name}") as caught:
            trained_method(trainer.config, CPU, wrong)
        assert "\n" not in str(caught.value)


def test_it_goes_on_from_a_checkpoint_bit_by_bit(trainer: Trainer, images: np.ndarray) -> None:
    first = Trainer(trainer.config)
    tensors, meta = first.state()
    later = Trainer(trainer.config)
    later.load_state(tensors, json.loads(json.dumps(meta)))
    (report,) = later.fit()
    assert report.scores[trainer.task.key] == trainer.method.score(trainer.selection.images).tolist()
    np.testing.assert_array_equal(later.method.score(images), trainer.method.score(images))
    done, meta = trainer.state()
    ended = Trainer(trainer.config)
    ended.load_state(done, json.loads(json.dumps(meta)))
    assert list(ended.fit()) == []
    np.testing.assert_array_equal(ended.method.score(images), trainer.method.score(images))
    assert all(torch.equal(value, ended.state()[0][name]) for name, value in done.items())


def test_the_order_of_the_files_does_not_matter(trainer: Trainer, images: np.ndarray) -> None:
    held: TaskImages = trainer.method._images  # type: ignore[attr-defined]
    order = np.random.default_rng(1).permutation(len(held.array))
    place = np.argsort(order)
    other = fresh_method(trainer.config, CPU)
    other.prepare(TaskImages(held.array[order], place[held.normals][::-1], place[held.anomalies][::-1]))
    other.run_epoch(0, lambda: False)
    np.testing.assert_array_equal(other.score(images), trainer.method.score(images))


def test_another_seed_is_another_fit(trainer: Trainer, images: np.ndarray) -> None:
    held = trainer.method._images  # type: ignore[attr-defined]
    for values, same in (({}, True), ({"seed": 5}, False), ({"method.max_normals": 12}, False)):
        other = fresh_method(trainer.config.override(values), CPU)
        other.prepare(held)
        figures = other.run_epoch(0, lambda: False)
        assert figures["normals"] == (12 if "method.max_normals" in values else len(held.normals))
        assert np.array_equal(other.score(images), trainer.method.score(images)) == same


def test_a_planted_defect_is_seen_where_it_is(trainer: Trainer) -> None:
    normal = trainer.selection.images[int(np.flatnonzero(trainer.selection.labels == 0)[0])]
    places = [(4, 6), (40, 38), (10, 44)]
    marked = np.stack([planted(normal, *place) for place in places])
    scores = trainer.method.score(np.concatenate([normal[None], marked]))
    assert (scores[1:] > scores[0] + 5).all()
    maps = heat_maps(trainer.method, marked, "score")
    assert maps is not None and maps.shape == marked.shape[:3] and maps.dtype == np.float32
    for (row, column), one in zip(places, maps, strict=True):
        inside = np.zeros(one.shape, bool)
        inside[row : row + 14, column : column + 14] = True
        assert one[inside].mean() > 1.2 * one[~inside].mean()
        y, x = np.unravel_index(one.argmax(), one.shape)
        # a cell at stride 16 reaches beyond the defect, and with its neighbours by one of stride 8 more
        reach = 16 if trainer.config.method.model_dump().get("features") == "cells" else 8
        assert row - reach <= y < row + 14 + reach and column - reach <= x < column + 14 + reach
    gradients = heat_maps(trainer.method, marked, "gradient")
    assert gradients is not None and np.isfinite(gradients).all() and (gradients.max(axis=(1, 2)) > 0).all()


def test_it_stops_when_it_is_told(trainer: Trainer) -> None:
    held = trainer.method._images  # type: ignore[attr-defined]
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > count

    for count in (0, 1, 4):
        asked, method = 0, fresh_method(trainer.config, CPU)
        method.prepare(held)
        with pytest.raises(StoppedError, match="stopped in epoch 1"):
            method.run_epoch(0, should_stop)
        assert asked == count + 1
        with pytest.raises(ValueError, match="seen no images yet"):
            method.score(held.array[:1])


def test_without_anomalies_the_distance_is_all(tiny: TrialConfig, images: np.ndarray) -> None:
    for name in NAMES:
        config = reference(
            tiny, name, data__setting="anomaly-free", data__selection="auto", method__push=1.0, method__logistic=2.0
        )
        (report,) = Trainer(config).fit()
        assert report.metrics["push_weight"] == report.metrics["logistic_weight"] == 0


@pytest.mark.parametrize("values", [{"runtime.precision": "bf16"}, {"runtime.channels_last": False}])
def test_other_arithmetic_scores_alike_and_is_kept_apart(trainer: Trainer, values: dict[str, object]) -> None:
    other = Trainer(trainer.config.override(values))
    (report,) = other.fit()
    scores, images = report.scores[trainer.task.key], trainer.selection.images
    assert scores == other.method.score(images).tolist() and report.value > 0.9
    own = trainer.method.score(images)
    # bfloat16 has three digits
    assert np.corrcoef(scores, own)[0, 1] > 0.99
    if "runtime.precision" in values:
        assert scores != own.tolist()


def test_too_few_normals_are_one_line(trainer: Trainer) -> None:
    held = trainer.method._images  # type: ignore[attr-defined]
    method = fresh_method(trainer.config, CPU)
    with pytest.raises(DataError, match="needs 10 normal training images at least, and 9 are there") as caught:
        method.prepare(TaskImages(held.array, held.normals[:9], held.anomalies))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("gaussian", {"method.taps": "stride8,stage9"}, r"method\.taps=stride8,stage9: efficientnet_lite0 has no tap"),
        ("gaussian", {"method.taps": ["deep", "stage7"]}, "name one map of efficientnet_lite0 twice; name each once"),
        ("gaussian", {"method.taps": 3}, r"method\.taps=3: input should be a valid string"),
        ("gaussian", {"method.components": 0}, r"method\.components=0: input should be greater than or equal to 1"),
        ("gaussian", {"method.statistics": "max"}, r"method\.statistics='max': input should be 'mean' or 'mean_sd'"),
        ("gaussian", {"method.push": 6.0}, r"method\.push"),
        ("gaussian", {"method.max_normals": 9}, r"method\.max_normals=9: input should be greater"),
        ("gaussian", {"method.bank_size": 9}, r"'method\.bank_size' of method gaussian"),
        ("gaussian", {"model.freeze": 3}, r"model\.freeze=3: method gaussian has no use for it"),
        ("gaussian", {"data.shuffle_labels": True}, r"data\.shuffle_labels=true: gaussian draws no batches"),
        ("gaussian", {"model.tap": "middle"}, r"model\.tap='middle': method gaussian has no use for it"),
        ("patch_bank", {"method.neighbourhood": 2}, r"method\.neighbourhood=2: input should be 1, 3 or 5"),
        ("patch_bank", {"method.top_k": 0.0}, r"method\.top_k=0\.0: input should be greater than 0"),
        ("patch_bank", {"method.bank_size": 901}, r"method\.bank_size=901: it is chosen from method\.candidates=900"),
        ("patch_bank", {"method.taps": "stage4,strid8"}, "no tap 'strid8'; did you mean 'stride8'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    tiny: TrialConfig, name: str, values: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        reference(tiny, name).override(values)
    assert "\n" not in str(caught.value)


def test_more_components_than_a_fold_has_images(trainer: Trainer) -> None:
    held, config = trainer.method._images, trainer.config.override({"method.name": "gaussian"})  # type: ignore[attr-defined]
    method = fresh_method(config.override({"method.components": 16, "method.features": "pooled"}), CPU)
    for count in (15, 20):
        with pytest.raises(DataError, match=f"{count} normal images are too few for 16 components.*use fewer, or add"):
            method.prepare(TaskImages(held.array, held.normals[:count], held.anomalies))
    method.prepare(TaskImages(held.array, held.normals[:22], held.anomalies))
    method.run_epoch(0, lambda: False)


# cells have the trunk and the distance of pooled features, whose module is compared without ONNX above
@pytest.mark.parametrize(
    "trainer", [pytest.param("gaussian", marks=pytest.mark.slow), "patch_bank", CELLS], indirect=True
)
def test_onnx_gives_the_same_scores(trainer: Trainer, images: np.ndarray, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    shapes = ({0: torch.export.Dim("images")},)
    program = torch.export.export(trainer.method.module(), (pixels[:2],), dynamic_shapes=shapes, strict=False)
    made = torch.onnx.export(program, input_names=["pixels"], dynamo=True, external_data=False, verbose=False)
    assert made is not None
    made.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for some in (pixels, pixels[:1]):
        (scores,) = session.run(None, {"pixels": some.numpy()})
        np.testing.assert_allclose(scores, trainer.method.score(images)[: len(some)], rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gives_the_same_scores_but_for_rounding(trainer: Trainer, images: np.ndarray) -> None:
    device = torch.device("cuda")
    model = trained_method(trainer.config, device, trainer.method.model_state())
    np.testing.assert_allclose(model.score(images), trainer.method.score(images), rtol=1e-3, atol=1e-3)
    method = fresh_method(trainer.config, device)
    method.prepare(trainer.method._images)  # type: ignore[attr-defined]
    method.run_epoch(0, lambda: False)
    np.testing.assert_allclose(method.score(images), trainer.method.score(images), rtol=0.02, atol=0.1)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", NAMES)
def test_from_a_search_to_an_exported_model(name: str, image_folder: Path, tmp_path: Path) -> None:
    options = SearchOptions(
        space=name,
        name="r",
        profile="smoke",
        data=str(image_folder),
        selection="extra",
        trials=2,
        max_concurrent=1,
    )
    document = run_search(options).to_dict()
    assert [trial["state"] for trial in document["trials"]] == ["COMPLETE"] * 2
    model = open_model("models:/r@candidate", document["tracking_uri"], "cpu")
    assert model.config.method.name == name and model.threshold is not None
    pixels = np.stack([model.prepare(path).pixels for path in sorted(image_folder.rglob("*.png"))[:5]])
    exported = export_model(model, "onnx", tmp_path / "model.onnx", pixels)
    assert exported.parity.holds
    np.testing.assert_allclose(run_exported(exported.file, "onnx", pixels), model.score(pixels), rtol=1e-4, atol=1e-4)
