"""Options of a search that its manifest keeps as they were asked for; search/plan/options.py has the others."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from sctune.metrics.objective import DEFAULT

DATA, SPACE, BUDGET, MACHINES, PLACES = "Data", "Space", "Budget", "Machines", "Places"
"""Panels of the help."""

NEVER, ALWAYS = "never", "always"
"""Of `publish`."""


def asked(
    panel: str,
    default: Any,
    description: str,
    *,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
) -> Any:
    """A field that is an option too: description is its help, panel its group in `sctune search --help`."""
    return Field(default, description=description, json_schema_extra={"panel": panel}, ge=ge, lt=lt, le=le)


class StudyOptions(BaseModel):
    """What the manifest of a study keeps as it was asked for."""

    objective: str = asked(DATA, DEFAULT, "Figure that decides: auroc, ap or fpr95 (or a package's).")
    sampler_seed: int = asked(SPACE, 0, "Seed of the sampler.", ge=0, lt=2**32)
    partition_seed: int = asked(DATA, 0, "Draws the development and the test pool.", ge=0, lt=2**32)
    time_budget_s: float | None = asked(BUDGET, None, "For example 90s, 30m, 2h; over all launches.")
    min_gain: float | None = asked(
        BUDGET,
        None,
        "The search ends by itself where all that is left is expected to improve the best by less, in units of the "
        "objective, once 20 trials are full runs; 0: never; default: the profile's .002, 0 for a grid.",
        ge=0,
    )
    audit: float = asked(
        BUDGET, 0.0, "Share of the trials, drawn by the seed, that early stopping leaves alone.", ge=0, le=1
    )
    look_behind: int | None = asked(
        SPACE,
        None,
        "Trial n is drawn and judged by the trials before n - N alone, so that the same search is the same whatever "
        "runs when; default: twice the trials at a time less two, 2 or more.",
        ge=1,
    )
    checkpoint_interval: float = asked(PLACES, 60.0, "Seconds between checkpoints besides rungs.", ge=0)
    publish: Literal["auto", "always", "never"] = asked(
        MACHINES,
        "auto",
        "Images and weights to the nodes of a cluster: auto hands them to those that lack them, always to all, never "
        "leaves such nodes out.",
    )
    publish_through: Literal["auto", "storage", "ray"] = asked(
        MACHINES,
        "auto",
        "They go through the --storage-path or Ray's object store; auto: the former where it is given.",
    )
    owner: str | None = asked(PLACES, None, "Whose study it is; default: user@host.")
    notes: str | None = asked(PLACES, None, "A remark, shown with the study and in MLflow; `sctune note` changes it.")
    keep_best: int = asked(PLACES, 3, "Full runs that keep their checkpoint.", ge=1)
    max_disk: int | None = asked(
        PLACES, None, "What the study may take on disk, for example 20GB; the best trials stay longest.", ge=1
    )
