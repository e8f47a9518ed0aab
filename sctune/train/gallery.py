"""Pictures of what a trained configuration pastes, from selection images only."""

from __future__ import annotations

from sctune.methods.base import PseudoExample
from sctune.train.trainer import Trainer

__all__ = ["PseudoExample", "pseudo_examples"]


def pseudo_examples(trainer: Trainer, count: int = 6) -> list[PseudoExample]:
    """At most `count` pseudo anomalies made with the trainer's weights from pairs of its held-out normal images.

    Empty where the method makes none. Raises DataError where fewer than two normals are held out.
    """
    return trainer.method.examples(trainer.selection.images[trainer.selection.labels == 0], count)
