"""The rule that stops the trials of a study, from its manifest."""

from __future__ import annotations

from sctune.search.rules.audit import audited_rule
from sctune.search.rules.base import Rule
from sctune.search.rules.registry import make_rule
from sctune.search.study.manifest import StudyManifest


def rule_of(manifest: StudyManifest, epochs: int) -> Rule | None:
    """Fresh, as a launch makes it; None where trials are never stopped. Raises ConfigError as `make_rule` does."""
    spec = manifest.scheduler
    rule = make_rule(spec.name, epochs, spec.grace, spec.factor, manifest.sampler_seed, manifest.look_behind)
    return audited_rule(rule, manifest.audit, manifest.sampler_seed)
