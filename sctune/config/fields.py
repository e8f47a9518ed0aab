"""The fields of a training, section by section: what each means, its range, and where its default comes from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from sctune.backbones.registry import backbone_entry
from sctune.config.section import Section, joined_names
from sctune.errors import SctuneError


def _known_backbone(name: str) -> str:
    try:
        return backbone_entry(name).name
    except SctuneError as problem:
        raise ValueError(f"model.backbone={name!r}: {problem}") from None


class AugmentConfig(Section):
    kind: Literal["saliencycut", "cutmix", "cutmix_pair", "cutpaste", "none"] = Field(
        "saliencycut",
        description="maker of pseudo anomalies: SaliencyCut, CutMix as DRA has it (a patch of the same image), CutMix "
        "of a pair, CutPaste; `none` trains on normal and seen images alone",
    )
    cutpaste: Literal["normal", "scar", "union"] = Field(
        "union", description="kind=cutpaste: a patch, a thin turned scar, or either with chance 1/2 (CutPaste)"
    )
    threshold: float = Field(
        0.4, ge=0, le=1, description="saliency above it is kept from the receiver (paper 4.8: 0.4)"
    )
    threshold_mode: Literal["value", "area"] = Field(
        "value", description="threshold on the map's value (paper), or on its per-image quantile: the pasted share"
    )
    grid_size: int = Field(18, ge=2, description="saliency is pooled to this many cells a side (paper: 18)")
    kernel: Literal["aligned", "official"] = Field(
        "official", description="B-spline smoothing: as the public code has it, or with cells at their true centres"
    )
    region: Literal["nonsalient", "salient"] = Field(
        "nonsalient", description="which part of the donor is pasted (Alg. 1: the non-salient part)"
    )
    refresh: Literal["iteration", "epoch"] = Field(
        "iteration",
        description="make pseudo anomalies in every iteration (public code), or a quarter of the slots' number "
        "before each epoch (paper), which the epoch's slots then draw from",
    )
    on_flat: Literal["rect", "drop", "official"] = Field(
        "rect", description="constant saliency: paste a rectangle, train the slot as normal, or as the public code"
    )
    allow_self: bool = Field(
        False, description="kind=saliencycut: let a donor and its receiver be the same file (public code: yes)"
    )
    paste_valid_only: bool = Field(
        True,
        description="paste only where donor and receiver hold real pixels, not rotation's corners or a mirrored border",
    )
    rotation: Literal["free", "quarter", "none"] = Field(
        "free",
        description="training images turn by any angle up to rotation_degrees (public code), by quarter turns, which "
        "leave no corners, or not at all",
    )
    rotation_degrees: float = Field(180.0, ge=0, le=180, description="rotation=free: uniform angle up to this")
    rotation_fill: Literal["zero", "reflect"] = Field(
        "zero", description="rotation=free: corners of a turned image are black or mirrored"
    )
    flip: Literal["none", "horizontal", "vertical", "both"] = Field(
        "none", description="training images are mirrored left to right, top to bottom, or both, each with chance 1/2"
    )
    shift: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="training images move by up to this share of the side, down and across; the border is mirrored",
    )
    brightness: float = Field(
        0.0, ge=0, lt=1, description="training images get brighter or darker by up to this share of each value"
    )
    contrast: float = Field(
        0.0, ge=0, lt=1, description="training images get up to this share more or less contrast about their mean grey"
    )

    @property
    def donor_may_be_receiver(self) -> bool:
        """A pair of one image would leave CutMix's receiver as it is, and still call it an anomaly."""
        return self.allow_self and self.kind == "saliencycut"


class ModelConfig(Section):
    heads: Literal["two_head_patch", "two_head_latent", "four_head", "single_head"] = Field(
        "two_head_patch",
        description="normal and patch-residual head (SaliencyCut), normal and latent-residual head, normal, seen, "
        "pseudo and latent-residual head (DRA), or one head over all cells (DevNet)",
    )
    normal_head: Literal["mlp", "gaussian", "mixture"] = Field(
        "mlp",
        description="what models the normal images: the normal head alone (paper), or besides it a Gaussian, or a few "
        "(`mixture`), of features of the backbone, as method `gaussian` has it",
    )
    density_trunk: Literal["frozen", "trained"] = Field(
        "frozen",
        description="what the density of normal_head looks through: a frozen copy of the backbone, fitted once, or the "
        "trained one, fitted after every epoch",
    )
    density_features: Literal["pooled", "cells"] = Field(
        "pooled",
        description="what the density of normal_head is of: pooled maps, or cells, of which the share score.top_k with "
        "the largest distances counts",
    )
    density_components: int = Field(
        3, ge=2, le=16, description="normal_head=mixture: kinds of normal, found by k-means; the nearest one counts"
    )
    density_push: Annotated[float, Field(ge=0, le=5)] | Literal["auto"] = Field(
        "auto", description="of the density beside the heads, as method.push of `gaussian`"
    )
    reference_count: int = Field(
        5, ge=1, le=64, description="normal images that the latent residual is taken from (DRA: 5)"
    )
    reference_source: Literal["normals", "training"] = Field(
        "normals",
        description="references: clean normals, fixed when scoring, or drawn from the training set with its pseudo "
        "anomalies, anew for each scoring (DRA's public code)",
    )
    backbone: Annotated[str, AfterValidator(_known_backbone)] = Field(
        "resnet18", description="a registered feature extractor or `timm/NAME`; the paper's is resnet18"
    )
    tap: Literal["deep", "middle"] = Field("deep", description="feature map at stride 32 (paper) or 16")
    taps: Annotated[str | None, BeforeValidator(joined_names)] = Field(
        None,
        description="several feature maps on one grid, in place of `tap`: names such as stride8,stride16, as a list or "
        "with commas; none: `tap`",
    )
    weights: str = Field("imagenet", description="`imagenet`, `random`, or a state-dict file (safetensors or torch)")
    freeze: int = Field(0, ge=0, description="leading backbone blocks kept fixed, the stem counted as the first")
    batch_norm: Literal["train", "eval"] = Field(
        "train",
        description="blocks that are not frozen normalise by each batch and keep running statistics of it (public "
        "code), or by the statistics of their weights file, which then stay; scale and shift are trained either way",
    )
    batch_norm_momentum: float | None = Field(
        None,
        gt=0,
        le=1,
        description="batch_norm=train: share of each batch in the running statistics; none: the backbone's own",
    )
    n_scales: Literal[1, 2] = Field(2, description="image pyramid: full size, and half size too (public code 2)")
    pyramid_interpolation: Literal["nearest", "bilinear"] = Field("nearest", description="how the half size is made")
    patch_count: int = Field(4, ge=2, le=9, description="patches P of the residual (paper eq. 8: 4)")
    patch_place: Literal["diag", "grid2d"] = Field(
        "diag", description="patches on the diagonal (public code) or anywhere"
    )
    patch_size: Literal["half_plus1", "half", "sqrt", "fit"] = Field(
        "half_plus1", description="side of a patch in cells"
    )
    patch_per_sample: bool = Field(False, description="draw patch positions per image instead of per batch")
    patch_evaluation: Literal["exact", "fixed", "random"] = Field(
        "exact", description="scores from all patch sets (fixed list where over 256), a fixed list, or one random draw"
    )
    top_k: float = Field(0.1, gt=0, le=1, description="share of the highest cells that make a score (paper: 10 %)")

    @property
    def tap_names(self) -> tuple[str, ...]:
        """The feature maps that are taken out of the backbone."""
        return (self.tap,) if self.taps is None else tuple(self.taps.split(","))


class ScoreConfig(Section):
    """How a trained detector scores; nothing here changes its training (`sctune rescore` tries it on a checkpoint)."""

    normal: float = Field(1.0, ge=0, le=10, description="weight of the normal head, beside 1 for the anomaly head")
    seen: float = Field(1.0, ge=0, le=10, description="weight of the seen head (DRA), beside 1 for the latent head")
    pseudo: float = Field(1.0, ge=0, le=10, description="weight of the pseudo head (DRA), beside 1 for the latent head")
    density: Annotated[float, Field(ge=0, le=10)] | Literal["auto"] = Field(
        "auto",
        description="weight of the density of the normal images (model.normal_head), beside 1 for the heads; both in "
        "standard deviations of held-out normal images; `auto`: by how much the heads can have learned of the defects",
    )
    full_scale: float = Field(
        0.5, ge=0, le=1, description="share of the full-size scale; the half-size one has the rest"
    )
    top_k: float | None = Field(
        None, gt=0, le=1, description="share of the highest cells when scoring; none: model.top_k, as in training"
    )
    turns: Literal[1, 4] = Field(
        1, description="4: mean score of the image in all quarter turns, for four times the time; 1: as it is"
    )


class LossConfig(Section):
    margin: float = Field(5.0, gt=0, description="deviation margin a in standard deviations (paper eq. 2: 5)")
    prior: Literal["exact", "sampled"] = Field(
        "exact", description="reference scores: N(0,1) itself or 5000 draws per call"
    )


class OptimConfig(Section):
    lr: float = Field(2e-4, gt=0, le=1, description="Adam's learning rate (public code 2e-4)")
    weight_decay: float = Field(1e-5, ge=0, le=1, description="L2 penalty (public code 1e-5)")
    step_fraction: float = Field(1 / 3, gt=0, le=1, description="the rate drops after every such share of the epochs")
    step_when: Literal["end", "start"] = Field(
        "end", description="the epoch counts towards a drop when it has ended, or when it begins (DRA's public code)"
    )
    gamma: float = Field(0.1, gt=0, le=1, description="factor of each drop")
    clip_norm: float = Field(1.0, gt=0, description="largest global gradient norm (public code 1)")
    final_statistics: Literal["running", "batches", "normals"] = Field(
        "running",
        description="batch norm after the last epoch: the running statistics, or their mean over an epoch's images, "
        "in batches as training makes them or normal ones as they are scored",
    )
    average: Literal["none", "ema", "mean"] = Field(
        "none",
        description="weights that score: the trained ones, or an average of those after each step, exponential (EMA) "
        "or equal (SWA)",
    )
    average_decay: float = Field(0.95, gt=0, lt=1, description="average=ema: what is kept of the average in each step")
    average_from: float = Field(
        0.5, ge=0, lt=1, description="average=mean: share of the steps that are over before it begins"
    )


class BudgetConfig(Section):
    epochs: int = Field(30, ge=1, description="epochs of a full run (paper 30)")
    iterations: int = Field(20, ge=1, description="training steps per epoch (paper 20)")
    batch_size: int = Field(48, ge=3, description="images per step (paper 48)")


class RuntimeConfig(Section):
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="`auto` takes a GPU where there is one"
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field("fp32", description="arithmetic of convolutions and products")
    channels_last: bool = Field(True, description="memory layout; faster on CPUs and tensor cores")
    compile: bool = Field(False, description="torch.compile; pays on long GPU runs only")
    deterministic: bool = Field(True, description="deterministic kernels: the same seed gives the same numbers")


FIXED_FIELDS = (
    # they draw the pools: a trial that varied them would train on another trial's test images
    "data.n_anomalies",
    "data.anomalies",
    "data.partition_seed",
    "data.calibration_share",
    "data.group",
    "data.selection",
    # they choose the scored images, which all trials must share to be compared
    "data.selection_limit",
    "data.skip_corrupt",
    "data.allow_duplicates",
    # all trials see the same pixels of the same files, and the range is found once per study
    "data.range",
    "data.page",
    "data.alpha",
    "data.pixel_limit",
    "data.reduce",
    # rungs and resolved weights belong to the study
    "budget.epochs",
    "model.weights",
)
"""Fields that are the same for all trials of a study; a space may set them, and must not vary them."""
