"""One score from distance, push and logistic, each scaled by held-out normals."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from sctune.methods.density import Rows
from sctune.methods.untrained.labelled import terms


class Combination(nn.Module):
    """Distances [N] and whitened differences [N, D] -> scores [N] in float64.

    along [D, 2]: directions of push and logistic; means, deviations [3]: of the three terms of held-out normals;
    weights [3]: 1 for the distance, and those of push and logistic.
    """

    along: Tensor
    means: Tensor
    deviations: Tensor
    weights: Tensor

    def __init__(self, dimension: int) -> None:
        super().__init__()
        for name, shape in (("along", (dimension, 2)), ("means", (3,)), ("deviations", (3,)), ("weights", (3,))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @classmethod
    def of(cls, scale: tuple[Rows, Rows], along: Rows, push: float, logistic: float) -> Self:
        """scale: means and deviations of held-out terms. Directions of zeros, where there are no anomalies, weigh 0."""
        found = cls(len(along))
        means, deviations = scale
        weights = (1.0, push * bool(along[:, 0].any()), logistic * bool(along[:, 1].any()))
        for name, value in (("along", along), ("means", means), ("deviations", deviations), ("weights", weights)):
            found.get_buffer(name).copy_(torch.as_tensor(value, dtype=torch.float64))
        return found

    def rescale(self, mean: float, deviation: float) -> None:
        """From now on scores are (score - mean) / deviation of what they were; the state has no more numbers for it."""
        # the distance, of weight 1, carries the shift
        self.means[0] += mean * self.deviations[0]
        self.deviations *= deviation

    def forward(self, lengths: Tensor, away: Tensor) -> Tensor:
        scaled = (terms(lengths, away, self.along) - self.means) / self.deviations
        return (scaled * self.weights).sum(dim=1)

    @property
    def distance_scale(self) -> tuple[float, float]:
        """Mean and deviation of the distance, as the score has them."""
        return float(self.means[0]), float(self.deviations[0])

    @property
    def figures(self) -> dict[str, float]:
        """What was chosen, by name."""
        return {"push_weight": float(self.weights[1]), "logistic_weight": float(self.weights[2])}
