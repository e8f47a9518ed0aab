"""The family of SaliencyCut, DRA and DevNet, as configurations, spaces and plans see it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import yaml

from sctune.backbones.registry import feature_side
from sctune.config import Conditions, DeviationSection, MethodEntry, TrialConfig
from sctune.errors import ConfigError
from sctune.geometry import scale_sizes
from sctune.methods.deviation.density import density_config
from sctune.methods.deviation.geometry import patch_offsets, patch_side

_SALIENCY: Conditions = (("augment.kind", ("saliencycut",)),)
_PATCHES: Conditions = (("model.heads", ("two_head_patch",)),)
_DENSITY: Conditions = (("model.normal_head", ("gaussian", "mixture")),)
_REFERENCES: Conditions = (("model.heads", ("two_head_latent", "four_head")),)

CONDITIONS: dict[str, Conditions] = {
    **{
        f"augment.{name}": _SALIENCY
        for name in ("threshold", "threshold_mode", "grid_size", "kernel", "region", "on_flat", "paste_valid_only")
    },
    "augment.cutpaste": (("augment.kind", ("cutpaste",)),),
    "augment.refresh": (("augment.kind", ("saliencycut", "cutmix", "cutmix_pair", "cutpaste")),),
    "augment.allow_self": _SALIENCY,
    **{f"augment.rotation_{name}": (("augment.rotation", ("free",)),) for name in ("degrees", "fill")},
    **{f"model.patch_{name}": _PATCHES for name in ("count", "place", "size", "per_sample", "evaluation")},
    **{f"model.reference_{name}": _REFERENCES for name in ("count", "source")},
    "model.pyramid_interpolation": (("model.n_scales", (2,)),),
    "model.density_trunk": _DENSITY,
    "model.density_features": _DENSITY,
    "model.density_components": (("model.normal_head", ("mixture",)),),
    "model.density_push": (*_DENSITY, ("data.setting", ("general", "hard"))),
    "score.density": _DENSITY,
    "model.batch_norm_momentum": (("model.batch_norm", ("train",)),),
    "optim.average_decay": (("optim.average", ("ema",)),),
    "optim.average_from": (("optim.average", ("mean",)),),
    "score.full_scale": (("model.n_scales", (2,)),),
    # DevNet has one head, which nothing is weighed against
    "score.normal": (("model.heads", ("two_head_patch", "two_head_latent", "four_head")),),
    **{f"score.{name}": (("model.heads", ("four_head",)),) for name in ("seen", "pseudo")},
}

HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "model.heads": {"values": ["two_head_patch", "two_head_latent", "four_head"]},
    "augment.kind": {"values": ["saliencycut", "cutmix", "cutpaste"]},
    "augment.threshold": {"type": "float", "low": 0.1, "high": 0.9},
    "model.normal_head": {"values": ["mlp", "gaussian", "mixture"]},
    "score.density": {"values": ["auto", 1.0, 4.0]},
    "model.patch_count": {"type": "int", "low": 2, "high": 4},
    "model.top_k": {"type": "float", "low": 0.02, "high": 0.3, "log": True},
    "optim.lr": {"type": "float", "low": 2.0e-5, "high": 2.0e-3, "log": True},
    "loss.margin": {"type": "float", "low": 2.0, "high": 10.0},
}
"""As under `parameters:` of a space file."""


def check(config: TrialConfig) -> None:
    """Raises ValueError, one line, for values that do not go together."""
    _check_something_anomalous(config)
    _check_patches(config)
    _check_density(config)
    grid, size = config.augment.grid_size, config.data.image_size
    if config.augment.kind == "saliencycut" and grid > size // 2:
        raise ValueError(f"augment.grid_size={grid}: at most half of data.image_size={size} cells fit")


def unrepeatable(config: TrialConfig) -> str | None:
    """Why scores differ from call to call, with the way out; None where they do not."""
    if config.model.heads != "two_head_patch" or config.model.patch_evaluation != "random":
        return None
    return (
        "model.patch_evaluation=random draws its patches anew for every score; use model.patch_evaluation=exact or "
        "fixed"
    )


def summary(config: TrialConfig) -> str:
    """A configuration in a line."""
    model = config.model
    of = "cells of normal images" if model.density_features == "cells" else "normal images"
    beside = "" if model.normal_head == "mlp" else f" beside a {model.normal_head} of {of}"
    return (
        f"{model.heads}{beside} with {config.augment.kind} pseudo anomalies on {model.backbone}, "
        f"{config.data.image_size} px, {model.n_scales} scale(s), seed {config.seed}"
    )


def _check_something_anomalous(config: TrialConfig) -> None:
    if config.n_anomalies != 0:
        return
    if config.model.heads == "single_head":
        more = " and augment.kind=saliencycut" if config.augment.kind == "none" else ""
        raise ValueError(
            "model.heads=single_head (DevNet) learns from labelled anomalies, and data.setting=anomaly-free has "
            f"none; use model.heads=two_head_patch{more}, or another setting"
        )
    if config.augment.kind == "none":
        raise ValueError(
            "augment.kind=none with data.setting=anomaly-free leaves nothing anomalous to learn from; use "
            "augment.kind=saliencycut or another setting"
        )


def _check_patches(config: TrialConfig) -> None:
    model = config.model
    if model.heads != "two_head_patch":
        return
    for scale in scale_sizes(config.data.image_size, model.n_scales):
        side = feature_side(scale, model.backbone, model.tap_names)
        patch = patch_side(side, model.patch_count, model.patch_size)
        positions = len(patch_offsets(side, patch, model.patch_place)) if patch >= 1 else 0
        if positions < model.patch_count:
            raise ValueError(
                f"model.patch_count={model.patch_count}: the {scale} px scale gives a map of S={side} cells with "
                f"O={positions} {model.patch_place} positions, and P={model.patch_count} are needed; use a larger "
                "data.image_size, model.n_scales=1, model.tap=middle or model.patch_place=grid2d"
            )


def _check_density(config: TrialConfig) -> None:
    if config.model.normal_head == "mlp":
        return
    if config.data.shuffle_labels:
        raise ValueError(
            f"data.shuffle_labels=true: the density of model.normal_head={config.model.normal_head} draws no batches "
            "to shuffle labels in; use model.normal_head=mlp"
        )
    try:
        density_config(config)
    except ConfigError as problem:
        raise ValueError(f"model.normal_head={config.model.normal_head}: {problem}") from None


def _implementation(config: TrialConfig) -> str:
    if config.model.normal_head == "mlp":
        return "sctune.methods.deviation.method:DeviationMethod"
    if config.model.density_trunk == "trained":
        return "sctune.methods.deviation.joined:JoinedMethod"
    return "sctune.methods.deviation.fused:FusedMethod"


def _published() -> Mapping[str, Any]:
    text = files("sctune.methods.deviation").joinpath("published.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


ENTRY = MethodEntry(
    name="deviation",
    description="heads over a trained backbone, told apart by a deviation loss: SaliencyCut, DRA, DevNet",
    section=DeviationSection,
    implementation=_implementation,
    uses=("augment", "model", "score", "loss", "optim"),
    conditions=CONDITIONS,
    hyperparameters=HYPERPARAMETERS,
    published=_published(),
    scoring=("score", "model.patch_evaluation"),
    check=check,
    unrepeatable=unrepeatable,
    summary=summary,
)
