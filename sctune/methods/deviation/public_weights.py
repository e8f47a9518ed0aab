"""State dicts saved by the authors' public code, or by the two projects it grew from, as a sctune detector's state.

Names and shapes as those projects have them (METHODS 1, 2, 3.1, 4.1): SaliencyCut (yjnanan/SaliencyCut, commit
3c7e2e5) calls its heads `normalhead` and `anomalyhead`; DRA `holistic_head`, `seen_head`, `pseudo_head` and
`composite_head`; DevNet for images has one convolution `conv`. All hold a whole torchvision ResNet-18, classifier
included, in `feature_extractor.net`, and save the bare state dict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sctune.backbones.trunk import build_backbone
from sctune.config import TrialConfig, load_profile
from sctune.errors import ConfigError, WeightsError
from sctune.methods.deviation.detector import Detector
from sctune.methods.deviation.roles import HEADS, head_roles
from sctune.methods.named import method_values

TRUNK = "feature_extractor"
PUBLIC_HEADS = {
    "saliencycut": {"normalhead": "normal", "anomalyhead": "anomaly"},
    "dra": {"holistic_head": "normal", "seen_head": "seen", "pseudo_head": "pseudo", "composite_head": "latent"},
    "devnet": {"conv": "anomaly.scoring"},
}
"""Method -> public name of a head -> its name in the detector."""

TRUNK_PARTS = {"0.0": "conv1", "0.1": "bn1", "1": "layer1", "2": "layer2", "3": "layer3", "4": "layer4"}
"""Place in `backbone.blocks` -> name in torchvision's ResNet-18."""

FIXED = ("model.heads", "model.backbone", "model.tap")
"""Fields that the file itself decides."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)
"""Types of floating-point and of counting tensors that are taken over; all others are refused by name."""

RULE = "only unchanged models of the public code with its ResNet-18 can be imported"


@dataclass(frozen=True)
class PublicState:
    """A recognised state dict.

    method: saliencycut, dra or devnet; keys: public name without what wraps the model (`module.` of DataParallel) ->
    name in the file; source: the file, for messages.
    """

    method: str
    tensors: Mapping[str, Tensor]
    keys: Mapping[str, str]
    source: str


@dataclass(frozen=True)
class ImportedState:
    """What a detector loads; `references`, which no public state dict has, is not among it.

    mapped: name in the file -> name in the detector; ignored: names in the file that a detector has no use for;
    added: the detector's batch counters that the file lacks (they begin at zero, and no score depends on them).
    """

    state: dict[str, Tensor]
    mapped: dict[str, str]
    ignored: list[str]
    added: list[str]


def recognise(tensors: Mapping[str, Tensor], source: str) -> PublicState:
    """Which method a state dict is of, by the names of its heads; names may have anything in front (`module.`).

    source: the file, for messages. Raises WeightsError for an unknown method and for names that occur twice.
    """
    if any(name.startswith("backbone.blocks.") for name in tensors):
        raise WeightsError(f"{source} is a checkpoint of sctune already; there is nothing to import")
    keys: dict[str, str] = {}
    parts: set[str] = set()
    for name in tensors:
        public = _unwrapped(name)
        if public is not None:
            parts.add(public.split(".")[0])
        if public in keys:
            raise WeightsError(f"{source} holds {public!r} twice, as {keys[public]!r} and as {name!r}; save one model")
        keys[public or name] = name
    methods = [method for method, heads in PUBLIC_HEADS.items() if parts & heads.keys()]
    if len(methods) != 1:
        known = "; ".join(f"{method}: {', '.join(heads)}" for method, heads in PUBLIC_HEADS.items())
        shown = ", ".join(map(repr, sorted({name.split(".")[0] for name in tensors})[:6]))
        what = "heads of more than one method" if methods else "none of the heads of a known method"
        raise WeightsError(f"{source} has {what} ({known}); the names in it begin with {shown}")
    return PublicState(methods[0], tensors, keys, source)


def public_config(method: str, overrides: Mapping[str, Any]) -> TrialConfig:
    """The published settings of a method (profile paper), scored without chance; dotted overrides win.

    Patch positions are averaged over (`exact`) and references fixed, where the public code draws them anew for each
    score. Raises ConfigError where an override contradicts what a state dict of the method holds.
    """
    values = method_values(method, "paper")
    values |= {"model.patch_evaluation": "exact", "model.reference_source": "normals"}
    base = load_profile("paper").override(values)
    config = base.override(overrides)
    before, after = base.flat(), config.flat()
    for name in FIXED:
        if after[name] != before[name]:
            raise ConfigError(f"{name}={after[name]}: the public code's {method} has {before[name]}; leave it out")
    missing = sorted(HEADS[config.model.heads].keys() - head_roles(config).keys())
    if missing:
        raise ConfigError(
            f"data.setting={config.data.setting} with augment.kind={config.augment.kind} leaves no use for the "
            f"{missing[0]} head, which the file has; leave both out"
        )
    return config


def detector_state(public: PublicState, config: TrialConfig) -> ImportedState:
    """The state of a detector of this configuration, every name and shape of the file accounted for.

    Raises WeightsError for a missing or left-over name, another shape, and values that are not finite.
    """
    # no memory and no random numbers: only names, shapes and types are wanted
    with torch.device("meta"):
        own = Detector(config, build_backbone(config.model, None)).state_dict()
    own.pop("references", None)
    state: dict[str, Tensor] = {}
    mapped: dict[str, str] = {}
    added: list[str] = []
    for name, wanted in own.items():
        key = public.keys.get(_public_name(name, public.method))
        if key is not None:
            state[name] = _checked(public, key, wanted)
            mapped[key] = name
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.zeros(wanted.shape, dtype=wanted.dtype)
            added.append(name)
        else:
            raise WeightsError(
                f"{public.source} has no {_public_name(name, public.method)!r} of shape {list(wanted.shape)}, which "
                f"{public.method} needs; {RULE}"
            )
    ignored = [key for name, key in public.keys.items() if name.startswith(f"{TRUNK}.net.fc.")]
    left = [key for key in public.keys.values() if key not in mapped and key not in ignored]
    if left:
        raise WeightsError(
            f"{public.source} holds {len(left)} entries that {public.method} has not, the first is {left[0]!r}; {RULE}"
        )
    return ImportedState(state, mapped, ignored, added)


def _unwrapped(name: str) -> str | None:
    """A name without what wraps the model, from the trunk's or a head's on; None where there is neither in it."""
    parts = name.split(".")
    known = {head for heads in PUBLIC_HEADS.values() for head in heads} | {TRUNK}
    for place, part in enumerate(parts):
        # heads of the other methods hold a `conv` too, but of several layers
        if part in known and (part != "conv" or place == len(parts) - 2):
            rest = parts[place + 1 :]
            if part == TRUNK and rest[:1] != ["net"]:
                rest = ["net", *rest]
            return ".".join([part, *rest])
    return None


def _public_name(name: str, method: str) -> str:
    """A detector's name as the public code has it."""
    for head, own in PUBLIC_HEADS[method].items():
        if name.startswith(f"{own}."):
            return f"{head}.{name.removeprefix(f'{own}.')}"
    inner = name.removeprefix("backbone.blocks.")
    place = next(place for place in TRUNK_PARTS if inner.startswith(f"{place}."))
    return f"{TRUNK}.net.{TRUNK_PARTS[place]}.{inner.removeprefix(f'{place}.')}"


def _checked(public: PublicState, key: str, wanted: Tensor) -> Tensor:
    tensor = public.tensors[key]
    # a nested tensor has no shape to ask for
    if not tensor.is_nested and tensor.shape != wanted.shape:
        raise WeightsError(
            f"{public.source}: {key!r} has shape {list(tensor.shape)}, and {public.method} needs "
            f"{list(wanted.shape)}; {RULE}"
        )
    known = FLOATS if wanted.is_floating_point() else INTEGERS
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta or tensor.dtype not in known:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in known)
        raise WeightsError(
            f"{public.source}: {key!r} ({tensor.dtype}, {tensor.layout}) is no plain tensor of a type that can be "
            f"taken over ({names}); save it as one"
        )
    # copies: a safetensors file takes no tensors that share memory
    taken = tensor.detach().to(wanted.dtype, copy=True).contiguous()
    if not bool(taken.isfinite().all()):
        raise WeightsError(f"{public.source}: {key!r} ({tensor.dtype}) holds values that are no finite float32 numbers")
    if key.endswith("running_var") and bool((taken < 0).any()):
        raise WeightsError(f"{public.source}: {key!r} holds negative variances; {RULE}")
    return taken
