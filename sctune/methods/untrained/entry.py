"""`gaussian` and `patch_bank`, as configurations, spaces and plans see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from sctune.backbones.registry import backbone_entry, feature_side, tap_list
from sctune.config import Conditions, MethodEntry, MethodSection, TrialConfig
from sctune.config.section import joined_names

CELL_TAPS = ("stride8", "stride16")
"""Of methods that look at cells, where the backbone has them; `middle` and `deep` where it lacks one."""

Weight = Annotated[float, Field(ge=0, le=5)] | Literal["auto"]


class ReferenceSection(MethodSection):
    """What both references can be told."""

    taps: Annotated[str | None, BeforeValidator(joined_names)] = Field(
        None, description="feature maps that are looked at, as in model.taps; none: the backbone's usual ones"
    )
    push: Weight = Field(
        "auto",
        description="weight of the direction in which the labelled anomalies lie, beside 1 for the distance; `auto`: "
        "chosen by cross-validation where there are enough of them, else 0.5; of 80 or more 0.25",
    )
    logistic: Weight = Field(
        "auto",
        description="weight of a shrunk logistic regression on the whitened features; `auto`: as of push, else 0; "
        "of 80 anomalies or more 0.5",
    )
    max_normals: int = Field(
        2000, ge=10, le=100_000, description="most normal images that are fitted; more are drawn from by the seed"
    )


class GaussianSection(ReferenceSection):
    name: Literal["gaussian"] = "gaussian"
    features: Literal["pooled", "cells"] = Field(
        "pooled", description="what has a distance: each image by its pooled maps, or each cell of a map"
    )
    statistics: Literal["mean", "mean_sd"] = Field(
        "mean",
        description="features=pooled: of each channel over the cells the mean, or mean and standard deviation",
    )
    components: int = Field(
        1, ge=1, le=16, description="kinds of normal, found by k-means; the distance to the nearest one counts"
    )
    # no `top_k` as of a patch bank: methods that share a field agree on what it needs
    cell_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="features=cells: share of the highest cells whose mean is the image's; one at least",
    )


class PatchBankSection(ReferenceSection):
    name: Literal["patch_bank"] = "patch_bank"
    bank_size: int = Field(4000, ge=10, le=20_000, description="normal patches that are kept, by greedy k-centre")
    candidates: int = Field(
        16_000, ge=100, le=200_000, description="normal patches that these are chosen from, drawn by the seed"
    )
    neighbours: int = Field(1, ge=1, le=9, description="nearest patches of the bank whose mean distance counts")
    neighbourhood: Literal[1, 3, 5] = Field(
        3, description="cells a side that a patch is the mean of (PatchCore section 3.1: 3)"
    )
    top_k: float = Field(
        0.1, gt=0, le=1, description="share of the highest cells whose mean is the image's; at least one: the maximum"
    )


def taps_of(config: TrialConfig) -> tuple[str, ...]:
    """Names of the feature maps that a configuration of either method looks at."""
    section, entry = config.method, backbone_entry(config.model.backbone)
    assert isinstance(section, ReferenceSection)
    if section.taps is not None:
        return tuple(section.taps.split(","))
    if isinstance(section, GaussianSection) and section.features == "pooled":
        return entry.spread
    return CELL_TAPS if all(name in entry.taps for name in CELL_TAPS) else ("middle", "deep")


def check(config: TrialConfig) -> None:
    """Raises ValueError, one line, for values that do not go together."""
    taps, backbone, size = taps_of(config), config.model.backbone, config.data.image_size
    try:
        tap_list(backbone, taps)
    except ValueError as problem:
        raise ValueError(f"method.taps={','.join(taps)}: {problem}") from None
    for tap in taps:
        if feature_side(size, backbone, (tap,)) < 1:
            raise ValueError(
                f"data.image_size={size} is too small for {tap} of {backbone}; use a larger one, or leave {tap} out of "
                "method.taps"
            )
    if config.data.shuffle_labels:
        raise ValueError(
            f"data.shuffle_labels=true: {config.method.name} draws no batches to shuffle labels in; leave it out, or "
            "use method.name=deviation"
        )
    section = config.method
    if isinstance(section, PatchBankSection) and section.bank_size > section.candidates:
        raise ValueError(
            f"method.bank_size={section.bank_size}: it is chosen from method.candidates={section.candidates} patches; "
            "use a smaller bank or more candidates"
        )


def summary(config: TrialConfig) -> str:
    """A configuration in a line."""
    return (
        f"{config.method.name}, nothing trained, on {', '.join(taps_of(config))} of {config.model.backbone}, "
        f"{config.data.image_size} px, seed {config.seed}"
    )


def _gaussian(config: TrialConfig) -> str:
    section = config.method
    assert isinstance(section, GaussianSection)
    if section.features == "pooled":
        return "sctune.methods.untrained.gaussian:GaussianMethod"
    return "sctune.methods.untrained.cell_gaussian:CellGaussianMethod"


_LABELLED: Conditions = (("data.setting", ("general", "hard")),)

_PUSH: dict[str, Any] = {"values": ["auto", 0.0, 0.25, 0.5, 1.0]}
"""Weights of the two terms that labelled anomalies give."""


def _entry(
    section: type[ReferenceSection],
    description: str,
    implementation: str | Callable[[TrialConfig], str],
    searched: Mapping[str, Mapping[str, Any]],
    conditions: Mapping[str, Conditions] | None = None,
    cost: Callable[[TrialConfig], float] = lambda config: 1.0,
) -> MethodEntry:
    name = str(section.model_fields["name"].default)
    return MethodEntry(
        name=name,
        description=description,
        section=section,
        implementation=implementation,
        uses=("model.backbone", "model.weights"),
        trains=False,
        reference=True,
        conditions={"method.push": _LABELLED, "method.logistic": _LABELLED, **(conditions or {})},
        hyperparameters={**searched, "method.push": _PUSH, "method.logistic": _PUSH},
        published={name: {"config": {"method": {"name": name}}}},
        check=check,
        cost=cost,
        summary=summary,
    )


def _bank_cost(config: TrialConfig) -> float:
    """Patches that are chosen one after the other, and that each image is compared with."""
    section = config.method
    assert isinstance(section, PatchBankSection)
    return float(section.bank_size)


GAUSSIAN = _entry(
    GaussianSection,
    "Mahalanobis distance of pooled features, or of cells, of a frozen backbone, nothing trained",
    _gaussian,
    {
        "method.statistics": {"values": ["mean", "mean_sd"]},
        "method.components": {"values": [1, 2, 3, 5]},
    },
    {
        "method.statistics": (("method.features", ("pooled",)),),
        "method.cell_share": (("method.features", ("cells",)),),
    },
)

PATCH_BANK = _entry(
    PatchBankSection,
    "distance of patches of a frozen backbone to the nearest normal ones, nothing trained",
    "sctune.methods.untrained.patch_bank:PatchBankMethod",
    {
        "method.bank_size": {"values": [1000, 2000, 4000, 8000]},
        "method.neighbours": {"values": [1, 3, 5]},
        "method.neighbourhood": {"values": [1, 3, 5]},
        "method.top_k": {"type": "float", "low": 0.005, "high": 0.3, "log": True},
    },
    cost=_bank_cost,
)
