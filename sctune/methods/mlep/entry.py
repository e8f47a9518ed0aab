"""`mlep`, as configurations, spaces and plans see it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sctune.config import MethodEntry, MethodSection, TrialConfig
from sctune.methods.fields import ADAM, CHANGES, CONDITIONS, LABELLED, TRUNK


class MlepSection(MethodSection):
    name: Literal["mlep"] = "mlep"
    margin: float = Field(
        1.0, gt=0, le=4, description="how much farther labelled anomalies are to lie from normal images (code: 1)"
    )
    hinge_weight: float = Field(1.0, ge=0, le=100, description="of the margin's loss beside the error's (code: 1)")
    decoder_width: int | None = Field(
        None, ge=16, le=1024, description="channels of the decoder's first stage; none: half of the backbone's"
    )
    error: Literal["mean", "top"] = Field(
        "mean", description="error of an image: the mean over its pixels, or over the error_share highest ones"
    )
    error_share: float = Field(0.1, gt=0, le=1, description="error=top: share of the pixels; one at least")
    distance: float = Field(
        0.0,
        ge=0,
        le=10,
        description="weight of the distance to the mean normal embedding, beside 1 for the error (published score: 0)",
    )
    scale_normals: int = Field(
        200, ge=2, le=1000, description="most training normals that the scale of scores is fitted to after an epoch"
    )


def check(config: TrialConfig) -> None:
    """Raises ValueError, one line, for values that do not go together."""
    if config.data.shuffle_labels and config.n_anomalies == 0:
        raise ValueError(
            f"data.shuffle_labels=true: with data.setting={config.data.setting} mlep learns from normal images alone, "
            "so there are no labels to shuffle; leave it out, or use data.setting=general"
        )


def summary(config: TrialConfig) -> str:
    """A configuration in a line."""
    section = config.method
    assert isinstance(section, MlepSection)
    learned = "without a margin" if config.n_anomalies == 0 else f"margin {section.margin:g}"
    score = f"{section.error} error" + (f" + {section.distance:g} x distance" if section.distance else "")
    return (
        f"MLEP in an image form of our own reading (published for video): {learned}, {score}, on "
        f"{config.model.backbone}, {config.data.image_size} px, seed {config.seed}"
    )


_PAPER: dict[str, Any] = {
    "method": {"margin": 1.0, "hinge_weight": 1.0, "error": "mean", "distance": 0.0},
    "data": {"balance": 2 / 3},
    "optim": {"lr": 2e-4, "weight_decay": 1e-5, "step_fraction": 1 / 3, "gamma": 0.1},
    "budget": {"epochs": 30, "iterations": 20, "batch_size": 48},
}

ENTRY = MethodEntry(
    name="mlep",
    description="reconstruction of normal images from an embedding that a margin keeps anomalies away in; our image "
    "form of MLEP",
    section=MlepSection,
    implementation="sctune.methods.mlep.method:MlepMethod",
    uses=(*TRUNK, *CHANGES, *ADAM),
    conditions={
        **CONDITIONS,
        "method.margin": LABELLED,
        "method.hinge_weight": LABELLED,
        "method.error_share": (("method.error", ("top",)),),
    },
    hyperparameters={
        "optim.lr": {"type": "float", "low": 2.0e-5, "high": 2.0e-3, "log": True},
        "method.margin": {"type": "float", "low": 0.25, "high": 2.0},
        "method.hinge_weight": {"type": "float", "low": 0.1, "high": 10.0, "log": True},
        "method.error": {"values": ["mean", "top"]},
        "method.distance": {"values": [0.0, 0.5, 1.0, 2.0]},
    },
    published={
        "mlep_image": {
            "config": {"method": {"name": "mlep"}},
            "paper": _PAPER,
            # a fifth of the updates: at the published rate the decoder, which begins at random, has hardly moved
            "cpu": {"optim": {"lr": 1e-3}},
        }
    },
    scoring=("method.error", "method.distance"),
    check=check,
    summary=summary,
)
