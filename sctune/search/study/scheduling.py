"""The rule that stops the trials of a study, from its manifest."""

from __future__ import annotations

from sctune.search.rules.audit import audited_rule
from sctune.search.rules.base import Rule
from sctune.search.rules.registry import make_rule
from sctune.search.study.manifest import SchedulerSpec, StudyManifest


def rule_of(manifest: StudyManifest, epochs: int) -> Rule | None:
    """Fresh, as a launch makes it; None where trials are never stopped. Raises ConfigError as `make_rule` does."""
    spec = manifest.scheduler
    return audited_rule(fresh_rule(manifest, spec, epochs), manifest.audit, manifest.sampler_seed)


def fresh_rule(manifest: StudyManifest, spec: SchedulerSpec, epochs: int) -> Rule | None:
    """A scheduler over the trials of a study, none of them audited; as `rule_of`."""
    return make_rule(
        spec.name,
        epochs,
        spec.grace,
        spec.factor,
        manifest.sampler_seed,
        manifest.look_behind,
        spec.stop_confidence,
    )
