"""Options: name, type and help, one line each. Those of `sctune search`, and what several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from sctune.errors import ConfigError

Space = Annotated[str, typer.Option(help="Shipped space (see `sctune spaces`) or a YAML file.")]
Name = Annotated[str | None, typer.Option(help="Study name; default: space, date and time.")]
Profile = Annotated[str | None, typer.Option(help="smoke, cpu, gpu or paper; default: what the machine has.")]
Method = Annotated[
    str | None, typer.Option(help="Start from saliencycut, dra or devnet; default: the profile's, saliencycut.")
]
Data = Annotated[str | None, typer.Option(help="elpv, a folder (MVTec layout or ok/ + nok/) or a CSV file.")]
Normal = Annotated[str | None, typer.Option(help="Folder of normal images, with --anomalous.")]
Anomalous = Annotated[str | None, typer.Option(help="Folder of anomalous images, with --normal.")]
Category = Annotated[list[str] | None, typer.Option(help="Sub-folder of the data; repeat for several tasks.")]
Setting = Annotated[str, typer.Option(help="general, hard or anomaly-free.")]
KnownClass = Annotated[list[str] | None, typer.Option(help="Anomaly class seen in training (hard setting).")]
NAnomalies = Annotated[str | None, typer.Option(help="Labelled anomalies trained on: a number or all.")]
Seeds = Annotated[str | None, typer.Option(help="Comma-separated seeds; a trial is scored over all of them.")]
Selection = Annotated[str, typer.Option(help="What decides: auto, extra, seen, proxy or test (paper's way).")]
Objective = Annotated[str, typer.Option(help="Figure that decides: auroc, ap or fpr95 (or a package's).")]
PartitionSeed = Annotated[int, typer.Option(help="Draws the development and the test pool.")]
Trials = Annotated[int | None, typer.Option(min=1, help="Number of trials; default: the profile's.")]
TimeBudget = Annotated[str | None, typer.Option(help="For example 90s, 30m, 2h; over all launches.")]
Sampler = Annotated[str | None, typer.Option(help="tpe, gp, cmaes, nsga2, qmc, random or grid.")]
SamplerSeed = Annotated[int, typer.Option(help="Seed of the sampler.")]
Scheduler = Annotated[str | None, typer.Option(help="asha, hyperband, median or none.")]
GpusPerTrial = Annotated[float | None, typer.Option(min=0, help="Fractions share a GPU; default: one each.")]
CpusPerTrial = Annotated[float | None, typer.Option(min=0.01, help="CPU cores (threads) of a trial.")]
MaxConcurrent = Annotated[int | None, typer.Option(min=1, help="Trials at a time; default: all that fit.")]
Assignments = Annotated[list[str] | None, typer.Option("--set", help="key=value of the configuration; repeatable.")]
SkipCorrupt = Annotated[bool, typer.Option("--skip-corrupt", help="Leave out unreadable images.")]
AllowDuplicates = Annotated[
    bool, typer.Option("--allow-duplicates", help="Keep byte-identical images in one pool, instead of refusing them.")
]
StoragePath = Annotated[str | None, typer.Option(help="Checkpoints: a folder or s3:// URI that all nodes see.")]
TrackingUri = Annotated[
    str | None,
    typer.Option(help="MLflow server (http://...), database or folder; default: MLFLOW_TRACKING_URI, else local."),
]
Storage = Annotated[
    str | None,
    typer.Option(help="Record: postgresql://USER@HOST/DB or sqlite:///FILE; default: SQLite in the study folder."),
]
StoredAt = Annotated[
    str | None, typer.Option("--storage", help="Record of a study that another machine began, or SCTUNE_STORAGE.")
]
Address = Annotated[str | None, typer.Option(help="Ray cluster, or auto; default: this machine.")]
CheckpointInterval = Annotated[float, typer.Option(min=0, help="Seconds between checkpoints besides rungs.")]
MaxDisk = Annotated[
    str | None, typer.Option(help="What the study may take on disk, for example 20GB; the best trials stay longest.")
]
KeepBest = Annotated[int, typer.Option(min=1, help="Full runs that keep their checkpoint.")]
Notify = Annotated[
    list[str] | None, typer.Option(help="Command or http(s) URL that is told the end (also SCTUNE_NOTIFY); repeatable.")
]
Detach = Annotated[bool, typer.Option("--detach", help="Run in the background; with --address as a Ray job.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and what it costs; start nothing.")]

StudyName = Annotated[str, typer.Argument(help="Study name.")]
StudyRoot = Annotated[
    Path | None, typer.Option("--study-root", help="Folder of the studies (default: SCTUNE_HOME/studies).")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def duration(text: str | None, option: str) -> float | None:
    """Seconds of 90s, 30m, 2h or 1d; None for None. Raises ConfigError, which names the option."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|d)?", text)
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"{option} {text!r}: give a time such as 90s, 30m, 2h or 1d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2] or "s"]


def size(text: str | None, option: str) -> int | None:
    """Bytes of 500MB or 20GB; None for None. Raises ConfigError, which names the option."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        found = TypeAdapter(ByteSize | None).validate_python(text)
    except ValidationError:
        raise ConfigError(f"{option} {text!r}: give a size such as 500MB or 20GB") from None
    return None if found is None else int(found)
