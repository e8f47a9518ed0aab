"""Whether a search is worth going on with: what the rest of its trials may be expected to gain (`--min-gain`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from sctune.metrics.objective import Objective
from sctune.search.rules.gain import expected_gain
from sctune.search.study.manifest import LittleGain, StudyManifest

LOOKS = 200
"""A search of n trials is looked at before each (n // LOOKS)th one: a look goes through all trials so far."""


def little_gain(
    manifest: StudyManifest,
    objective: Objective,
    known: Callable[[], Sequence[FrozenTrial]],
    begun: int,
    points: int | None,
    errors: Mapping[int, float],
) -> LittleGain | None:
    """What the rest is expected to gain where that is less than the study asks for, None where it goes on.

    known: the trials that the next one may know, in order of their numbers. begun: trials so far. points: of the space
    that were not tried; None: without number. errors: number -> paired error of a full run. With a look-behind the
    answer is the same whatever ran when. A grid is there to be compared point by point, and never ends so.
    """
    asked = manifest.min_gain
    if not asked or manifest.sampler == "grid" or begun < manifest.sure_trials:
        return None
    if begun % max(begun // LOOKS, 1):
        return None
    left = manifest.trials - begun if points is None else min(manifest.trials - begun, points)
    ended = known()
    full = [trial for trial in ended if trial.state is TrialState.COMPLETE and trial.value is not None]
    if left < 1 or not full:
        return None
    # who is stopped does not come to be the best
    more = math.ceil(left * len(full) / len(ended))
    told = [errors[trial.number] for trial in full if trial.number in errors]
    error = math.sqrt(float(np.mean(np.square(told)))) if told else 0.0
    gain = expected_gain(
        [objective.merit(float(trial.value)) for trial in full if trial.value is not None], more, error
    )
    return None if gain is None or gain >= asked else LittleGain(after=begun, left=left, gain=gain, asked=asked)
