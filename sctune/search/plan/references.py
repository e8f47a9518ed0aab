"""Which references a search runs, methods that train nothing, as far as they fit what is searched; and how long."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from sctune.config import TrialConfig, method_entries, search_defaults
from sctune.data.split import Split
from sctune.errors import ConfigError
from sctune.search.plan import costs
from sctune.search.plan.replicates import trainings
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.references import TIME_SHARE, reference_fields

LEAST_S = 120.0
"""Seconds that references get for each turn of as many as run at a time, where no time budget is given: four times what
one takes on ELPV with two free cores."""


class Limit(NamedTuple):
    """Seconds that the references of a search may take together, and what that is, for people."""

    seconds: float
    what: str


def planned_references(asked: bool | None, profile: str, base: TrialConfig) -> tuple[tuple[str, ...], list[str]]:
    """Names of the references, and a line for each that does not go with the study's base.

    asked: with or without them; None: as the profile says.
    """
    if not (search_defaults(profile).references if asked is None else asked):
        return (), []
    found, lines = [], []
    for entry in method_entries():
        if not entry.reference:
            continue
        try:
            base.override(reference_fields(base, entry.name, profile))
        except ConfigError as problem:
            lines.append(f"reference {entry.name} is left out: {problem}")
            continue
        found.append(entry.name)
    return tuple(found), lines


def reference_limit(
    manifest: StudyManifest,
    splits: Mapping[str, Split],
    concurrent: int,
    left_s: float | None,
    ran_s: Sequence[float] = (),
) -> Limit:
    """A tenth of the time budget; without one, of what the search will take, and LEAST_S a turn at least.

    concurrent: at a time, as trials; left_s: of the time budget, None: there is none. ran_s: seconds of full runs that
    the record holds. Where it holds none, nothing has been timed yet: the time is worked out for slow cores, and
    nothing is known of GPUs.
    """
    percent = f"{100 * TIME_SHARE:.0f} %"
    if left_s is not None:
        return Limit(TIME_SHARE * left_s, f"{percent} of the time budget")
    if ran_s:
        trial, what = fmean(ran_s), "what the search takes by its full runs"
    elif manifest.resources.gpus == 0:
        config = manifest.trial_config()
        trial = sum(costs.slow_trial_s(config, len(splits[task.key].selection)) for task in manifest.tasks)
        what = "what the search would take on a slow machine"
    else:
        trial, what = 0.0, ""
    expected = TIME_SHARE * trial * trainings(manifest) / manifest.replicates / concurrent
    least = LEAST_S * math.ceil(len(manifest.references) * len(manifest.tasks) / concurrent)
    way = "--time-budget gives them a tenth of it"
    if expected > least:
        return Limit(expected, f"{percent} of {what}; {way}")
    return Limit(least, f"the least that references get; {way}")
