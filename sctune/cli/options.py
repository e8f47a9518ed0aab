"""Options of the command line: those of `sctune search` from its fields, and what several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sctune.search.plan.options import Gpus, SearchOptions
from sctune.search.plan.options import duration as duration_of
from sctune.search.plan.options import gpus as gpus_of
from sctune.search.plan.options import size as size_of

OUTPUT = "Output"


def _asked(field: str, *flags: str, written: bool = False) -> Any:
    """The option of a field of SearchOptions; written: it comes as text, which SearchOptions reads."""
    info = SearchOptions.model_fields[field]
    assert isinstance(info.json_schema_extra, dict)
    least = None if written else next((rule.ge for rule in info.metadata if hasattr(rule, "ge")), None)
    panel = str(info.json_schema_extra["panel"])
    return typer.Option(*flags, help=info.description, rich_help_panel=panel, min=least)


Space = Annotated[str, _asked("space")]
Name = Annotated[str | None, _asked("name")]
Profile = Annotated[str | None, _asked("profile")]
Method = Annotated[str | None, _asked("method")]
Data = Annotated[str | None, _asked("data")]
Normal = Annotated[str | None, _asked("normal")]
Anomalous = Annotated[str | None, _asked("anomalous")]
Category = Annotated[list[str] | None, _asked("categories")]
Setting = Annotated[str, _asked("setting")]
KnownClass = Annotated[list[str] | None, _asked("known_classes")]
NAnomalies = Annotated[str | None, _asked("n_anomalies", written=True)]
Seeds = Annotated[str | None, _asked("seeds")]
Selection = Annotated[str, _asked("selection")]
Objective = Annotated[str, _asked("objective")]
PartitionSeed = Annotated[int, _asked("partition_seed")]
Replicates = Annotated[int | None, _asked("replicates")]
Trials = Annotated[int | None, _asked("trials")]
TimeBudget = Annotated[str | None, _asked("time_budget_s", written=True)]
Sampler = Annotated[str | None, _asked("sampler")]
SamplerSeed = Annotated[int, _asked("sampler_seed")]
Prior = Annotated[list[str] | None, _asked("priors", "--prior")]
LookBehind = Annotated[int | None, _asked("look_behind")]
FreeRunning = Annotated[bool, _asked("free_running", "--free-running")]
Scheduler = Annotated[str | None, _asked("scheduler")]
Grace = Annotated[int | None, _asked("grace")]
Factor = Annotated[int | None, _asked("factor")]
StopConfidence = Annotated[float | None, _asked("stop_confidence")]
MinGain = Annotated[float | None, _asked("min_gain")]
Audit = Annotated[float, _asked("audit")]
GpusPerTrial = Annotated[str | None, _asked("gpus_per_trial", written=True)]
CpusPerTrial = Annotated[float | None, _asked("cpus_per_trial")]
MaxConcurrent = Annotated[int | None, _asked("max_concurrent")]
Share = Annotated[float | None, _asked("share")]
Owner = Annotated[str | None, _asked("owner")]
Notes = Annotated[str | None, _asked("notes")]
Publish = Annotated[str, _asked("publish")]
PublishThrough = Annotated[str, _asked("publish_through")]
References = Annotated[bool | None, _asked("references", "--references/--no-references")]
Assignments = Annotated[list[str] | None, _asked("overrides", "--set")]
SkipCorrupt = Annotated[bool, _asked("skip_corrupt", "--skip-corrupt")]
AllowDuplicates = Annotated[bool, _asked("allow_duplicates", "--allow-duplicates")]
StudyRoot = Annotated[Path | None, _asked("study_root", "--study-root")]
StoragePath = Annotated[str | None, _asked("storage_path")]
TrackingUri = Annotated[str | None, _asked("tracking_uri")]
Storage = Annotated[str | None, _asked("storage")]
Address = Annotated[str | None, _asked("address")]
CheckpointInterval = Annotated[float, _asked("checkpoint_interval")]
KeepBest = Annotated[int, _asked("keep_best")]
MaxDisk = Annotated[str | None, _asked("max_disk", written=True)]

StoredAt = Annotated[
    str | None, typer.Option("--storage", help="Record of a study that another machine began, or SCTUNE_STORAGE.")
]
Notify = Annotated[
    list[str] | None,
    typer.Option(
        help="Command or http(s) URL that is told the end (also SCTUNE_NOTIFY); repeatable.", rich_help_panel=OUTPUT
    ),
]
Detach = Annotated[
    bool,
    typer.Option("--detach", help="Run in the background; with --address as a Ray job.", rich_help_panel=OUTPUT),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan and what it costs; start nothing.", rich_help_panel=OUTPUT)
]
Refit = Annotated[
    str | None, typer.Option(metavar="all", help="Final model: train it on all anomalies of the development pool.")
]
Ensemble = Annotated[
    int, typer.Option(min=1, help="Final model: the mean of this many seeds' models, in one ONNX file.")
]
StudyName = Annotated[str, typer.Argument(help="Study name.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.", rich_help_panel=OUTPUT)]


def duration(text: str | None, option: str) -> float | None:
    """Seconds of 90s, 30m, 2h or 1d; None for None. Raises ConfigError, which names the option."""
    return None if text is None else duration_of(text, option)


def size(text: str | None, option: str) -> int | None:
    """Bytes of 500MB or 20GB; None for None. Raises ConfigError, which names the option."""
    return None if text is None else size_of(text, option)


def gpus(text: str | None) -> Gpus:
    """Of --gpus-per-trial; None for None. Raises ConfigError."""
    return None if text is None else gpus_of(text)
