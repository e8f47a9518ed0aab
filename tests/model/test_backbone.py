"""Backbones: sizes known beforehand, freezing, and weights that are never silently random."""

import pytest
import torch
from safetensors.torch import save_file

from sctune.backbones.registry import feature_side
from sctune.backbones.trunk import build_backbone
from sctune.backbones.weights import local_weights, read_state, resolve_weights
from sctune.config import ModelConfig, load_profile
from sctune.errors import WeightsError
from sctune.methods.deviation.detector import build_detector


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0"])
@pytest.mark.parametrize("tap", ["deep", "middle"])
def test_feature_side_is_what_the_network_gives(backbone, tap):
    net = build_backbone(ModelConfig(backbone=backbone, tap=tap), None).eval()
    for size in (64, 75, 97, 113, 160, 192, 193, 224):
        with torch.inference_mode():
            shape = net(torch.rand(1, 3, size, size)).shape
        assert tuple(shape[1:]) == (net.channels, *[feature_side(size, backbone, (tap,))] * 2), size


def test_frozen_blocks_keep_weights_and_statistics():
    net = build_backbone(ModelConfig(backbone="efficientnet_lite0", freeze=3), None).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    loss = net(torch.rand(2, 3, 64, 64)).square().mean()
    loss.backward()
    frozen = [name for name in before if int(name.split(".")[1]) < 3]
    assert frozen and all(torch.equal(before[name], net.state_dict()[name]) for name in frozen)
    assert any(not torch.equal(value, net.state_dict()[name]) for name, value in before.items() if "running" in name)
    grads = {int(name.split(".")[1]): weight.grad for name, weight in net.named_parameters()}
    assert all((grad is None) == (block < 3) for block, grad in grads.items())


def test_lite0_weights_come_from_the_installed_package():
    path = resolve_weights("efficientnet_lite0", "imagenet")
    net = build_backbone(ModelConfig(backbone="efficientnet_lite0"), path)
    assert torch.equal(net.blocks[0][0].weight, read_state(path)["_conv_stem.weight"])


def test_no_other_backbones_weights_are_taken_for_an_unknown_one():
    for ask in (local_weights, lambda name: resolve_weights(name, "imagenet")):
        with pytest.raises(WeightsError, match="unknown backbone 'resnet19'; did you mean 'resnet18'"):
            ask("resnet19")
    unknown = ModelConfig().model_copy(update={"backbone": "resnet19"})
    with pytest.raises(WeightsError, match="unknown backbone 'resnet19'; did you mean 'resnet18'"):
        build_backbone(unknown, None)


def test_resnet18_without_a_download_says_the_way_out(monkeypatch, tmp_path):
    # the download itself cannot run here; everything up to it is real
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", _unreachable)
    with pytest.raises(WeightsError, match=r"model\.weights=FILE") as caught:
        resolve_weights("resnet18", "imagenet")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def _unreachable(*_args, **_options):
    raise OSError("network is unreachable")


def test_resnet18_from_a_file(tmp_path):
    source = build_backbone(ModelConfig(), None)
    names = ["conv1", "bn1"]
    state = {
        f"{names[int(n[7:].split('.')[1])]}.{n.split('.')[-1]}": v
        for n, v in source.state_dict().items()
        if n[7] == "0"
    }
    for name, value in source.state_dict().items():
        _, block, rest = name.split(".", 2)
        if block != "0":
            state[f"layer{block}.{rest}"] = value
    state = {name.replace("blocks.", ""): value.contiguous() for name, value in state.items()}
    save_file(state, tmp_path / "resnet.safetensors")
    config = load_profile("paper").override(
        {"model.weights": str(tmp_path / "resnet.safetensors"), "data.image_size": 448}
    )
    loaded = build_detector(config).backbone.state_dict()
    assert all(
        torch.equal(value, loaded[name]) for name, value in source.state_dict().items() if "num_batches" not in name
    )


def test_bad_weights_are_named(tmp_path):
    with pytest.raises(WeightsError, match="is no file"):
        resolve_weights("resnet18", str(tmp_path / "none.pth"))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a tensor file")
    with pytest.raises(WeightsError, match="cannot read weights"):
        read_state(broken)
    save_file({"conv1.weight": torch.zeros(1)}, broken)
    with pytest.raises(WeightsError, match="do not fit"):
        build_backbone(ModelConfig(), broken)


def test_pickled_code_is_never_run(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"weight": _Evil(str(tmp_path / "ran"))}, path)
    with pytest.raises(WeightsError):
        read_state(path)
    assert not (tmp_path / "ran").exists()


class _Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


def test_heads_follow_the_seed():
    config = load_profile("smoke").override({"model.weights": "random"})
    one, same = build_detector(config), build_detector(config)
    other = build_detector(config.override({"seed": 1}))
    assert torch.equal(one.normal.fc1.weight, same.normal.fc1.weight)
    assert not torch.equal(one.normal.fc1.weight, other.normal.fc1.weight)
