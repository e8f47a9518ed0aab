"""`saoe`, as configurations, spaces and plans see it."""

from __future__ import annotations

import itertools
import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from sctune.config import Conditions, MethodEntry, MethodSection, TrialConfig
from sctune.config.section import joined_names
from sctune.errors import nearest
from sctune.methods.fields import ADAM, CHANGES, CONDITIONS, TRUNK

MEMBERS = ("cutpaste", "confetti", "turned")
"""By the synthetic anomalies that they learn from: those of CutPaste, FCDD and CSI."""


def _known_members(text: str) -> str:
    names = text.split(",")
    for name in names:
        if name not in MEMBERS:
            raise ValueError(f"method.members={text}: {name!r} is no member; {nearest(name, MEMBERS)}")
    # in one order, so that a choice has one name
    if len(set(names)) < len(names):
        raise ValueError(f"method.members={text} names a member twice; name each once")
    return ",".join(name for name in MEMBERS if name in names)


def _absolute(folder: str | None) -> str | None:
    # workers have another current folder
    return None if folder is None else os.path.abspath(os.path.expanduser(folder))


class SaoeSection(MethodSection):
    name: Literal["saoe"] = "saoe"
    members: Annotated[str, BeforeValidator(joined_names), AfterValidator(_known_members)] = Field(
        ",".join(MEMBERS),
        description="networks of the ensemble, as a list or with commas: cutpaste, confetti, turned",
    )
    updates: Literal["each", "shared"] = Field(
        "shared",
        description="of a step: each member makes one, for as many times the cost, or they take turns, so that the "
        "ensemble costs what one network does",
    )
    turned: Literal["auto", "always"] = Field(
        "auto",
        description="member turned: `auto` takes quarter turns in which normal images do not look normal, and leaves "
        "the member out where there are none; `always` takes all three (CSI)",
    )
    outlier_root: Annotated[str | None, AfterValidator(_absolute)] = Field(
        None,
        description="folder of images of other things, which take the place of half of the synthetic anomalies: "
        "CATEGORY/train/good of the MVTec layout, else all images below; none: no outlier exposure",
    )
    outlier_limit: int = Field(1000, ge=1, le=100_000, description="most images of outlier_root that are used")
    confetti_count: float = Field(
        40.0, gt=0, le=500, description="mean number of confetti on an image, Poisson; one at least (ours)"
    )
    confetti_least: float = Field(
        2 / 32, gt=0, le=1, description="shortest side of a confetti, as a share of the image's side (ours: 2 of 32)"
    )
    confetti_most: float = Field(
        3 / 32, gt=0, le=1, description="longest side of a confetti, as a share of the image's side (ours: 3 of 32)"
    )
    scored: Literal["cutpaste", "confetti", "turned"] | None = Field(
        None, description="score by one member alone; none: by the mean of all (`sctune rescore` tries each)"
    )
    scale_normals: int = Field(
        200, ge=2, le=1000, description="most training normals that the scale of scores is fitted to after an epoch"
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The members that are asked for."""
        return tuple(self.members.split(","))


def check(config: TrialConfig) -> None:
    """Raises ValueError, one line, for values that do not go together."""
    section = config.method
    assert isinstance(section, SaoeSection)
    if section.confetti_least > section.confetti_most:
        raise ValueError(
            f"method.confetti_least={section.confetti_least:g} is above method.confetti_most="
            f"{section.confetti_most:g}; give the shorter side first"
        )
    if section.scored is not None and section.scored not in section.names:
        raise ValueError(
            f"method.scored={section.scored}: the ensemble has the members {section.members}; name one of them, or none"
        )
    slots = config.normal_slots
    if slots // 2 < (2 if section.outlier_root else 1):
        raise ValueError(
            f"budget.batch_size={config.budget.batch_size} leaves {slots // 2} synthetic slots, too few to share with "
            "outliers; use a larger batch, or no method.outlier_root"
        )


def summary(config: TrialConfig) -> str:
    """A configuration in a line."""
    section = config.method
    assert isinstance(section, SaoeSection)
    outliers = f"outliers of {section.outlier_root}" if section.outlier_root else "without an outlier set"
    scored = f", scored by {section.scored}" if section.scored else ""
    return (
        f"SAOE in our own reading (never published as code): {section.members.replace(',', ', ')}, {outliers}{scored}, "
        f"on {config.model.backbone}, {config.data.image_size} px, seed {config.seed}"
    )


# a space may name members in any order
_CHOICES = [names for size in (1, 2, 3) for names in itertools.permutations(MEMBERS, size)]


def _with_member(name: str) -> Conditions:
    """That a member is in the ensemble."""
    return (("method.members", tuple(",".join(names) for names in _CHOICES if name in names)),)


def cost(config: TrialConfig) -> float:
    """Updates of a step; where members take turns only the scoring, which all of them do, makes an epoch longer."""
    section = config.method
    assert isinstance(section, SaoeSection)
    members = len(section.names)
    return members if section.updates == "each" else 1 + (members - 1) / 10


_PAPER: dict[str, Any] = {
    "method": {"updates": "each"},
    "data": {"balance": 2 / 3},
    "optim": {"lr": 2e-4, "weight_decay": 1e-5, "step_fraction": 1 / 3, "gamma": 0.1},
    "budget": {"epochs": 30, "iterations": 20, "batch_size": 48},
}

ENTRY = MethodEntry(
    name="saoe",
    description="ensemble of classifiers of synthetic anomalies, outliers and seen anomalies; our reading of SAOE",
    section=SaoeSection,
    implementation="sctune.methods.saoe.method:SaoeMethod",
    uses=(*TRUNK, *CHANGES, *ADAM),
    conditions={
        **CONDITIONS,
        "method.updates": (("method.members", tuple(",".join(names) for names in _CHOICES if len(names) > 1)),),
        "method.turned": _with_member("turned"),
        **{f"method.confetti_{name}": _with_member("confetti") for name in ("count", "least", "most")},
    },
    hyperparameters={
        "optim.lr": {"type": "float", "low": 2.0e-5, "high": 2.0e-3, "log": True},
        "method.members": {"values": [",".join(MEMBERS), "cutpaste,confetti", "cutpaste", "confetti"]},
        "method.confetti_count": {"type": "float", "low": 5.0, "high": 80.0, "log": True},
        "method.confetti_most": {"type": "float", "low": 2 / 32, "high": 0.2, "log": True},
    },
    published={
        "saoe_no_outliers": {
            "config": {"method": {"name": "saoe", "outlier_root": None}},
            "paper": _PAPER,
            # each of three members makes a fifteenth of the published updates
            "cpu": {"optim": {"lr": 1e-3}},
            "gpu": {"method": {"updates": "each"}},
        }
    },
    scoring=("method.scored",),
    check=check,
    cost=cost,
    summary=summary,
)
