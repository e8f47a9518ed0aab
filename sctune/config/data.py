"""The images of a configuration: where they are, how they are read, and which are trained on."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sctune.config.section import Section

Setting = Literal["general", "hard", "anomaly-free"]
SelectionMode = Literal["auto", "extra", "seen", "cross", "proxy", "test"]


def range_ends(text: str) -> tuple[float, float] | None:
    """The values of `data.range` that are black and white; None for `auto` and `container`, which name none.

    Raises ValueError for anything but auto, container, bits:N and MIN,MAX.
    """
    if text in ("auto", "container"):
        return None
    bits = re.fullmatch(r"bits:(\d{1,2})", text)
    if bits and 1 <= int(bits[1]) <= 32:
        return 0.0, float(2 ** int(bits[1]) - 1)
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if math.isfinite(low) and math.isfinite(high) and low < high:
        return low, high
    raise ValueError(
        f"data.range={text!r}: write auto, container, bits:N with N from 1 to 32, or MIN,MAX with MIN below MAX"
    )


def _checked_range(text: str) -> str:
    range_ends(text)
    return text


class DataConfig(Section):
    source: str = Field("elpv", description="`elpv` (installed package), a folder or a CSV file")
    category: str | None = Field(None, description="sub-folder of the source, as in MVTec AD; none: the source itself")
    setting: Setting = Field("general", description="which anomalies are seen in training (paper section 4.1)")
    known_class: str | None = Field(None, description="the anomaly class seen in training; hard setting only")
    n_anomalies: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        10, description="labelled anomalies trained on; ignored in the anomaly-free setting (paper: 1 and 10)"
    )
    anomalies: Literal["drawn", "all"] = Field(
        "drawn",
        description="of the development pool, which n_anomalies draws: the n_anomalies drawn by the seed, or all of it",
    )
    balance: float = Field(2 / 3, gt=0, lt=1, description="share of a batch drawn from normal images (public code 2/3)")
    selection: SelectionMode = Field("auto", description="what decides between trials; `test` is the paper's way")
    partition_seed: int = Field(
        0, ge=0, lt=2**32, description="draws the development and the test pool, once per study"
    )
    calibration_share: float = Field(
        0.15, gt=0, le=0.5, description="of the development normals, which thresholds are set by and none is trained on"
    )
    group: str | None = Field(None, description="regular expression; its first group in the path names the source unit")
    image_size: int = Field(448, ge=32, le=2048, description="image side in pixels (paper 448)")
    resize: Literal["stretch", "crop", "pad"] = Field(
        "stretch", description="to a square: ignore the aspect (public code), crop the centre, or pad with black"
    )
    range: Annotated[str, AfterValidator(_checked_range)] = Field(
        "auto",
        description="values of images of more than 8 bits that are black and white: `bits:N` (0 to 2^N - 1), "
        "`MIN,MAX`, `container` (all that the file type holds), or `auto`: the depth that the training normals use",
    )
    page: int | None = Field(
        None, ge=1, description="page or frame that is read of a file with several; none: such files are refused"
    )
    alpha: Literal["refuse", "black", "white", "drop"] = Field(
        "refuse", description="transparent pixels: refused, laid on black or white, or read as the colours they hide"
    )
    pixel_limit: int = Field(64_000_000, ge=1, description="most pixels of an image; larger ones are refused")
    reduce: bool = Field(
        True, description="large JPEGs are decoded at 1/2 to 1/8, at least twice image_size, and then resized"
    )
    selection_limit: int | None = Field(
        None, ge=4, description="most images per class scored after each epoch; none: all held-out ones"
    )
    shuffle_labels: bool = Field(
        False,
        description="control: train on labels shuffled within each batch; the AUROC must fall to the untrained one's",
    )
    skip_corrupt: bool = Field(False, description="leave out images that cannot be decoded, and count them")
    allow_duplicates: bool = Field(
        False, description="keep byte-identical images together in one pool, instead of refusing them across pools"
    )


class Task(Section):
    """What a configuration is scored on; a trial is trained on every task of the study."""

    source: str = "elpv"
    category: str | None = None
    setting: Setting = "general"
    known_class: str | None = None
    seed: int = Field(42, ge=0, lt=2**32)
    fold: int | None = Field(None, ge=0, description="selection modes `seen` and `cross`: the fold held out")
    folds: int | None = Field(None, ge=2)

    @property
    def key(self) -> str:
        """Short unique name, usable in metric names and file names."""
        fold = None if self.fold is None else f"fold{self.fold + 1}of{self.folds}"
        parts = [self.category, self.known_class, f"seed{self.seed}", fold]
        return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", part) for part in parts if part)


TASK_FIELDS = ("data.source", "data.category", "data.setting", "data.known_class", "seed")
"""Configuration fields that a task sets; a space must not."""
