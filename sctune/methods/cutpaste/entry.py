"""`cutpaste`, as configurations, spaces and plans see it (Li et al., CVPR 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from sctune.config import MethodEntry, MethodSection, TrialConfig
from sctune.methods.fields import LABELLED, TRUNK
from sctune.methods.length import ABOUT, TotalUpdates, check_total

Rule = Literal["normal", "scar", "union"]
"""What is pasted, as `augment.cutpaste` names it."""

RULES: dict[str, tuple[Rule, ...]] = {
    "3way": ("normal", "scar"),
    "union": ("union",),
    "normal": ("normal",),
    "scar": ("scar",),
}
"""Variant -> what is pasted in its classes, those behind the normal images."""

PRETRAINED_SHARE = 0.1
"""Of the learning rate, for a trunk that was trained already."""


class CutPasteSection(MethodSection):
    name: Literal["cutpaste"] = "cutpaste"
    variant: Literal["3way", "union", "normal", "scar"] = Field(
        "3way",
        description="classes that training tells apart: normal images, pasted patches and pasted scars (3way, paper "
        "section 2), or normal images and one of patches (normal), scars (scar), either with chance 1/2 (union)",
    )
    seen: Literal["none", "class"] = Field(
        "none",
        description="labelled anomalies: left out (paper), or one more class, with the share of the batch that "
        "data.balance leaves",
    )
    shift: float = Field(
        0.05,
        ge=0,
        le=0.5,
        description="images of all classes move by up to this share of the side, down and across; the border is "
        "mirrored",
    )
    jitter: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="brightness, contrast, saturation and hue of all images change by up to this share, beside the "
        "0.1 of what is pasted",
    )
    head_depth: int = Field(
        1, ge=0, le=8, description="layers of 512 in the head, before the one of 128; it is dropped for scoring"
    )
    total_updates: TotalUpdates = Field(240, description=ABOUT)
    sgd_lr: float = Field(
        0.03, gt=0, le=1, description="learning rate of SGD at its first step, from which it falls as a cosine to 0"
    )
    trunk_share: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        "auto",
        description="share of method.sgd_lr for the trunk; `auto`: all of it with model.weights=random, else a tenth",
    )
    batch_norm: Literal["auto", "train", "eval"] = Field(
        "auto",
        description="as model.batch_norm of other methods: blocks that train normalise by each batch, or keep the "
        "statistics of their weights; `auto`: train with model.weights=random, else eval",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD (paper: 0.9)")
    weight_decay: float = Field(3e-5, ge=0, le=1, description="L2 penalty of all weights that train (paper: 3e-5)")
    l2_normalise: bool = Field(
        False, description="pooled features are brought to length 1 before the Gaussian (paper: no)"
    )
    max_normals: int = Field(
        2000, ge=10, le=100_000, description="most normal images that are fitted; more are drawn from by the seed"
    )


def section_of(config: TrialConfig) -> CutPasteSection:
    section = config.method
    assert isinstance(section, CutPasteSection)
    return section


def trunk_share(config: TrialConfig) -> float:
    """Of the learning rate, for the trunk."""
    share = section_of(config).trunk_share
    if share != "auto":
        return share
    return 1.0 if config.model.weights == "random" else PRETRAINED_SHARE


def batch_norm(config: TrialConfig) -> Literal["train", "eval"]:
    """How the blocks that train normalise."""
    asked = section_of(config).batch_norm
    if asked != "auto":
        return asked
    return "train" if config.model.weights == "random" else "eval"


def batch_parts(config: TrialConfig) -> tuple[int, int]:
    """Normal images of a batch, each of which stands in every class, and labelled anomalies."""
    section, size = section_of(config), config.budget.batch_size
    seen = size - config.normal_slots if section.seen == "class" else 0
    return (size - seen) // (1 + len(RULES[section.variant])), seen


def check(config: TrialConfig) -> None:
    """Raises ValueError, one line, for values that do not go together."""
    section, (normal, seen) = section_of(config), batch_parts(config)
    if normal < 1:
        classes = 1 + len(RULES[section.variant])
        raise ValueError(
            f"budget.batch_size={config.budget.batch_size} leaves {config.budget.batch_size - seen} images beside "
            f"{seen} labelled anomalies, and method.variant={section.variant} needs {classes}; use a larger batch or "
            "method.seen=none"
        )
    check_total(config, section.total_updates)
    _check_shuffled(config)


def _check_shuffled(config: TrialConfig) -> None:
    if not config.data.shuffle_labels:
        return
    if section_of(config).seen == "none":
        alone, way = "method.seen=none", "method.seen=class"
    elif config.n_anomalies == 0:
        alone, way = f"data.setting={config.data.setting}", "data.setting=general"
    else:
        return
    raise ValueError(
        f"data.shuffle_labels=true: with {alone} cutpaste learns from normal images alone, so there are no labels to "
        f"shuffle; leave it out, or use {way}"
    )


def summary(config: TrialConfig) -> str:
    """A configuration in a line, with what of the paper's recipe is otherwise."""
    section, model = section_of(config), config.model
    kept = f", {model.freeze} blocks kept" if model.freeze else ""
    seen = " and labelled anomalies" if section.seen == "class" and config.n_anomalies != 0 else ""
    return (
        f"CutPaste (Li et al. 2021), {section.variant}{seen}, Gaussian of {', '.join(model.tap_names)} of "
        f"{model.backbone} ({model.weights} weights{kept}), {config.data.image_size} px, seed {config.seed}"
        f"{_differs(config)}"
    )


def _differs(config: TrialConfig) -> str:
    """Which fields are not as in the paper's experiments, behind a summary; empty where all are."""
    paper, flat = ENTRY.published["cutpaste"]["paper"], config.flat()
    sections = {**paper, "method": CutPasteSection().model_dump() | paper["method"]}
    sections["model"] = {"backbone": "resnet18", **paper["model"]}
    wanted = {f"{name}.{field}": value for name, part in sections.items() for field, value in part.items()}
    # the length is that of the updates, and how many normals are fitted is a bound
    loose = ("budget.epochs", "method.max_normals")
    own = [name for name, value in wanted.items() if name not in loose and flat[name] != value]
    return f"; other than published (65,536 updates of ResNet-18 from nothing, 256 px): {', '.join(own)}" if own else ""


# the method's own batch_norm stands in for the model's
_USES = tuple(name for name in TRUNK if not name.startswith("model.batch_norm"))

_HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "method.variant": {"values": ["3way", "union", "normal", "scar"]},
    "method.sgd_lr": {"type": "float", "low": 3.0e-3, "high": 1.0e-1, "log": True},
    "method.trunk_share": {"type": "float", "low": 0.01, "high": 1.0, "log": True},
    "method.shift": {"values": [0.1, 0.05, 0.0]},
    "method.jitter": {"values": [0.3, 0.2, 0.1, 0.0]},
    "method.head_depth": {"type": "int", "low": 0, "high": 2},
    "method.l2_normalise": {"values": [False, True]},
    "method.seen": {"values": ["none", "class"]},
}
"""As under `parameters:` of a space file; of values in a list the dearest comes first, which a dry run times."""


def _published() -> Mapping[str, Any]:
    text = files("sctune.methods.cutpaste").joinpath("published.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


ENTRY = MethodEntry(
    name="cutpaste",
    description="a trunk trained to tell pasted patches and scars from normal images, and a Gaussian of its features",
    section=CutPasteSection,
    implementation="sctune.methods.cutpaste.method:CutPasteMethod",
    uses=_USES,
    conditions={"method.seen": LABELLED},
    hyperparameters=_HYPERPARAMETERS,
    published=_published(),
    check=check,
    learns_from_anomalies=lambda config: section_of(config).seen == "class",
    summary=summary,
)
