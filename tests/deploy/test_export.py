"""Exported files: the model's scores and labels again, by onnxruntime and by torch.export, for every kind of head."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sctune.cli.serve import export
from sctune.config import TrialConfig
from sctune.data.decode import Decoding
from sctune.deploy.calibration import prepare_image
from sctune.deploy.conformance.pack import read_pack
from sctune.deploy.export import (
    Kind,
    export_model,
    export_parity,
    exported_scores,
    generated_images,
    parity,
    run_exported,
)
from sctune.deploy.model import Model, ModelParts, load_model_folder
from sctune.deploy.parity import ROUNDING, TOLERANCE, Parity
from sctune.errors import CheckpointError, ConfigError, DataError, TrackingError
from sctune.methods.deviation.detector import build_detector
from sctune.methods.deviation.method import DeviationMethod
from sctune.metrics.threshold import Threshold
from tests.models import noise_png, small_config, write_small_model

HEADS = {
    "diag": {"model__heads": "two_head_patch", "model__patch_place": "diag", "model__patch_count": 2},
    "grid2d": {"model__heads": "two_head_patch", "model__patch_place": "grid2d"},
    "latent": {"model__heads": "two_head_latent"},
    "four": {"model__heads": "four_head"},
    "single": {"model__heads": "single_head"},
}
COMBINATIONS = [
    (head, backbone, scales) for head in HEADS for backbone in ("efficientnet_lite0", "resnet18") for scales in (1, 2)
]
MARGIN = 5.0


def made(config: TrialConfig) -> Model:
    """A model whose scores differ between images: its batch norm has seen some, its references are images of noise."""
    detector = build_detector(config)
    side = config.data.image_size
    if detector.needs_references:
        shape = (config.model.reference_count, side, side, 3)
        detector.set_references(np.random.default_rng(5).integers(0, 256, shape, np.uint8))
    detector.train()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain mean over what it sees
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(3):
            detector(torch.randn(8, 3, side, side, generator=generator))
    return Model(
        DeviationMethod(config, torch.device("cpu"), detector.eval()),
        config,
        ModelParts({"study": "first", "trial": 0}),
    )


def images(config: TrialConfig, count: int = 11) -> np.ndarray:
    data = config.data
    pictures = [noise_png(seed, spot=seed % 2 == 1) for seed in range(count)]
    return np.stack([prepare_image(picture, Decoding.of(data)).pixels for picture in pictures])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model_folder(write_small_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def files(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    folder = tmp_path_factory.mktemp("exported")
    model.score(images(model.config, 2))  # has filled the caches before, as in a running process
    return {kind: export_model(model, kind, folder / f"sub/model.{kind}").file for kind in ("onnx", "torch")}


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_any_batch_gives_the_models_scores(model: Model, files: dict[Kind, Path], kind: Kind) -> None:
    pixels = images(model.config)
    expected = model.score(pixels)
    assert np.ptp(expected) > 100 * TOLERANCE, "equal scores would show nothing"
    for count in (1, 2, 3, 11):
        np.testing.assert_allclose(run_exported(files[kind], kind, pixels[:count]), expected[:count], atol=TOLERANCE)
    assert run_exported(files[kind], kind, pixels[:0]).shape == (0,)


def test_an_onnx_file_says_what_it_is(model: Model, files: dict[Kind, Path]) -> None:
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(files["onnx"], options, providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("images", "tensor(uint8)", [64, 64, 3])
    assert (given.name, given.type, len(given.shape)) == ("scores", "tensor(float)", 1)
    assert isinstance(taken.shape[0], str), "the batch is free"
    pixels = images(model.config, 5)
    (scores,) = session.run(None, {"images": pixels})
    np.testing.assert_allclose(scores, model.score(pixels), atol=TOLERANCE)

    assert model.threshold is not None
    known = session.get_modelmeta().custom_metadata_map
    assert float(known["sctune.threshold"]) == model.threshold.value
    assert known["sctune.licence"] == "CC BY-NC-SA 4.0" and known["sctune.attribution"] == "Images: somebody"
    assert (known["sctune.study"], known["sctune.trial"]) == ("first", "0")
    assert (known["sctune.image_size"], known["sctune.resize"]) == ("64", model.config.data.resize)
    assert "BILINEAR" in known["sctune.resize_kernel"] and known["sctune.resize_antialias"].startswith("true")
    assert {"sctune.resize_rule", "sctune.resize_rounding", "sctune.pixel_range"} <= set(known)
    assert known["sctune.colours"].startswith("RGB")
    content = files["onnx"].read_bytes()
    for place in (Path(torch.__file__).parents[1], Path(__file__).parents[2], files["onnx"].parent):
        assert str(place).encode() not in content, "names a folder of this machine"
    onnx.checker.check_model(onnx.load(files["onnx"]), full_check=True)


def test_the_description_beside_the_file(model: Model, files: dict[Kind, Path]) -> None:
    for kind, file in files.items():
        about = json.loads(file.with_name(f"{file.name}.json").read_text())
        assert (about["file"], about["format"], about["image_size"]) == (file.name, kind, 64)
        assert about["parity"]["images"] == len(generated_images(64)) and about["parity"]["flips"] == 0
        assert about["parity"]["difference"] <= TOLERANCE
        assert about["resize_kernel"].startswith("bilinear") and "antialias" in about["resize_antialias"]
        assert model.threshold is not None and about["threshold"] == model.threshold.value
        assert sorted(path.name for path in file.parent.iterdir()) == sorted(
            name for other in files.values() for name in (other.name, f"{other.name}.json")
        ), "nothing else is left there"


def test_a_torch_file_holds_no_pickle(files: dict[Kind, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(files["torch"]) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            # protocol 2 or later, up to the full stop that ends a pickle; numbers may begin with the same byte
            pickled = content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05" and content[-1:] == b"."
            assert not pickled and not content.startswith(b"PK"), f"{name} is pickled"
            assert b"site-packages" not in content and b"/work" not in content, f"{name} names a folder"

    def refuse(*_: object, **_more: object) -> None:
        raise AssertionError("unpickles")

    for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    extra = {"sctune.json": ""}
    torch.export.load(files["torch"], extra_files=extra)
    assert json.loads(extra["sctune.json"])["study"] == "first"


def test_a_second_combination(tmp_path: Path) -> None:
    """The slow tests have all of them."""
    check_combination("diag", "resnet18", 1, "torch", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("head", "backbone", "scales"), COMBINATIONS)
@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_every_combination(head: str, backbone: str, scales: int, kind: Kind, tmp_path: Path) -> None:
    check_combination(head, backbone, scales, kind, tmp_path)


def check_combination(head: str, backbone: str, scales: int, kind: Kind, folder: Path) -> None:
    config = small_config(model__backbone=backbone, model__n_scales=scales, data__image_size=64 * scales, **HEADS[head])
    model = made(config)
    pixels = images(config, 5)
    expected = model.score(pixels)
    assert np.ptp(expected) > 100 * TOLERANCE, "equal scores would show nothing"
    np.testing.assert_allclose(exported_scores(model, folder, kind, pixels), expected, atol=TOLERANCE)
    np.testing.assert_array_equal(model.score(pixels), expected, err_msg="exporting changed the model")


@pytest.mark.slow
def test_many_signed_sets_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sets of an exported program come in chunks that do not depend on its batch."""
    from sctune.methods.deviation import heads

    monkeypatch.setattr(heads, "CHUNK_ELEMENTS", 7 * 32 * 112 * 9)
    model = made(small_config())
    pixels = images(model.config, 5)
    np.testing.assert_allclose(exported_scores(model, tmp_path, "torch", pixels), model.score(pixels), atol=TOLERANCE)


@pytest.mark.slow
def test_a_file_that_scores_otherwise_is_not_written(model: Model, tmp_path: Path) -> None:
    pixels = images(model.config, 3)

    class Other(Model):
        """Says other scores than its detector's, as a program that was made wrongly would."""

        def score(self, images: object) -> np.ndarray:
            return super().score(images) + np.array([0, 2e-4, 0])  # type: ignore[arg-type]

    with pytest.raises(CheckpointError, match=r"largest difference of a score 0\.0002 over 3 images"):
        export_model(Other(model.method, model.config, model.parts), "torch", tmp_path / "a.pt2", pixels)
    assert list(tmp_path.iterdir()) == []
    found = export_parity(model, tmp_path, "torch", pixels)
    assert found.holds and found.images == 3


def test_flips_and_ties_by_hand(model: Model) -> None:
    decided = Model(model.method, model.config, dataclasses.replace(model.parts, threshold=Threshold(1.0, "given")))
    scores = np.array([0.5, 1.0, 1.0 - 5 * ROUNDING, 1.0 + 5 * ROUNDING, 2.0])
    same = parity(decided, scores, scores)
    assert same == Parity(5, 0.0, 0, 0) and same.holds
    others = scores + np.array([0, 1e-7, 6 * ROUNDING, -6 * ROUNDING, 0])
    found = parity(decided, scores, others)
    # the second lies on the threshold itself, the third and fourth do not
    assert (found.flips, found.ties) == (2, 1) and not found.holds
    assert found.difference == pytest.approx(6 * ROUNDING) and found.difference < TOLERANCE
    assert not parity(decided, scores, scores + np.array([2e-4, 0, 0, 0, 0])).holds
    # of a score above 1 it is the share that counts
    assert parity(decided, scores, scores + np.array([0, 0, 0, 0, 1.9e-4])).difference == pytest.approx(0.95e-4)
    assert not parity(decided, scores, scores + np.array([0, 0, 0, 0, 2.1e-4])).holds
    assert not parity(decided, scores, np.full(5, np.nan)).holds


def test_what_cannot_be_exported_is_refused(model: Model, files: dict[Kind, Path], tmp_path: Path) -> None:
    for values, words in (
        ({"model__patch_evaluation": "random"}, "model.patch_evaluation=random"),
        ({"runtime__precision": "bf16"}, "runtime.precision=bf16"),
    ):
        other = Model(model.method, small_config(**values), model.parts)
        with pytest.raises(ConfigError, match=words) as caught:
            export_model(other, "torch", tmp_path / "x.pt2")
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="exists"):
        export_model(model, "torch", files["torch"])
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write"):
        export_model(model, "torch", tmp_path / "file/model.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_missing_packages_are_named(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sctune.deploy import export

    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ConfigError, match=r'needs onnxscript; run: pip install "sctune\[export\]"'):
        export_model(model, "onnx", tmp_path / "x.onnx")


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    folder = write_small_model(tmp_path / "model")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed in range(4):
        (pictures / f"{seed}.png").write_bytes(noise_png(seed))
    out = tmp_path / "model.pt2"
    words = [str(folder), "--format", "torch", "--json", "--out", str(out), "--images", str(pictures)]
    words += ["--pack", str(tmp_path / "pack")]
    done = subprocess.run(
        [sys.executable, "-m", "sctune", "export", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "SCTUNE_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["parity"]["images"] == 4 and document["file"] == str(out) and out.is_file()
    assert document["pack"] == str(tmp_path / "pack") and read_pack(tmp_path / "pack").cases
    model = load_model_folder(folder)
    pixels = images(model.config)
    np.testing.assert_allclose(run_exported(out, "torch", pixels), model.score(pixels), atol=TOLERANCE)


def test_what_the_command_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCTUNE_HOME", str(tmp_path / "home"))
    folder, out = str(write_small_model(tmp_path / "model")), tmp_path / "model.pt2"
    with pytest.raises(ConfigError, match="give onnx or torch"):
        export(folder, out, kind="tflite")
    with pytest.raises(DataError, match="none"):
        export(folder, out, kind="torch", images=tmp_path / "none")
    with pytest.raises(TrackingError, match="models:/nostudy@candidate"):
        export("nostudy", out)
    assert not out.exists()
