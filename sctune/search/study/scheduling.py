"""The rule that stops the trials of a study, from its manifest."""

from __future__ import annotations

from sctune.search.rules.audit import audited_rule
from sctune.search.rules.base import Rule
from sctune.search.rules.registry import make_rule
from sctune.search.study.manifest import SchedulerSpec, StudyManifest


def rule_of(manifest: StudyManifest, epochs: int) -> Rule | None:
    """Fresh, as a launch makes it; None where trials are never stopped. epochs: of a replicate.

    Raises ConfigError as `make_rule` does.
    """
    return audited_rule(rule_by(manifest, manifest.scheduler, epochs), manifest.audit, manifest.sampler_seed)


def rule_by(manifest: StudyManifest, spec: SchedulerSpec, epochs: int) -> Rule | None:
    """What another scheduler would make of the study, with nobody audited; see `rule_of`."""
    return make_rule(
        spec.name,
        epochs,
        spec.grace,
        spec.factor,
        manifest.sampler_seed,
        manifest.look_behind,
        manifest.replicates,
        manifest.trials,
        spec.stop_confidence,
    )
