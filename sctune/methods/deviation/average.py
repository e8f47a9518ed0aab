"""An average of a detector's weights over the steps of its training: it scores, while the raw weights train on.

Stochastic weight averaging (Izmailov et al. 2018) and the exponential moving average, both by torch's AveragedModel.
"""

from __future__ import annotations

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from sctune.config import TrialConfig
from sctune.methods.deviation.detector import Detector


class WeightAverage:
    """The detector with the mean weights after steps `start`, `start` + 1, ...; before, with those of the last step.

    Buffers (batch-norm statistics, references) are always those of the last step.
    """

    def __init__(self, config: TrialConfig, detector: Detector) -> None:
        optim, budget = config.optim, config.budget
        ema = optim.average == "ema"
        self.start = 0 if ema else int(optim.average_from * budget.epochs * budget.iterations)
        rule = get_ema_multi_avg_fn(optim.average_decay) if ema else get_swa_multi_avg_fn()
        self._model = AveragedModel(detector, multi_avg_fn=rule)
        self._model.requires_grad_(False).eval()

    @property
    def detector(self) -> Detector:
        found = self._model.module
        assert isinstance(found, Detector)
        return found

    @property
    def count(self) -> int:
        """Steps in the average."""
        return int(self._model.n_averaged)

    @count.setter
    def count(self, steps: int) -> None:
        self._model.n_averaged.fill_(steps)

    def update(self, detector: Detector, number: int) -> None:
        """Take in the weights after step `number`."""
        if number <= self.start:
            # an empty average begins as a copy
            self.count = 0
        self._model.update_parameters(detector)
