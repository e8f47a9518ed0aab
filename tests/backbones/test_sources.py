"""Weights of the shipped backbones: each its own file, found where it lies, refused where it is of another network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sctune.backbones.registry import SHIPPED, backbone_entry
from sctune.backbones.sources import PackageWeights, TorchvisionWeights
from sctune.backbones.trunk import build_backbone
from sctune.backbones.weights import local_weights, read_state, resolve_weights
from sctune.config import ModelConfig
from sctune.errors import WeightsError

DOWNLOADED = sorted(name for name, entry in SHIPPED.items() if isinstance(entry.weights, TorchvisionWeights))
PACKAGED = sorted(name for name, entry in SHIPPED.items() if isinstance(entry.weights, PackageWeights))


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


def test_every_backbone_has_weights_of_its_own() -> None:
    assert sorted([*DOWNLOADED, *PACKAGED]) == sorted(SHIPPED)
    sources = [repr(entry.weights) for entry in SHIPPED.values()]
    assert len(set(sources)) == len(sources)


@pytest.mark.parametrize("name", DOWNLOADED)
def test_without_a_connection_the_file_and_its_place_are_named(
    name: str, torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the download itself cannot run here; everything up to it is real
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    assert local_weights(name) is None
    with pytest.raises(WeightsError) as caught:
        resolve_weights(name, "imagenet")
    message = str(caught.value)
    place = Path(message.partition(" at ")[2].partition(",")[0])
    assert place.parent == torch_home / "hub" / "checkpoints"
    assert f"/models/{place.name} at " in message and place.name.startswith(name)
    assert "--set model.weights=FILE" in message and "\n" not in message


def unreachable(*_arguments: object, **_options: object) -> None:
    raise OSError("network is unreachable")


@pytest.mark.parametrize("name", ["resnet34", "mobilenet_v2", "convnext_tiny"])
def test_a_file_that_was_put_there_is_taken_whole(name: str, torch_home: Path) -> None:
    place = place_of(name)
    place.parent.mkdir(parents=True)
    net = backbone_entry(name).build()
    torch.save(net.state_dict(), place)
    assert local_weights(name) == resolve_weights(name, "imagenet") == place
    loaded = build_backbone(ModelConfig(backbone=name), place)
    stem = next(value for key, value in loaded.state_dict().items() if key.startswith("blocks.0.0"))
    assert torch.equal(stem, next(iter(net.state_dict().values())))
    own = [value for value in loaded.state_dict().values() if value.dim() == 4]
    theirs = [value for value in net.state_dict().values() if value.dim() == 4]
    assert all(torch.equal(one, other) for one, other in zip(own, theirs, strict=False))


def place_of(name: str) -> Path:
    source = backbone_entry(name).weights
    assert isinstance(source, TorchvisionWeights)
    from torchvision.models import get_weight

    return Path(torch.hub.get_dir()) / "checkpoints" / get_weight(source.name).url.rsplit("/", 1)[-1]


@pytest.mark.parametrize("name", PACKAGED)
def test_packages_bring_real_weights(name: str) -> None:
    path = resolve_weights(name, "imagenet")
    assert path is not None and path == local_weights(name)
    net = build_backbone(ModelConfig(backbone=name), path)
    state = read_state(path)
    assert torch.equal(net.state_dict()["blocks.0.0.weight"], state["_conv_stem.weight"])
    last = len(net.blocks) - 2
    wanted = {key for key in state if key.startswith(f"_blocks.{last}.") and "num_batches" not in key}
    assert wanted
    for key in wanted:
        own = key.replace(f"_blocks.{last}.", f"blocks.{last + 1}.")
        assert torch.equal(net.state_dict()[own], state[key]), key


def test_weights_of_another_network_of_the_family_are_refused(tmp_path: Path) -> None:
    # a ResNet-34 has all the names and shapes of a ResNet-18, and more blocks
    save_file(backbone_entry("resnet34").build().state_dict(), tmp_path / "r34.safetensors")
    with pytest.raises(WeightsError, match=r"do not fit ResNet: \d+ entries missing, left over .* 'layer1\.2"):
        build_backbone(ModelConfig(), tmp_path / "r34.safetensors")
    lite0 = resolve_weights("efficientnet_lite0", "imagenet")
    for other in ("efficientnet_lite1", "efficientnet_lite2"):
        with pytest.raises(WeightsError, match="do not fit EfficientNet"):
            build_backbone(ModelConfig(backbone=other), lite0)


def test_other_heads_in_a_file_do_no_harm(tmp_path: Path) -> None:
    state = backbone_entry("resnet18").build().state_dict()
    del state["fc.weight"], state["fc.bias"]
    save_file(state | {"projector.weight": torch.zeros(3)}, tmp_path / "moco.safetensors")
    loaded = build_backbone(ModelConfig(), tmp_path / "moco.safetensors")
    assert torch.equal(loaded.state_dict()["blocks.4.1.bn2.bias"], state["layer4.1.bn2.bias"])


def test_doctor_says_whose_weights_are_here(torch_home: Path) -> None:
    from sctune.doctor import examine

    rows = {row["what"]: row for row in examine()}
    assert rows["weights of efficientnet_lite0"]["ok"] and not rows["weights of resnet18"]["ok"]
    here, _, away = rows["weights of other backbones"]["detail"].partition("; not yet: ")
    assert "efficientnet_lite1" in here and "resnet34" in away and "resnet18" not in here + away
    place = place_of("resnet34")
    place.parent.mkdir(parents=True)
    place.write_bytes(b"")
    detail = {row["what"]: row for row in examine()}["weights of other backbones"]["detail"]
    assert "resnet34" in detail.partition("; not yet: ")[0]
