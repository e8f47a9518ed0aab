"""Other ways to score with what a trial has learned, on its selection images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sctune.config import TrialConfig
from sctune.methods.base import Variant
from sctune.methods.registry import method_class
from sctune.train.trainer import Trainer


def score_variants(config: TrialConfig) -> list[Variant]:
    """All ways to score that mean something for a configuration; the first is its own."""
    return method_class(config).variants(config)


def rescored(trainer: Trainer, variants: Sequence[Variant]) -> Iterator[tuple[float, dict[str, list[float]]]]:
    """Objective and raw scores (as in a report, without the task's key) of each variant on the selection images."""
    sets = [trainer.selection.images, *trainer.selection.proxy.values()]
    found = [trainer.method.variant_scores(images, variants) for images in sets]
    for number in range(len(variants)):
        scores = {id(images): rows[number] for images, rows in zip(sets, found, strict=True)}
        metrics, raw = trainer.selection.evaluate(lambda images, held=scores: held[id(images)])  # type: ignore[misc]
        yield metrics[trainer.selection.objective.metric], raw
