"""What a user can ask of a search, one field each: command line, Python and the study's manifest share them.

A field's description is the help of its option, its panel the group that `sctune search --help` shows it in. Times,
sizes and lists may be given as people write them: 2h, 20GB, "42,43".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ByteSize, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo, field_validator

from sctune.config import SelectionMode, Setting, parse_assignments
from sctune.errors import ConfigError
from sctune.search.rules.base import LEAST_CONFIDENCE
from sctune.search.study.options import BUDGET, DATA, MACHINES, PLACES, SPACE, StudyOptions, asked

OPTION_NAMES = {
    "categories": "category",
    "known_classes": "known_class",
    "overrides": "set",
    "priors": "prior",
    "time_budget_s": "time_budget",
}
"""Field -> name of its option where that is another one."""

Gpus = float | Literal["auto"] | None
"""GPUs of a trial as they are asked for: None: one where there are any."""


MAX_REMARK = 2000
"""Characters of an owner or of notes; MLflow takes tags of some thousand."""

MOST_SHARE = 1000.0
"""The largest weight of a search on a shared cluster."""


class SearchOptions(StudyOptions):
    """Options of `sctune search`; None means that the profile, the space or the machine decides."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    space: str = asked(SPACE, "threshold_patch", "A name that `sctune spaces` lists, or a YAML file.")
    name: str | None = asked(PLACES, None, "Study name; default: space, date and time.")
    profile: str | None = asked(SPACE, None, "smoke, cpu, gpu or paper; default: what the machine has.")
    method: str | None = asked(
        SPACE,
        None,
        "Start from saliencycut, dra, devnet, gaussian, patch_bank, cutpaste, kdad, kdad_lite0, kdad_resnet18, "
        "mlep_image, saoe_no_outliers or ssm_reading; default: SaliencyCut as the profile has it.",
    )
    data: str | None = asked(DATA, None, "elpv, a folder (MVTec layout or ok/ + nok/) or a CSV file.")
    normal: str | None = asked(DATA, None, "Folder of normal images, with --anomalous.")
    anomalous: str | None = asked(DATA, None, "Folder of anomalous images, with --normal.")
    categories: tuple[str, ...] = asked(DATA, (), "Sub-folder of the data; repeat for several tasks.")
    setting: Setting = asked(DATA, "general", "general, hard or anomaly-free.")
    known_classes: tuple[str, ...] = asked(DATA, (), "Anomaly class seen in training (hard setting).")
    n_anomalies: int | Literal["all"] | None = asked(DATA, None, "Labelled anomalies trained on: a number or all.")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = asked(
        DATA, (), "Comma-separated seeds; a trial is scored over all of them."
    )
    selection: SelectionMode = asked(DATA, "auto", "What decides: auto, extra, seen, cross, proxy; test as the paper.")
    trials: int | None = asked(BUDGET, None, "Number of trials; default: the profile's.", ge=1)
    replicates: int | None = asked(
        BUDGET, None, "Times that a trial is trained, with a seed each; `--scheduler race`: at most.", ge=1, le=100
    )
    sampler: str | None = asked(SPACE, None, "tpe, gp, cmaes, nsga2, qmc, random or grid.")
    scheduler: str | None = asked(
        BUDGET, None, "asha, hyperband, asha-promotion, hyperband-promotion, race, median or none."
    )
    priors: tuple[str, ...] = asked(
        SPACE, (), "Begin around what is believed: paper, an earlier STUDY or a FILE.yaml; repeatable."
    )
    free_running: bool = asked(
        SPACE, False, "Trials are drawn and judged by whatever has ended: never waits, and never the same search twice."
    )
    grace: int | None = asked(BUDGET, None, "First rung of the scheduler, in epochs; default: the profile's.", ge=1)
    factor: int | None = asked(BUDGET, None, "One of so many passes a rung; default: the profile's.", ge=2)
    stop_confidence: float | None = asked(
        BUDGET,
        None,
        "A trial is stopped where the chance that it would end among the survivors is below 1 minus this, in [.5, 1); "
        "default: where it is not among them now, as .5.",
        ge=LEAST_CONFIDENCE,
        lt=1,
    )
    gpus_per_trial: Annotated[float, Field(ge=0)] | Literal["auto"] | None = asked(
        MACHINES,
        None,
        "A number, fractions share a GPU; or auto: as many on a GPU as its memory holds, up to four, by what each "
        "class of configurations takes in a short try; default: one each.",
    )
    cpus_per_trial: float | None = asked(MACHINES, None, "CPU cores (threads) of a trial.", ge=0.01)
    max_concurrent: int | None = asked(MACHINES, None, "Trials at a time; default: all that fit.", ge=1)
    share: float | None = asked(
        MACHINES,
        None,
        "Weight with which the searches of a cluster that say --share divide it, 1 for equal parts; default: this one "
        "takes what Ray gives it.",
        ge=0,
        le=MOST_SHARE,
    )
    references: bool | None = asked(
        SPACE, None, "Before the trials, methods that train nothing, to compare with; default: the profile's."
    )
    overrides: Mapping[str, Any] = asked(SPACE, {}, "key=value of the configuration; repeatable.")
    skip_corrupt: bool = asked(DATA, False, "Leave out unreadable images.")
    allow_duplicates: bool = asked(DATA, False, "Keep byte-identical images in one pool, instead of refusing them.")
    study_root: Path | None = asked(PLACES, None, "Folder of the studies (default: SCTUNE_HOME/studies).")
    storage_path: str | None = asked(PLACES, None, "Checkpoints: a folder or s3:// URI that all nodes see.")
    tracking_uri: str | None = asked(
        PLACES,
        None,
        "MLflow server (http://...), database or folder; default: MLFLOW_TRACKING_URI, else local.",
    )
    storage: str | None = asked(
        PLACES,
        None,
        "Record: postgresql://USER@HOST/DB or sqlite:///FILE; default: SQLite in the study folder.",
    )
    address: str | None = asked(MACHINES, None, "Ray cluster, or auto; default: this machine.")

    @field_validator("time_budget_s", mode="before")
    @classmethod
    def _time(cls, value: Any) -> Any:
        return duration(value, "--time-budget") if isinstance(value, str) else value

    @field_validator("max_disk", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        return size(value, "--max-disk") if isinstance(value, str) else value

    @field_validator("n_anomalies", mode="before")
    @classmethod
    def _amount(cls, value: Any) -> Any:
        if not isinstance(value, str) or value == "all":
            return value
        if not value.isdigit() or int(value) < 1:
            raise ConfigError(f"--n-anomalies {value!r}: give a number from 1 on, or all")
        return int(value)

    @field_validator("gpus_per_trial", mode="before")
    @classmethod
    def _gpus(cls, value: Any) -> Any:
        return gpus(value) if isinstance(value, str) else value

    @field_validator("owner", "notes")
    @classmethod
    def _remark(cls, value: str | None, info: ValidationInfo) -> str | None:
        return value if value is None else remark(value, f"--{info.field_name}")

    @field_validator("seeds", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if not re.fullmatch(r"\d+(,\d+)*", value):
            raise ConfigError(f"--seeds {value!r}: give whole numbers with commas, for example 42,43,44")
        return tuple(int(part) for part in value.split(","))

    @field_validator("overrides", mode="before")
    @classmethod
    def _assignments(cls, value: Any) -> Any:
        return parse_assignments(list(value)) if isinstance(value, list | tuple) else value

    @staticmethod
    def from_command(given: Mapping[str, Any]) -> SearchOptions:
        """From options by their names on the command line (with `_`); None means the default.

        Raises ConfigError, which names the option, for a value that it cannot have.
        """
        names = {OPTION_NAMES.get(field, field): field for field in SearchOptions.model_fields}
        values = {names[name]: value for name, value in given.items() if value is not None}
        try:
            return SearchOptions.model_validate(values)
        except ValidationError as problem:
            first = problem.errors()[0]
            field = str(first["loc"][0])
            name = OPTION_NAMES.get(field, field).replace("_", "-")
            raise ConfigError(f"--{name} {first['input']!r}: {first['msg']}") from None


def duration(text: str, option: str) -> float:
    """Seconds of 90s, 30m, 2h or 1d. Raises ConfigError, which names the option."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|d)?", text)
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"{option} {text!r}: give a time such as 90s, 30m, 2h or 1d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2] or "s"]


def gpus(text: str) -> float | Literal["auto"]:
    """Of --gpus-per-trial: a number from 0 on, or auto. Raises ConfigError."""
    if text == "auto":
        return "auto"
    if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", text):
        raise ConfigError(f"--gpus-per-trial {text!r}: give a number from 0 on, for example 0.5, or auto")
    return float(text)


def remark(text: str, option: str) -> str:
    """An owner or notes. Raises ConfigError, which names the option, for more than MLflow shows."""
    if len(text) > MAX_REMARK:
        raise ConfigError(f"{option}: {len(text)} characters; write {MAX_REMARK} at most")
    return text.strip()


def size(text: str, option: str) -> int:
    """Bytes of 500MB or 20GB. Raises ConfigError, which names the option."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise ConfigError(f"{option} {text!r}: give a size such as 500MB or 20GB") from None
