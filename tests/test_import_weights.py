"""The command `sctune import-weights`: what it writes, what it refuses, and that it runs nothing from the file."""

import json
import os
import pickle
import resource
from argparse import Namespace
from hashlib import sha256

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import resnet18
from typer.testing import CliRunner

from sctune.cli.weights import import_weights
from sctune.config import TrialConfig
from sctune.errors import ConfigError, DataError, SctuneError, WeightsError
from sctune.methods.deviation.detector import load_detector
from sctune.methods.pixels import normalise

HEADS = {
    "devnet": {"conv.weight": (1, 512, 1, 1), "conv.bias": (1,)},
    "dra": {
        "holistic_head.fc1.weight": (256, 512),
        "holistic_head.fc1.bias": (256,),
        "holistic_head.fc2.weight": (1, 256),
        "holistic_head.fc2.bias": (1,),
        **{f"{head}_head.scoring.weight": (1, 512, 1, 1) for head in ("seen", "pseudo", "composite")},
        **{f"{head}_head.scoring.bias": (1,) for head in ("seen", "pseudo", "composite")},
        "composite_head.conv.0.weight": (512, 512, 3, 3),
        **{
            f"composite_head.conv.{name}": (512,)
            for name in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")
        },
        "composite_head.conv.1.num_batches_tracked": (),
    },
}


def public_state(method):
    torch.manual_seed(4)
    state = {f"feature_extractor.net.{name}": value for name, value in resnet18().state_dict().items()}
    heads = {name: torch.rand(shape) if shape else torch.tensor(600) for name, shape in HEADS[method].items()}
    return state | heads


@pytest.fixture(scope="module")
def devnet_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("public") / "model.pkl"
    torch.save(public_state("devnet"), file)
    yield file
    file.unlink()


@pytest.fixture(scope="module")
def dra_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("public") / "dra.pth"
    torch.save(public_state("dra"), file)
    yield file
    file.unlink()


@pytest.fixture
def normals(tmp_path):
    """Seven pictures of 80 x 60 pixels; the names are not in the order of writing."""
    folder = tmp_path / "normals"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "gcafbed":
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def run(*arguments):
    """Runs the command, as an application of its own; raises what it raises."""
    app = typer.Typer()
    app.command()(import_weights)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, SctuneError):
        assert "\n" not in str(result.exception)
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def refused(error, message, *arguments):
    with pytest.raises(error, match=message):
        run(*arguments)


def loaded(folder):
    config = TrialConfig.load(json.loads((folder / "config.json").read_text()))
    return load_detector(config, folder / "model.safetensors")


def test_folder_holds_a_model_its_configuration_and_where_it_came_from(devnet_file, tmp_path):
    out = tmp_path / "new" / "devnet"
    result = run(devnet_file, "--out", out, "--image-size", 64, "--set", "model.n_scales=1")
    assert "devnet: 122 tensors taken over, 2 not needed" in result.stdout and str(out) in result.stdout
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "import.json", "model.safetensors"]
    assert [path.name for path in out.parent.iterdir()] == ["devnet"]
    told = json.loads((out / "import.json").read_text())
    assert (told["format_version"], told["method"], told["source"]) == (1, "devnet", "model.pkl")
    assert told["sha256"] == sha256(devnet_file.read_bytes()).hexdigest()
    assert told["mapped"]["conv.weight"] == "anomaly.scoring.weight"
    assert told["ignored"] == ["feature_extractor.net.fc.weight", "feature_extractor.net.fc.bias"]
    detector = loaded(out)
    assert (detector.config.data.image_size, detector.config.model.n_scales) == (64, 1)

    state = torch.load(devnet_file, weights_only=True)
    trunk = resnet18()
    trunk.load_state_dict({name[22:]: value for name, value in state.items() if name.startswith("feature")})
    trunk.avgpool, trunk.fc = torch.nn.Identity(), torch.nn.Identity()
    images = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    pixels = normalise(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    with torch.inference_mode():
        maps = trunk.eval()(pixels).unflatten(1, (512, 4))
        cells = torch.einsum("nca,c->na", maps, state["conv.weight"].flatten()) + state["conv.bias"]
    # a tenth of four cells is less than one: the highest alone counts
    found, expected = torch.from_numpy(detector.score_images(images)), cells.abs().amax(1).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)  # single precision, and folded blocks


def test_default_folder_lies_beside_the_file_and_is_never_overwritten(devnet_file, tmp_path):
    file = tmp_path / "weights.v2.pkl"
    file.symlink_to(devnet_file)
    document = json.loads(run(file, "--json").stdout)
    assert document["folder"] == str(tmp_path / "weights.v2")
    assert loaded(tmp_path / "weights.v2").config.data.image_size == 448
    before = (tmp_path / "weights.v2" / "import.json").stat().st_mtime_ns
    refused(ConfigError, r"weights.v2 exists; give a new folder with --out", file)
    assert (tmp_path / "weights.v2" / "import.json").stat().st_mtime_ns == before


def test_safetensors_files_are_read_too(devnet_file, tmp_path):
    save_file(torch.load(devnet_file, weights_only=True), tmp_path / "weights.safetensors")
    run(tmp_path / "weights.safetensors", "--image-size", 64)
    run(devnet_file, "--image-size", 64, "--out", tmp_path / "other")
    written = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("weights", "other")]
    assert written[0] == written[1]


def test_dra_takes_the_first_references_by_name(dra_file, normals, tmp_path):
    run(dra_file, "--references", normals, "--image-size", 64, "--out", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "import.json").read_text())
    assert told["references"] == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    detector = loaded(tmp_path / "out")
    small = Image.open(normals / "b.png").resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(detector.references[1].numpy(), np.asarray(small))
    assert np.isfinite(detector.score_images(detector.references.numpy())).all()


def test_dra_without_enough_references_is_refused(dra_file, normals, tmp_path):
    out = ("--out", tmp_path / "out")
    refused(ConfigError, "comparing with 5 normal images, .* with --references", dra_file, *out)
    (normals / "a.png").unlink()
    (normals / "b.png").unlink()
    (normals / "c.png").unlink()
    refused(DataError, "4 images, and 5 are needed", dra_file, "--references", normals, *out)
    refused(DataError, "there is no folder", dra_file, "--references", tmp_path / "none", *out)
    (normals / "d.png").write_bytes(b"no picture")
    spoilt = ("--references", normals, "--set", "model.reference_count=4")
    refused(DataError, "d.png", dra_file, *spoilt, *out)
    assert [path.name for path in tmp_path.iterdir() if path.name != "sctune-home"] == ["normals"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--references", "{normals}"), "the file is of devnet, which compares with none"),
        (("--image-size", "64", "--set", "data.image_size=96"), "say the same; give one of them"),
        (("--image-size", "8"), "data.image_size=8"),
        (("--set", "model.heads=four_head"), "model.heads=four_head: .* has single_head"),
        (("--set", "model.patchcount=2"), "unknown configuration key"),
    ],
)
def test_options_that_do_not_fit_are_refused(devnet_file, normals, tmp_path, arguments, message):
    arguments = [argument.format(normals=normals) for argument in arguments]
    refused(ConfigError, message, devnet_file, *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Bomb:
    """Unpickled by Python, it makes a folder."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def write_zip(content, file):
    torch.save(content, file)


def write_old_format(content, file):
    torch.save(content, file, _use_new_zipfile_serialization=False)


def write_pickle(content, file):
    file.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [write_zip, write_old_format, write_pickle])
def test_pickled_code_never_runs(tmp_path, write):
    marker, file = tmp_path / "marker", tmp_path / "bomb.pkl"
    write({"conv.bias": torch.zeros(1), "conv.weight": Bomb(marker)}, file)
    refused(WeightsError, r"bomb.pkl.*torch.save\(model.state_dict\(\), 'weights.pth'\)", file)
    assert not marker.exists() and not (tmp_path / "bomb").exists()
    # the file is what it claims to be
    if write is write_pickle:
        pickle.loads(file.read_bytes())
    else:
        torch.load(file, weights_only=False)
    assert marker.exists()


def test_other_objects_beside_the_tensors_are_named(tmp_path):
    torch.save({"state_dict": {"conv.bias": torch.zeros(1)}, "args": Namespace(epochs=30)}, tmp_path / "all.pth")
    refused(WeightsError, r"more than tensors \(argparse.Namespace\)", tmp_path / "all.pth")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "model.pth")
    refused(WeightsError, r"more than tensors \(torch.nn.modules.linear.Linear\)", tmp_path / "model.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04", b"\x80\x04N.", bytes(64)], ids=repr)
def test_files_of_another_kind_are_refused(tmp_path, recwarn, suffix, content):
    file = tmp_path / f"file{suffix}"
    file.write_bytes(content)
    refused(WeightsError, "cannot read weights from .*: neither a safetensors file nor", file)
    assert not recwarn.list


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.zeros(1)], torch.zeros(1)], ids=str)
def test_files_without_names_and_tensors_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "file.pth")
    refused(WeightsError, "does not hold a state dict", tmp_path / "file.pth")


def test_damaged_file_is_refused(devnet_file, tmp_path):
    whole = devnet_file.read_bytes()
    (tmp_path / "cut.pkl").write_bytes(whole[: len(whole) // 2])
    refused(WeightsError, "cannot read weights from .*cut.pkl", tmp_path / "cut.pkl")


def test_failed_write_leaves_nothing(devnet_file, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # files of at most 1 MiB: the weights do not fit, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        refused(ConfigError, "cannot write .*out: .*; give another folder", devnet_file, "--out", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir() if path.name != "sctune-home"] == []


def test_no_folder_can_be_made_under_a_file(devnet_file, tmp_path):
    (tmp_path / "file").touch()
    refused(ConfigError, "cannot write .*: Not a directory", devnet_file, "--out", tmp_path / "file" / "out")


def test_missing_file_is_a_usage_error(tmp_path):
    assert run(tmp_path / "none.pkl").exit_code == 2
