"""Who proposed the trials of a study with priors, and what a prior is worth to it by now; from the record alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from sctune.search.study.manifest import StudyManifest
from sctune.search.study.record import PROPOSAL
from sctune.search.suggest.prior_sampler import Proposal


@dataclass(frozen=True)
class PriorUse:
    """A prior in a study. trials: that it proposed, of `of` whose proposer is known. share: chance that it had to
    propose the newest trial; None where no trial is known.
    """

    name: str
    kind: str
    trials: int
    of: int
    share: float | None

    @property
    def line(self) -> str:
        now = "" if self.share is None else f"; it had a chance of {100 * self.share:.0f} % to propose the newest one"
        return f"prior {self.name} proposed {self.trials} of {self.of} trials{now}"


def prior_uses(manifest: StudyManifest, trials: Sequence[FrozenTrial]) -> tuple[PriorUse, ...]:
    """One for each prior, in their order; empty for a study without."""
    told = [Proposal.model_validate(one.user_attrs[PROPOSAL]) for one in trials if PROPOSAL in one.user_attrs]
    counts = Counter(one.source for one in told)
    newest = told[-1].shares if told else {}
    return tuple(
        PriorUse(prior.name, prior.kind, counts[prior.name], len(told), newest.get(prior.name))
        for prior in manifest.priors
    )
