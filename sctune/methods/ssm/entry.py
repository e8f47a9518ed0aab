"""`ssm`, as configurations, spaces and plans see it."""

from __future__ import annotations

from itertools import permutations
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from sctune.config import Conditions, MethodEntry, MethodSection, TrialConfig
from sctune.methods.fields import ADAM
from sctune.methods.length import ABOUT, TotalUpdates, check_total

SIDE = 128
"""Pixels a side that the network sees, whatever data.image_size is: sizes of cells and weights hang on it."""
PUBLISHED_RATE = 1e-4
CELLS = (2, 4, 8, 16)
"""Pixels a side that a cell may have."""

Weight = Annotated[float, Field(ge=0, le=100)]


def joined_cells(cells: object) -> object:
    """Sides of cells as a number, a list, or text with commas between them, in the one form that is stored: `2,4,8`.

    Raises ValueError, one line, for a side that no cell has.
    """
    parts = cells.split(",") if isinstance(cells, str) else cells if isinstance(cells, list | tuple) else [cells]
    sides = {str(part).strip() for part in parts}
    if not sides or not sides <= set(map(str, CELLS)):
        raise ValueError(
            f"method.cells and method.score_cells hold {cells!r}: cells have {', '.join(map(str, CELLS))} pixels a "
            "side; name some of these with commas between them, as in 2,4,8"
        )
    return ",".join(str(side) for side in CELLS if str(side) in sides)


Cells = Annotated[str, BeforeValidator(joined_cells)]


class SsmSection(MethodSection):
    name: Literal["ssm"] = "ssm"
    width: int = Field(
        6, ge=2, le=128, description="channels of the U-Net at full size, eight times as many at its bottom (code: 64)"
    )
    cells: Cells = Field(
        "2,4,8",
        description="sides in pixels of the cells that training hides, one of them drawn for each step (code: 2,4,8)",
    )
    total_updates: TotalUpdates = Field("iterations", description=f"{ABOUT} (code: pass)")
    lr: float = Field(2e-3, gt=0, le=1, description="Adam's learning rate, before the drops of optim (code: 1e-4)")
    mse: Weight = Field(1.0, description="weight of the squared error of what was hidden (code: 1)")
    gms: Weight = Field(1.0, description="weight of the loss of gradient magnitudes over four scales (code: 1)")
    ssim: Weight = Field(1.0, description="weight of the loss of structural similarity (code: 1)")
    mask: Weight = Field(1.0, description="weight of the error of the predicted masks, summed over three (code: 1)")
    score_cells: Cells = Field(
        "8", description="cells that scoring hides, three passes for each side; training may know others (code: 2,4,8)"
    )
    weight: Literal["cell", "equal"] = Field(
        "cell",
        description="share of each side of score_cells in an error map: as the area of a cell (code), or the same",
    )
    sigma: float = Field(7.0, ge=0.5, le=32, description="pixels of the Gaussian that smooths error maps (code: 7)")
    refine: bool = Field(
        False,
        description="score in two rounds: the second one hides only what the first did not take for surely normal",
    )
    refine_quantile: Annotated[float, Field(gt=0, lt=1)] | Literal["published"] = Field(
        0.5,
        description="refine=true: share of the pixels of normal training images that counts as surely normal, by their "
        "smoothed error; `published`: the code's threshold",
    )

    @property
    def own_rate(self) -> float:
        return self.lr


def section_of(config: TrialConfig) -> SsmSection:
    """The section of a configuration of this method."""
    section = config.method
    assert isinstance(section, SsmSection)
    return section


def sides_of(cells: str) -> tuple[int, ...]:
    """The sides that `cells` or `score_cells` name, the smallest first."""
    return tuple(map(int, cells.split(",")))


def check(config: TrialConfig) -> None:
    """Raises ValueError, one line, for values that do not go together."""
    section = section_of(config)
    if not section.mse + section.gms + section.ssim:
        raise ValueError(
            "method.mse=0, method.gms=0 and method.ssim=0: nothing is left that compares an image with its "
            "reconstruction; give one of them a weight"
        )
    check_total(config, section.total_updates)
    if config.data.shuffle_labels:
        raise ValueError(
            "data.shuffle_labels=true: ssm learns from normal images alone, so there are no labels to shuffle; leave "
            "it out, or use method.name=deviation"
        )


def summary(config: TrialConfig) -> str:
    """A configuration in a line, with whose recipe it is."""
    section = section_of(config)
    rounds = "two rounds" if section.refine else "one round"
    return (
        f"SSM in our reading (its code is public for retinal images alone): U-Net of width {section.width}, cells of "
        f"{section.cells} px hidden in training and of {section.score_cells} px in {rounds} of scoring, normal images "
        f"alone, {SIDE} px from {config.data.image_size} px, seed {config.seed}"
    )


_SEVERAL: Conditions = (
    (
        "method.score_cells",
        # a space may name them in any order
        tuple(",".join(map(str, sides)) for count in range(2, len(CELLS) + 1) for sides in permutations(CELLS, count)),
    ),
)

_FULL: dict[str, Any] = {"width": 64, "score_cells": "2,4,8"}

_PAPER: dict[str, Any] = {
    "method": {
        **_FULL,
        "cells": "2,4,8",
        "total_updates": "pass",
        "lr": PUBLISHED_RATE,
        "mse": 1.0,
        "gms": 1.0,
        "ssim": 1.0,
        "mask": 1.0,
        "weight": "cell",
        "sigma": 7.0,
        "refine": True,
        "refine_quantile": "published",
    },
    # its rate drops after epochs 15, 30 and 45, and it clips nothing
    "optim": {"weight_decay": 1e-5, "step_fraction": 0.3, "gamma": 0.1, "clip_norm": 1e9},
    # 32 images in three passes each
    "budget": {"epochs": 50, "batch_size": 96},
}

ENTRY = MethodEntry(
    name="ssm",
    description="a U-Net makes images anew from what masks show, and errs where it knows no such normal image; our "
    "reading of SSM",
    section=SsmSection,
    implementation="sctune.methods.ssm.method:SsmMethod",
    uses=tuple(name for name in ADAM if name != "optim.lr"),
    conditions={"method.weight": _SEVERAL, "method.refine_quantile": (("method.refine", (True,)),)},
    hyperparameters={
        "method.lr": {"type": "float", "low": PUBLISHED_RATE, "high": 1.0e-2, "log": True},
        "method.cells": {"values": ["2,4,8", "4,8", "8", "4,8,16"]},
        "method.gms": {"values": [0.3, 1.0, 3.0]},
        "method.ssim": {"values": [0.0, 1.0, 3.0]},
        "method.sigma": {"values": [2.0, 4.0, 7.0, 10.0]},
    },
    published={
        "ssm_reading": {
            "config": {"method": {"name": "ssm"}},
            "paper": _PAPER,
            # few updates of a wide network at the rate of a narrow one would be nobody's recipe
            "gpu": {"method": {**_FULL, "lr": PUBLISHED_RATE}},
        }
    },
    # method.refine too: a model that learned with it can score without
    scoring=("method.score_cells", "method.weight", "method.sigma", "method.refine"),
    check=check,
    learns_from_anomalies=lambda config: False,
    summary=summary,
)
