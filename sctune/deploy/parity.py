"""Whether two forms of a model score alike: the one rule of the export and of the promotion gate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1e-4
"""Largest difference of a score between a model and another form of it; of scores above 1, as a share of them."""
ROUNDING = 1e-5
"""A conformal threshold is the score of a calibration image, and the last bits of its own score decide its label: one
that lies closer to the threshold is a tie, no flipped label."""

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Parity:
    """How another form of a model agrees with it over `images`.

    difference: largest one of a score, counted by its `allowance`; flips: labels that differ; ties: those within
    ROUNDING of the threshold.
    """

    images: int
    difference: float
    flips: int
    ties: int

    @property
    def holds(self) -> bool:
        # no number is above nothing, so that NaN holds nothing
        return self.difference <= TOLERANCE and self.flips == 0

    def line(self) -> str:
        """What was found, in words."""
        flips = f"{self.flips} flipped labels"
        ties = f" ({self.ties} more on the threshold itself)" if self.ties else ""
        return f"largest difference of a score {self.difference:.2g} over {self.images} images, {flips}{ties}"


def allowance(scores: Scores) -> Scores:
    """What a difference of each score [N] counts by: 1, or the size of a score that is larger.

    Single precision has seven digits: of a score of 300, which an image far from all normal ones has, 1e-4 is the last.
    """
    return np.maximum(1.0, np.abs(scores))


def score_parity(scores: Scores, others: Scores, threshold: float | None) -> Parity:
    """Scores [N] of a model beside those [N] of another form of it; threshold: None where no label hangs on them."""
    difference = float((np.abs(scores - others) / allowance(scores)).max(initial=0.0))
    if threshold is None:
        return Parity(len(scores), difference, 0, 0)
    flipped = scores[(scores > threshold) != (others > threshold)]
    ties = int((np.abs(flipped - threshold) <= ROUNDING).sum())
    return Parity(len(scores), difference, len(flipped) - ties, ties)
