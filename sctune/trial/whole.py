"""The Ray side of a training that is run from end to end in one task: no report on the way, no checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safetensors.torch import save

from sctune.config import TrialConfig
from sctune.trial.building import TrainerBuilder, TrialSpec
from sctune.trial.remote import answered
from sctune.trial.stop_flag import StopFlag

PATHS, LABELS, SCORES, WEIGHTS = "paths", "labels", "scores", "weights"
"""What `train_whole` gives beside what `remote.answered` does: of the held-out images; the model's state as bytes."""


def train_whole(spec: Mapping[str, Any], keep: bool) -> dict[str, Any]:
    """Train the one task of `spec`, a TrialSpec as a dict, and score its selection images; raises nothing.

    keep: whether the `model_state` is given too, in the format of safetensors.
    """
    return answered(lambda: _trained(TrialSpec.model_validate(spec), keep))


def _trained(spec: TrialSpec, keep: bool) -> dict[str, Any]:
    (trainer,) = TrainerBuilder(spec).build(TrialConfig.load(spec.config), spec.tasks, StopFlag(spec.stop_key))
    for _ in trainer.fit():
        pass
    held = trainer.selection
    found = {
        PATHS: list(held.paths),
        LABELS: held.labels.tolist(),
        SCORES: trainer.method.score(held.images).tolist(),
    }
    if keep:
        state = trainer.method.model_state()
        found[WEIGHTS] = save({name: value.detach().cpu().contiguous() for name, value in state.items()})
    return found
