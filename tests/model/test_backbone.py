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


def train_once(**values):
    """State of a backbone before and after a step of one batch; and the backbone."""
    net = build_backbone(ModelConfig(**{"backbone": "efficientnet_lite0", "freeze": 3, **values}), None).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    net(images).square().mean().backward()
    torch.optim.SGD([weight for weight in net.parameters() if weight.requires_grad], lr=1.0).step()
    return net, before, {name: value.clone() for name, value in net.state_dict().items()}


def test_batch_norm_in_eval_mode_keeps_statistics_and_trains_scale_and_shift():
    net, before, after = train_once(batch_norm="eval")
    kept = [name for name in before if "running" in name or "tracked" in name]
    assert kept and all(torch.equal(before[name], after[name]) for name in kept)
    norms = {name: module for name, module in net.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    trained = [name for name in norms if int(name.split(".")[1]) >= 3]
    assert trained and all(not torch.equal(before[f"{n}.bias"], after[f"{n}.bias"]) for n in trained)
    assert all(not norm.training for norm in norms.values()) and net.training
    # an image's features do not depend on what stands beside it
    images = torch.rand(3, 3, 64, 64)
    assert torch.allclose(net(images)[:1], net(images[:1]), atol=1e-5)
    plain = build_backbone(ModelConfig(backbone="efficientnet_lite0", freeze=3), None).train()
    assert not torch.allclose(plain(images)[:1], plain(images[:1]), atol=1e-5)


def test_momentum_of_batch_norm_is_the_share_of_a_batch():
    moved = {}
    for momentum in (None, 0.1, 1.0):
        torch.manual_seed(0)
        net, before, after = train_once(batch_norm_momentum=momentum)
        norms = {name: module for name, module in net.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
        frozen = [name for name in norms if int(name.split(".")[1]) < 3]
        assert all(torch.equal(before[f"{n}.running_mean"], after[f"{n}.running_mean"]) for n in frozen)
        # in training batch norm looks at the batch alone, so all three see the same
        name = [name for name in norms if name not in frozen][-1]
        moved[momentum] = after[f"{name}.running_mean"] - before[f"{name}.running_mean"]
    own = norms[frozen[0]].momentum
    assert own == pytest.approx(0.01)
    for momentum, share in ((None, own), (0.1, 0.1)):
        assert torch.allclose(moved[momentum], share * moved[1.0], rtol=1e-4, atol=1e-7)


def test_a_backbone_without_batch_norm_is_what_it_is():
    states = []
    for values in ({}, {"batch_norm": "eval", "batch_norm_momentum": None}, {"batch_norm_momentum": 0.5}):
        torch.manual_seed(0)
        net = build_backbone(ModelConfig(backbone="convnext_tiny", **values), None).train()
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())
        states.append(net(torch.ones(1, 3, 64, 64)))
    assert all(torch.equal(states[0], other) for other in states)


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
