"""An earlier study as a prior: its best configurations, and the order of its trials, where they lie in this space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from sctune.errors import ConfigError, SctuneError
from sctune.search.space.definition import Space, Values
from sctune.search.space.parameter import Parameter, Range, nearest_value
from sctune.search.space.variants import VARIANT
from sctune.search.study.study import MANIFEST, Study
from sctune.search.suggest.beliefs import Centre, Prior, Told
from sctune.search.suggest.evidence import merits

BEST = 3
"""Configurations of an earlier study that are believed in, the best one most."""

MOST = 200
"""Trials of an earlier study that are kept, spread over its order."""

LEAST = 3
"""Trials that have an order."""

_METHOD = "method.name"


def prior_of_study(name: str, space: Space, study_root: Path, storage: str | None) -> Prior:
    """What trials of an earlier study say of this space; only read, and not needed any more afterwards.

    Of a trial the fields count that both studies vary. One with a number outside the range, with another choice than
    this space has, with another choice of what is fixed here, or of another method lies elsewhere and is left out.
    Raises StudyError where the study is missing, ConfigError where fewer than LEAST of its trials lie in the space.
    """
    # one that is here knows its own database
    here = (study_root / name / MANIFEST).is_file()
    try:
        study = Study.open(study_root, name, None if here else storage)
    except SctuneError as problem:
        raise type(problem)(f"--prior {name}: {problem}; a file ends in .yaml, the published one is `paper`") from None
    try:
        earlier, sign, stored = study.manifest.build_space(), study.objective.merit(1.0), _stored(study)
    except SctuneError as problem:
        raise type(problem)(f"--prior {name}: {problem}") from None
    trials = [one for one in stored if one.state in (TrialState.COMPLETE, TrialState.PRUNED) and one.params]
    return prior_of_trials(name, trials, sign, earlier, space)


def _stored(study: Study) -> list[FrozenTrial]:
    try:
        return study.record.load()
    finally:
        study.record.close()


def prior_of_trials(name: str, trials: Sequence[FrozenTrial], sign: float, earlier: Space, space: Space) -> Prior:
    """Of ended trials of an earlier space; sign: 1 where more was better there, -1 where less was."""
    ranks = merits(trials, sign)
    told = [
        (overlap(earlier, earlier.decode(trial.params), space), float(rank), trial.number)
        for trial, rank in zip(trials, ranks, strict=True)
    ]
    inside = sorted((one for one in told if one[0]), key=lambda one: (-one[1], one[2]))
    if len(inside) < LEAST:
        raise ConfigError(
            f"--prior {name}: {len(inside)} of its {len(trials)} ended trials lie in space {space.name}, and {LEAST} "
            "are needed to learn from; leave it out, or take a space that varies the same fields over the same values"
        )
    best = inside[:BEST]
    kept = [inside[place] for place in sorted({int(one) for one in np.linspace(0, len(inside) - 1, MOST).round()})]
    shared = {field for values, _, _ in inside for field in values}
    first = ", ".join(f"{field}={value}" for field, value in best[0][0].items())
    return Prior(
        kind="study",
        name=name,
        centres=tuple(
            Centre(values=values, weight=float(len(best) - place)) for place, (values, _, _) in enumerate(best)
        ),
        trials=tuple(Told(values=values, merit=rank) for values, rank, _ in kept),
        note=f"{len(inside)} of its {len(trials)} trials lie in this space; the best is trial {best[0][2]}: {first}; "
        f"{len(shared)} of {len(space.parameters)} parameters",
    )


def overlap(earlier: Space, point: Values, space: Space) -> Values:
    """What a point of an earlier space says of this one; empty where it lies elsewhere, or says nothing."""
    chosen, flat, ours = earlier.assignments(point), earlier.config(point).flat(), space.base.flat()
    # the method always counts, whether or not it was varied
    chosen[_METHOD] = flat[_METHOD]
    found: Values = {}
    for field, value in chosen.items():
        if field in space.by_name:
            inside = _inside(space.by_name[field], value)
            if not inside:
                return {}
            found[field] = inside[0]
            continue
        chosen_there = field not in space.variant_fields and not isinstance(earlier.by_name.get(field), Range)
        if chosen_there and ours.get(field, value) != value:
            return {}
    if space.variants:
        views = {name: space.in_variant(name) for name in space.variants}
        same = [name for name, view in views.items() if all(flat.get(f) == v for f, v in view.items() if f != VARIANT)]
        if len(same) != 1:
            return {}
        found[VARIANT] = same[0]
    return found


def _inside(parameter: Parameter, value: Any) -> list[Any]:
    """A value as the parameter has it, in a list: on the nearest of its steps; empty where it is not in it."""
    if parameter.contains(value):
        return [value]
    if not isinstance(parameter, Range) or isinstance(value, bool) or not isinstance(value, int | float):
        return []
    return nearest_value(parameter, value) if parameter.low <= value <= parameter.high else []
