"""Rules by name: the shipped ones, and those of other packages."""

from __future__ import annotations

from collections.abc import Callable

from sctune.errors import ConfigError, nearest
from sctune.plugins import load_plugin, plugin_names
from sctune.search.rules.base import Rule, RuleSettings
from sctune.search.rules.promotion import PromotionHalving, PromotionHyperband
from sctune.search.rules.race import Race, WithinFirst
from sctune.search.rules.stopping import FairHalving, Hyperband, MedianStopping

GROUP = "sctune.rules"
"""Entry points of other packages: the rule's name, and a callable RuleSettings -> Rule."""

NO_RULE, RACE = "none", "race"

RULES: dict[str, Callable[[RuleSettings], Rule]] = {
    "asha": lambda s: FairHalving(s.epochs, s.grace, s.factor, s.behind),
    "hyperband": lambda s: Hyperband(s.epochs, s.grace, s.factor, s.seed, s.behind),
    "asha-promotion": lambda s: PromotionHalving(s.epochs, s.grace, s.factor),
    "hyperband-promotion": lambda s: PromotionHyperband(s.epochs, s.grace, s.factor, s.seed),
    "median": lambda s: MedianStopping(s.epochs, s.grace, s.factor, behind=s.behind),
    RACE: lambda s: Race(FairHalving(s.epochs, s.grace, s.factor), s.epochs, s.replicates, s.trials),
}


def rule_names() -> tuple[str, ...]:
    return (*RULES, NO_RULE, *plugin_names(GROUP, but=(*RULES, NO_RULE)))


def default_grace(epochs: int) -> int:
    """The first rung when none is asked for: a ninth of the epochs, at least 1."""
    return max(1, epochs // 9)


def make_rule(
    name: str,
    epochs: int,
    grace: int | None,
    factor: int,
    seed: int,
    behind: int | None = None,
    replicates: int = 1,
    trials: int = 1,
) -> Rule | None:
    """The rule by name; None for `none`. epochs: of a replicate. grace: first rung, None for the default; others: see
    RuleSettings.

    Raises ConfigError for an unknown name, a grace outside 1 .. epochs, a factor below 2, a race of one replicate, and
    a rule of another package that cannot be loaded.
    """
    if name not in rule_names():
        raise ConfigError(f"unknown scheduler {name!r}; {nearest(name, rule_names())}")
    grace = default_grace(epochs) if grace is None else grace
    if name == NO_RULE:
        return None
    if not 1 <= grace <= epochs:
        raise ConfigError(f"scheduler {name}: grace={grace} must be in 1 .. budget.epochs={epochs}")
    if factor < 2:
        raise ConfigError(f"scheduler {name}: factor={factor} must be 2 or more")
    if name == RACE and replicates < 2:
        raise ConfigError(f"scheduler {RACE} compares trials over replicates, and these have one; give --replicates 4")
    make = RULES.get(name) or load_plugin(GROUP, name)
    rule: Rule = make(RuleSettings(epochs, grace, factor, seed, behind, replicates, trials))
    return rule if name == RACE or replicates == 1 else WithinFirst(rule, epochs, replicates)
