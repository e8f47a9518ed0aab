"""How many times a trial is trained, and with which seeds (`--replicates`, `--seeds`)."""

from __future__ import annotations

from sctune.errors import ConfigError
from sctune.search.plan.options import SearchOptions
from sctune.search.rules.race import further_replicates
from sctune.search.rules.registry import RACE
from sctune.search.study.manifest import StudyManifest

RACE_REPLICATES = 4
"""Of a race, where nothing else is asked for: simulated, as good as 3 or better (benchmarks/README.md)."""
_SEEDS = 2**32


def planned_replicates(options: SearchOptions, scheduler: str, seed: int) -> tuple[int, tuple[int, ...]]:
    """Replicates of a trial, and the seeds of its tasks. seed: of the configuration.

    1 replicate: a trial is trained on all seeds at once. Raises ConfigError for options that do not go together.
    """
    seeds, asked = options.seeds, options.replicates
    if asked is None and scheduler == RACE:
        asked = len(seeds) if len(seeds) > 1 else RACE_REPLICATES
    if asked is None or asked == 1:
        return 1, seeds or (seed,)
    if not seeds:
        return asked, tuple((seed + place) % _SEEDS for place in range(asked))
    if len(seeds) == 1:
        return asked, tuple((seeds[0] + place) % _SEEDS for place in range(asked))
    if len(seeds) != asked:
        raise ConfigError(
            f"--replicates {asked} and --seeds {','.join(map(str, seeds))}: each replicate has a seed of its own; give "
            f"{asked} seeds, or the first one alone"
        )
    return asked, seeds


def check_race(options: SearchOptions, scheduler: str) -> None:
    """Raises ConfigError for an audit of a race."""
    if scheduler == RACE and options.audit:
        raise ConfigError(
            f"--audit {options.audit:g}: a race gives its further replicates to the trials that may be the best, and "
            "to nobody else; leave it out, or take another --scheduler"
        )


def trainings(manifest: StudyManifest) -> int:
    """Most replicates that a study trains, where nobody is stopped within one."""
    if manifest.scheduler.name == RACE:
        return manifest.trials + further_replicates(manifest.trials, manifest.replicates)
    return manifest.trials * manifest.replicates


def replicate_lines(manifest: StudyManifest) -> list[str]:
    """For the plan; none where a trial is trained once."""
    if manifest.replicates == 1:
        return []
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(task.seed for task in manifest.tasks))
    line = f"replicates: {manifest.replicates} of a trial, with seeds {seeds}, one after another"
    if manifest.scheduler.name == RACE:
        most = trainings(manifest) - manifest.trials
        line += f"; {most} beside each trial's first one, for those that may be the best"
    return [line]
