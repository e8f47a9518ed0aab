"""`timm/NAME`: what timm's networks give is measured, their own colours are kept, their weights are taken whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sctune.backbones.registry import backbone_entry, feature_side
from sctune.backbones.trunk import build_backbone
from sctune.backbones.weights import local_weights, resolve_weights
from sctune.config import ModelConfig, TrialConfig, load_profile
from sctune.errors import ConfigError, WeightsError

timm = pytest.importorskip("timm", reason="timm is not installed; pip install timm, or the extra dev")

DINO = "timm/vit_small_patch14_dinov2"
NETWORKS = [
    "timm/resnet18",
    "timm/efficientnet_lite0",
    "timm/vit_tiny_patch16_224",
    "timm/swin_tiny_patch4_window7_224",
]


@pytest.mark.parametrize("name", [*NETWORKS, DINO])
def test_taps_are_as_declared(name: str) -> None:
    size = 448 if name == DINO else 224
    for taps in (("deep",), ("middle",), ("middle", "deep")):
        with torch.device("meta"):
            net = build_backbone(ModelConfig(backbone=name, taps=",".join(taps)), None).eval()
        shape = net(torch.empty(1, 3, size, size, device="meta")).shape
        side = feature_side(size, name, taps)
        assert tuple(shape) == (1, net.channels, side, side)
        assert net.channels == sum(backbone_entry(name).tap(tap).channels for tap in taps)


@pytest.mark.parametrize("size", [65, 97, 113])
def test_odd_sizes_are_measured(size: int) -> None:
    for name in NETWORKS[:2]:
        with torch.device("meta"):
            net = build_backbone(ModelConfig(backbone=name, tap="middle"), None).eval()
        assert net(torch.empty(1, 3, size, size, device="meta")).shape[-1] == feature_side(size, name, ("middle",))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_weights_and_colours_are_timms(name: str, tmp_path: Path) -> None:
    whole = timm.create_model(name).eval()
    save_file({key: value.contiguous() for key, value in whole.state_dict().items()}, tmp_path / "w.safetensors")
    net = build_backbone(ModelConfig(backbone=f"timm/{name}", freeze=1), tmp_path / "w.safetensors").eval()
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    cfg = whole.pretrained_cfg
    own = (pixels - torch.tensor(cfg["mean"])[:, None, None]) / torch.tensor(cfg["std"])[:, None, None]
    entry = backbone_entry("resnet18")
    usual = (pixels - torch.tensor(entry.mean)[:, None, None]) / torch.tensor(entry.std)[:, None, None]
    tokens = name.startswith("vit")
    with torch.inference_mode():
        expected = whole.forward_intermediates(own, indices=1, norm=tokens, intermediates_only=True)[-1]
        torch.testing.assert_close(net(usual), expected)
    assert not any(weight.requires_grad for weight in net.parameters())


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = timm.create_model("resnet18").state_dict()
    state.pop("layer4.1.bn2.bias")
    save_file(state, tmp_path / "part.safetensors")
    for name in ("timm/resnet18", "timm/resnet34"):
        with pytest.raises(WeightsError, match=rf"do not fit {name}: .*[Mm]issing key") as caught:
            build_backbone(ModelConfig(backbone=name), tmp_path / "part.safetensors")
        assert "\n" not in str(caught.value)


def test_without_a_connection_the_file_and_its_place_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # as HF_HUB_OFFLINE=1 has it, which is read once
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    place = tmp_path / "hub" / "checkpoints" / "timm-vit_small_patch14_dinov2.lvd142m.safetensors"
    assert local_weights(DINO) is None
    with pytest.raises(WeightsError) as caught:
        resolve_weights(DINO, "imagenet")
    wanted = f"put model.safetensors of the Hugging Face repository timm/vit_small_patch14_dinov2.lvd142m at {place}"
    assert wanted in str(caught.value) and "\n" not in str(caught.value)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"")
    assert resolve_weights(DINO, "imagenet") == place


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.backbone": "timm/resnt18"}, "timm has no model 'resnt18'; did you mean 'resnet18'"),
        ({"model.backbone": "timm/resnet18.mine"}, "timm has no model 'resnet18.mine'; did you mean 'resnet18."),
        (
            {"model.backbone": DINO, "data.image_size": 160, "model.n_scales": 1},
            "takes no images of 160 px; it takes sides that are multiples of 14, for example 154 or 168",
        ),
        (
            {"model.backbone": DINO, "data.image_size": 182, "model.n_scales": 2},
            "data.image_size=182, model.n_scales=2: timm/vit_small_patch14_dinov2 takes no images of 91 px",
        ),
        ({"model.backbone": DINO, "model.freeze": 2}, "vit_small_patch14_dinov2 has 1 blocks"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile("gpu").override(values)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_transformer_trains_with_its_trunk_frozen(tiny: TrialConfig) -> None:
    from sctune.train.trainer import Trainer

    config = tiny.override(
        {"model.backbone": "timm/vit_tiny_patch16_224", "model.freeze": 1, "model.taps": "blocks.3,deep"}
    )
    trainer = Trainer(config)
    before = {key: value.clone() for key, value in trainer.method.detector.backbone.state_dict().items()}
    assert trainer.run_epoch().epoch == 1
    assert trainer.method.detector.backbone.channels == 2 * 192
    assert all(torch.equal(value, before[key]) for key, value in trainer.method.detector.backbone.state_dict().items())
