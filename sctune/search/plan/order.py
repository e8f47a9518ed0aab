"""Whether the same search twice is the same search: by what a trial is drawn and judged (`--look-behind`)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sctune.errors import ConfigError
from sctune.search.plan.options import SearchOptions
from sctune.search.rules.base import Rule
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.scheduling import rule_of
from sctune.search.suggest.samplers import sampler_entry

if TYPE_CHECKING:
    from sctune.search.plan.plan import Plan

LEAST = 2
"""Enough for two trials at a time, and few enough that a search of a dozen learns something."""


def default_behind(concurrent: int) -> int:
    """Of so many trials at a time."""
    return max(LEAST, 2 * concurrent - 2)


def check_order(options: SearchOptions, scheduler: str, rule: Rule | None) -> None:
    """Raises ConfigError for options that do not go together."""
    if options.look_behind is None:
        return
    if options.free_running:
        raise ConfigError("--look-behind and --free-running: the one keeps an order, the other none; give one of them")
    if not _keeps(rule):
        raise ConfigError(
            f"--look-behind {options.look_behind}: what scheduler {scheduler} decides about a trial depends on "
            "those that come after it; leave it out, or take --scheduler asha, hyperband, median or none"
        )


def _keeps(rule: Rule | None) -> bool:
    # who pauses waits for trials that come later, which wait for it
    return rule is None or (rule.looks_behind and not rule.pauses)


def in_order(plan: Plan, options: SearchOptions, concurrent: int) -> Plan:
    """The plan with its look-behind. concurrent: trials at a time.

    Twice the trials at a time less two lets nearly all workers be busy where the slowest trial takes three times as
    long as the fastest. None where nothing is learned from results, or the scheduler cannot keep to it.
    """
    behind = options.look_behind
    if behind is None and not options.free_running:
        behind = usual_behind(plan.manifest, plan.space.epochs, concurrent)
    way = f"; give --look-behind {default_behind(concurrent)} or --free-running"
    warnings = tuple(f"{line}{way}" for line in idle_lines(behind, concurrent))
    made = plan.manifest.model_copy(update={"look_behind": behind})
    return replace(plan, manifest=made, warnings=(*plan.warnings, *warnings))


def usual_behind(manifest: StudyManifest, epochs: int, concurrent: int) -> int | None:
    """Without an option; see `in_order`. epochs: of a replicate."""
    rule = rule_of(manifest, epochs)
    uses = rule is not None or sampler_entry(manifest.sampler).learns
    return default_behind(concurrent) if uses and _keeps(rule) else None


def idle_lines(behind: int | None, concurrent: int) -> list[str]:
    """A line where fewer trials can run at a time than there is room for."""
    if behind is None or concurrent <= behind + 1:
        return []
    return [f"--look-behind {behind} lets {behind + 1} trials run at a time, of {concurrent} that there is room for"]
