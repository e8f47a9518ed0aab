"""`timm/NAME`: the networks of timm that give feature maps, from ResNets to DINOv2; needs the extra `timm`.

What other entries declare is measured here, on a network without memory (torch's meta device), once in a process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from sctune.backbones.entry import PAPERS, BackboneEntry, State, Tap
from sctune.backbones.sources import HubWeights
from sctune.errors import WeightsError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIX = "timm/"
PACKAGES = {"timm": "timm"}


@dataclass(frozen=True)
class _Shape:
    """What timm says of a network, and what running it once showed.

    tokens: whether it is a transformer that takes images of any multiple of its patch. settings: timm's, of its
    weights; names and taps: of its maps, in order. cost: as of an entry.
    """

    tokens: bool
    settings: Mapping[str, Any]
    names: tuple[str, ...]
    taps: tuple[Tap, ...]
    cost: float


@lru_cache(maxsize=64)
def timm_entry(backbone: str) -> BackboneEntry:
    """The entry of `timm/NAME`; raises WeightsError with the way out for a name that timm cannot build so."""
    if any(find_spec(module) is None for module in PACKAGES):
        raise WeightsError(
            f"model.backbone={backbone} needs a package that is not installed; run: pip install timm, or use "
            f"--set model.backbone={PAPERS}"
        )
    name = backbone.removeprefix(PREFIX)
    _check_name(name)
    shape = _shape(name)
    hub = shape.settings.get("hf_hub_id")
    return BackboneEntry(
        backbone,
        build=partial(_create, name, shape.tokens),
        blocks=partial(_blocks, shape.tokens),
        n_blocks=1,
        taps=_named(shape),
        rounding=partial(_side, name, backbone),
        load=partial(_load, name, shape.tokens),
        weights=HubWeights(hub, ("model.safetensors", "pytorch_model.bin")) if hub else None,
        cost=shape.cost,
        packages=PACKAGES,
        mean=shape.settings["mean"],
        std=shape.settings["std"],
    )


def _check_name(name: str) -> None:
    import timm

    architecture, dot, _ = name.partition(".")
    known = timm.list_models() if not timm.is_model(architecture) else timm.list_pretrained(f"{architecture}.*")
    if not timm.is_model(architecture) or (dot and name not in known):
        close = nearest(name, known)
        raise WeightsError(
            f"timm has no model {name!r}; {close if close.startswith('did') or dot else 'see timm.list_models()'}"
        )


def _create(name: str, tokens: bool, state: State | None = None) -> nn.Module:
    import timm

    # positions are interpolated for images of other sizes than those of the pre-training
    more: dict[str, Any] = {"dynamic_img_size": True} if tokens else {}
    if state is not None:
        more |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(state)}}
    net: nn.Module = timm.create_model(name, **more)
    return net


def _load(name: str, tokens: bool, net: nn.Module, state: State, source: str) -> nn.Module:
    # timm renames what the authors' own files hold, and does so only while it builds; it takes whole files alone
    try:
        return _create(name, tokens, state)
    except (RuntimeError, LookupError, ValueError, AttributeError, AssertionError) as problem:
        reason = " ".join(str(problem).split())[:200]
        raise WeightsError(f"weights in {source} do not fit {PREFIX}{name}: {reason}") from None


def _blocks(tokens: bool, net: nn.Module, taps: Sequence[Tap]) -> list[nn.Module]:
    """The network as one block; what the taps do not need of it is dropped."""
    from sctune.backbones.timm_maps import Maps

    return [Maps(net, sorted({tap.output for tap in taps}), norm=tokens)]


def _named(shape: _Shape) -> dict[str, Tap]:
    """Taps by timm's names of the modules, by stride (the last map of each), and the two that every backbone has."""
    taps, deep = shape.taps, shape.taps[-1]
    half = [tap for tap in taps if tap.stride * 2 == deep.stride]
    return (
        dict(zip(shape.names, taps, strict=True))
        | {f"stride{tap.stride}": tap for tap in taps}
        | {"middle": half[-1] if half else taps[(len(taps) - 1) // 2], "deep": deep}
    )


@lru_cache(maxsize=64)
def _shape(name: str) -> _Shape:
    from torch.utils.flop_counter import FlopCounterMode

    tokens, net = _empty(name)
    info: list[Mapping[str, Any]] = list(net.feature_info)  # type: ignore[arg-type]
    settings: Mapping[str, Any] = net.pretrained_cfg  # type: ignore[assignment]
    own = int(settings["input_size"][-1])
    with FlopCounterMode(display=False) as counter:
        maps = _run(name, own)
    taps = [
        Tap(int(one["reduction"]), maps[output].shape[1], after=1, output=output) for output, one in enumerate(info)
    ]
    names = tuple(str(one["module"]) for one in info)
    return _Shape(tokens, settings, names, tuple(taps), counter.get_total_flops() / 2000 / own**2)


@lru_cache(maxsize=16)
def _empty(name: str) -> tuple[bool, nn.Module]:
    """Whether it is a transformer that takes images of many sizes, and the network, without memory, in eval mode."""
    import torch

    with torch.device("meta"):
        try:
            tokens, net = True, _create(name, tokens=True)
        except TypeError:  # what other networks say of a setting that they do not know
            tokens, net = False, _create(name, tokens=False)
    if not hasattr(net, "forward_intermediates") or not hasattr(net, "feature_info"):
        raise WeightsError(f"{PREFIX}{name} gives no feature maps; take another model of timm")
    return tokens, net.eval()


def _run(name: str, image_size: int) -> list[Tensor]:
    """All maps of one image, without memory."""
    import torch

    from sctune.backbones.timm_maps import intermediates

    tokens, net = _empty(name)
    with torch.inference_mode():
        return intermediates(net, torch.empty(1, 3, image_size, image_size, device="meta"), None, norm=tokens)


@lru_cache(maxsize=256)
def _sides(name: str, image_size: int) -> tuple[int, ...] | None:
    """Of all maps; None for images that the network cannot take."""
    try:
        return tuple(int(one.shape[-1]) for one in _run(name, image_size))
    except (RuntimeError, AssertionError, ValueError):
        return None


def _side(name: str, backbone: str, image_size: int, tap: Tap) -> int:
    sides, shape = _sides(name, image_size), _shape(name)
    if sides is not None:
        return sides[tap.output]
    rule = f"it was made for {shape.settings['input_size'][-1]} px"
    if shape.tokens:
        cell = shape.taps[-1].stride
        below = max(1, image_size // cell) * cell
        rule = f"it takes sides that are multiples of {cell}, for example {below} or {below + cell}"
    raise ValueError(f"{backbone} takes no images of {image_size} px; {rule}")
