"""KDAD, as configurations, spaces and plans see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from sctune.backbones.entry import Tap
from sctune.backbones.registry import feature_side, tap_list
from sctune.config import Conditions, MethodEntry, MethodSection, TrialConfig
from sctune.config.section import joined_names
from sctune.methods.length import ABOUT, TotalUpdates, check_total

PUBLISHED_SOURCE = "vgg16"
CRITICAL = ("stride4", "stride8", "stride16", "stride32")
"""Of VGG-16 the outputs of its pools 2 to 5."""
RECTIFIED = (PUBLISHED_SOURCE, "resnet18", "resnet34", "resnet50", "wide_resnet50_2")
"""Sources whose maps are never negative, since a ReLU stands before each tap."""


class KdadSection(MethodSection):
    name: Literal["kdad"] = "kdad"
    taps: Annotated[str | None, BeforeValidator(joined_names)] = Field(
        None,
        description="critical layers of the source, model.backbone, as in model.taps, one for each stride; none: those "
        "at strides 4, 8, 16 and 32",
    )
    cloner: Literal["small", "equal"] = Field(
        "small",
        description="inner convolutions of the cloner have cloner_width channels, or as many as the source's maps",
    )
    cloner_width: int = Field(
        16, ge=2, le=256, description="cloner=small: channels of its inner convolutions (public code 16)"
    )
    ends: Literal["auto", "relu", "linear"] = Field(
        "auto",
        description="the cloner's convolution before a critical layer is rectified (public code), or not; `auto`: as "
        "the source's maps are",
    )
    normalise: bool = Field(
        True, description="images are normalised as the backbone's weights need it; public code for MVTec AD: no"
    )
    relative: bool = Field(
        True,
        description="the value part of a layer is divided by the mean square of the source's maps of normal images; "
        "public code: no",
    )
    value_weight: float = Field(
        0.5,
        ge=0,
        le=100,
        description="weight of the value part (MSE) beside 1 for the direction part; 0: direction alone (public code "
        "0.5 on MVTec AD, 0.01 elsewhere, of values that are not relative)",
    )
    score_skip: int = Field(
        1, ge=0, le=8, description="shallowest critical layers that train, and do not score (public code 1)"
    )
    score_value: float | None = Field(
        None, ge=0, le=100, description="weight of the value part in the score; none: value_weight (public code)"
    )
    cloner_lr: float = Field(1e-3, gt=0, le=1, description="Adam's learning rate, without decay (public code 1e-3)")
    total_updates: TotalUpdates = Field(300, description=f"{ABOUT} (public code)")
    cache_mb: int = Field(
        640,
        ge=0,
        le=1_000_000,
        description="memory for the source's maps of normal images, in MiB; those that find no room are made anew "
        "each time, which gives the same numbers",
    )


def kdad_section(config: TrialConfig) -> KdadSection:
    """The section of a configuration of this method."""
    section = config.method
    assert isinstance(section, KdadSection)
    return section


def tap_names(config: TrialConfig) -> tuple[str, ...]:
    """Names of the critical layers."""
    taps = kdad_section(config).taps
    return CRITICAL if taps is None else tuple(taps.split(","))


def critical_taps(config: TrialConfig) -> list[Tap]:
    """The critical layers, the shallowest first."""
    return tap_list(config.model.backbone, tap_names(config))


def rectified(config: TrialConfig) -> bool:
    """Whether the cloner's critical layers end in a ReLU."""
    ends = kdad_section(config).ends
    return config.model.backbone in RECTIFIED if ends == "auto" else ends == "relu"


def check(config: TrialConfig) -> None:
    """Raises ValueError, one line, for values that do not go together."""
    section = kdad_section(config)
    _check_taps(config)
    if section.score_skip >= len(tap_names(config)):
        raise ValueError(
            f"method.score_skip={section.score_skip}: of {len(tap_names(config))} critical layers one at least must "
            "score; use a smaller one, or name more in method.taps"
        )
    check_total(config, section.total_updates)
    if config.data.shuffle_labels:
        raise ValueError(
            "data.shuffle_labels=true: kdad learns from normal images alone, so there are no labels to shuffle; leave "
            "it out, or use method.name=deviation"
        )


def _check_taps(config: TrialConfig) -> None:
    names, backbone, size = tap_names(config), config.model.backbone, config.data.image_size
    try:
        taps = critical_taps(config)
    except ValueError as problem:
        raise ValueError(f"method.taps={','.join(names)}: {problem}") from None
    strides = [tap.stride for tap in taps]
    alone = len({tap.after for tap in taps}) == len(taps)
    # the cloner halves the image stage by stage, and each stage has one end
    if not alone or any(stride & (stride - 1) or stride < 2 for stride in strides) or strides != sorted({*strides}):
        raise ValueError(
            f"method.taps={','.join(names)}: the critical layers of kdad lie in blocks of their own at different "
            f"strides of 2, 4, 8 ..., and those of {backbone} at {', '.join(map(str, strides))}; name others, or use "
            "another model.backbone"
        )
    for name, tap in zip(names, [tap_list(backbone, (name,))[0] for name in names], strict=True):
        if feature_side(size, backbone, (name,)) * tap.stride != size:
            raise ValueError(
                f"data.image_size={size}: kdad needs a multiple of {max(strides)}, the stride of its deepest critical "
                "layer"
            )


def summary(config: TrialConfig) -> str:
    """A configuration in a line, with whose recipe it is."""
    section = kdad_section(config)
    width = f" of width {section.cloner_width}" if section.cloner == "small" else ""
    return (
        f"kdad, {_recipe(config)}: {section.cloner} cloner{width} of {', '.join(tap_names(config))} of "
        f"{config.model.backbone}, normal images alone, {config.data.image_size} px, seed {config.seed}"
    )


def _recipe(config: TrialConfig) -> str:
    if config.model.backbone != PUBLISHED_SOURCE:
        return f"our reading with {config.model.backbone} for VGG-16"
    differs = _differs(config)
    if differs:
        return f"our reading with another {', '.join(differs)}"
    return f"the published recipe{_length(config)}"


def _differs(config: TrialConfig) -> list[str]:
    """Fields that are not as published, but for the length."""
    published = KdadSection(**PUBLISHED["kdad"]["config"]["method"]).model_dump()
    own = [
        name
        for name, value in config.method.model_dump().items()
        if value != published[name] and name not in ("total_updates", "cache_mb") and (name, value) != ("ends", "relu")
    ]
    wanted = {
        "model.weights": "imagenet",
        "data.image_size": _PAPER["data"]["image_size"],
        "budget.batch_size": _PAPER["budget"]["batch_size"],
    }
    flat = config.flat()
    return own + [name for name, value in wanted.items() if flat[name] != value]


def _length(config: TrialConfig) -> str:
    """What of the published length is not kept, in words behind the recipe's name."""
    total, budget = kdad_section(config).total_updates, config.budget
    if total == "pass":
        length = "" if budget.epochs == _PAPER["budget"]["epochs"] else f"{budget.epochs} passes"
    else:
        length = f"{budget.epochs * budget.iterations if total == 'iterations' else total} updates"
    return f" but for its length ({length})" if length else ""


_PAPER: Mapping[str, Mapping[str, Any]] = {
    "data": {"image_size": 128},
    "method": {"total_updates": "pass"},
    "budget": {"epochs": 601, "batch_size": 64},
}


def _ours(backbone: str) -> dict[str, Any]:
    return {"config": {"method": {"name": "kdad"}, "model": {"backbone": backbone}}, "paper": _PAPER}


PUBLISHED: dict[str, dict[str, Any]] = {
    "kdad": {
        "config": {
            "method": {"name": "kdad", "normalise": False, "relative": False},
            "model": {"backbone": PUBLISHED_SOURCE},
            "data": {"image_size": 128},
        },
        "paper": _PAPER,
    },
    # the recipe is published for VGG-16 alone
    "kdad_lite0": _ours("efficientnet_lite0"),
    "kdad_resnet18": _ours("resnet18"),
}

CONDITIONS: dict[str, Conditions] = {"method.cloner_width": (("method.cloner", ("small",)),)}

HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "method.value_weight": {"type": "float", "low": 0.05, "high": 5.0, "log": True},
    "method.cloner_width": {"values": [32, 16, 8]},
    "method.cloner_lr": {"type": "float", "low": 2.0e-4, "high": 5.0e-3, "log": True},
    "method.taps": {"values": ["stride4,stride8,stride16,stride32", "stride8,stride16,stride32", "stride8,stride16"]},
    "method.score_skip": {"values": [0, 1]},
}
"""As under `parameters:` of a space file; of values in a list the dearest comes first, which a dry run times."""

ENTRY = MethodEntry(
    name="kdad",
    description="a small network learns from normal images what a frozen one makes of them, and fails on others",
    section=KdadSection,
    implementation="sctune.methods.kdad.method:KdadMethod",
    uses=("model.backbone", "model.weights"),
    conditions=CONDITIONS,
    hyperparameters=HYPERPARAMETERS,
    published=PUBLISHED,
    scoring=("method.score_skip", "method.score_value"),
    check=check,
    learns_from_anomalies=lambda config: False,
    summary=summary,
)
