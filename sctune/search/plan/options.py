"""What a user can ask of a search: the command line's options, one field each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field

from sctune.config import SelectionMode, Setting
from sctune.metrics.objective import DEFAULT


class SearchOptions(BaseModel):
    """Options of `sctune search`; None means that the profile, the space or the machine decides."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    space: str = Field("threshold_patch", description="shipped space or YAML file")
    name: str | None = Field(None, description="study name; none: space, date and time")
    profile: str | None = Field(None, description="smoke, cpu, gpu or paper; none: gpu where there is one, else cpu")
    method: str | None = Field(None, description="saliencycut, dra or devnet; none: the profile's, saliencycut")
    data: str | None = Field(None, description="elpv, a folder or a CSV file")
    normal: str | None = Field(None, description="folder of normal images, with `anomalous`")
    anomalous: str | None = Field(None, description="folder of anomalous images, with `normal`")
    categories: tuple[str, ...] = Field((), description="sub-folders of the data; a task each")
    setting: Setting = "general"
    known_classes: tuple[str, ...] = Field((), description="hard setting: a task for each class")
    n_anomalies: int | Literal["all"] | None = None
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(
        (), description="a task for each; none: the profile's seed"
    )
    selection: SelectionMode = "auto"
    objective: str = Field(DEFAULT, description="figure of the selection images that decides between trials")
    partition_seed: int = Field(0, ge=0, lt=2**32)
    trials: int | None = None
    time_budget_s: float | None = Field(None, description="seconds over all launches of the study")
    sampler: str | None = None
    sampler_seed: int = Field(0, ge=0, lt=2**32)
    scheduler: str | None = None
    gpus_per_trial: float | None = None
    cpus_per_trial: float | None = None
    max_concurrent: int | None = None
    overrides: Mapping[str, Any] = Field(default_factory=dict, description="dotted configuration values (--set)")
    skip_corrupt: bool = False
    allow_duplicates: bool = False
    study_root: Path | None = None
    storage_path: str | None = None
    tracking_uri: str | None = None
    storage: str | None = Field(None, description="Optuna storage URL; none: SQLite in the study's folder")
    address: str | None = Field(None, description="Ray cluster; none: a local one")
    checkpoint_interval: float = Field(60.0, ge=0)
    keep_best: int = Field(3, ge=1)
    max_disk: ByteSize | None = Field(None, ge=1, description="bytes that the study may take; none: no limit")
