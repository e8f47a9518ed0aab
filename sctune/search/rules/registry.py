"""Rules by name: the shipped ones, and those of other packages."""

from __future__ import annotations

from collections.abc import Callable

from sctune.errors import ConfigError, nearest
from sctune.plugins import load_plugin, plugin_names
from sctune.search.rules.base import LEAST_CONFIDENCE, Rule, RuleSettings
from sctune.search.rules.outlook import Lower, Outlook, Watched, as_it_is
from sctune.search.rules.promotion import PromotionHalving, PromotionHyperband
from sctune.search.rules.race import Race, WithinFirst
from sctune.search.rules.stopping import FairHalving, Hyperband, MedianStopping, rungs_of

GROUP = "sctune.rules"
"""Entry points of other packages: the rule's name, and a callable RuleSettings -> Rule."""

NO_RULE, RACE = "none", "race"


def _watched(make: Callable[[RuleSettings, Lower], Rule], best: bool = False) -> Callable[[RuleSettings], Rule]:
    """A rule whose bars an outlook lowers where a confidence is asked for; best: see `Outlook`."""

    def made(settings: RuleSettings) -> Rule:
        if settings.confidence is None:
            return make(settings, as_it_is)
        # the first rung compares within a method
        later = rungs_of(settings.epochs, settings.grace * settings.factor, settings.factor)
        outlook = Outlook(settings.confidence, next(iter(later), settings.epochs), settings.behind, best)
        return Watched(make(settings, outlook.lower), outlook)

    return made


RULES: dict[str, Callable[[RuleSettings], Rule]] = {
    "asha": _watched(lambda s, lower: FairHalving(s.epochs, s.grace, s.factor, s.behind, lower)),
    "hyperband": _watched(lambda s, lower: Hyperband(s.epochs, s.grace, s.factor, s.seed, s.behind, lower)),
    "asha-promotion": lambda s: PromotionHalving(s.epochs, s.grace, s.factor),
    "hyperband-promotion": lambda s: PromotionHyperband(s.epochs, s.grace, s.factor, s.seed),
    RACE: lambda s: Race(RULES["asha"](s), s.epochs, s.replicates, s.trials),
    "median": _watched(
        lambda s, lower: MedianStopping(s.epochs, s.grace, s.factor, behind=s.behind, lower=lower), best=True
    ),
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
    confidence: float | None = None,
) -> Rule | None:
    """The rule by name; None for `none`. epochs: of a replicate. grace: first rung, None for the default; others: see
    RuleSettings.

    Raises ConfigError for an unknown name, a grace outside 1 .. epochs, a factor below 2, a race of one replicate, a
    confidence outside [0.5, 1) or of a rule that does not know it, and a rule of another package that cannot be loaded.
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
        raise ConfigError(
            f"scheduler {RACE} compares trials over replicates, and these have one; search with --replicates 4"
        )
    if confidence is not None and not LEAST_CONFIDENCE <= confidence < 1:
        raise ConfigError(f"--stop-confidence {confidence:g}: give a chance from {LEAST_CONFIDENCE} to below 1")
    make = RULES.get(name) or load_plugin(GROUP, name)
    rule: Rule = make(RuleSettings(epochs, grace, factor, seed, behind, replicates, trials, confidence))
    if confidence is not None and not rule.knows_noise:
        why = "pauses trials and stops none for good" if rule.pauses else "does not know it"
        raise ConfigError(
            f"--stop-confidence {confidence:g}: scheduler {name} {why}; leave it out, or take --scheduler asha, "
            "hyperband, median or race"
        )
    return rule if name == RACE or replicates == 1 else WithinFirst(rule, epochs, replicates)
