"""What a trial takes of a node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrialResources:
    """CPU cores and GPUs (a fraction below 1)."""

    cpus: float
    gpus: float

    def larger(self, largest: TrialResources) -> TrialResources | None:
        """What to try next after this was too little for its memory; None: there is none on any node.

        A fraction of a GPU doubles, up to a whole one. Without a GPU the cores double up to the largest node's,
        which leaves fewer neighbours in its memory.
        """
        if self.gpus > 0:
            return TrialResources(self.cpus, min(1.0, 2 * self.gpus)) if self.gpus < 1 else None
        cpus = min(2 * self.cpus, largest.cpus)
        return TrialResources(cpus, 0.0) if cpus > self.cpus else None
