"""Interactive figures of a study for its report: plotly's JSON, drawn by one copy of plotly.js in the page."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from sctune.search.space.parameter import Choice
from sctune.search.study.leaderboard import TrialRow
from sctune.search.study.manifest import StudyManifest

CONTOUR_PARAMS = 4
"""Most parameters of the contour figure: it has a panel for each pair."""
MOST_CURVES = 200
COLOURS = {"COMPLETE": "#1b7837", "PRUNED": "#e08214", "FAIL": "#b2182b", "RUNNING": "#4393c3", "WAITING": "#888888"}


@dataclass(frozen=True)
class Drawing:
    """A figure for the page. json: of plotly, None where it could not be made, for the reason given; height: px."""

    name: str
    title: str
    json: str | None
    reason: str | None = None
    height: int = 420


def study_drawings(manifest: StudyManifest, trials: Sequence[FrozenTrial], rows: Sequence[TrialRow]) -> list[Drawing]:
    """All figures in the order of the page; those that cannot be made say why."""
    study, epochs = rebuilt(manifest, trials), manifest.full_epochs
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    names = sorted({name for trial in complete for name in trial.params})
    none = None if complete else "no trial is complete yet"
    few = _too_few(len(complete), len(names))
    makers: list[tuple[str, str, Callable[[], Any], str | None, int]] = [
        ("history", "History", lambda: optuna.visualization.plot_optimization_history(study), none, 420),
        (
            "curves",
            "Learning curves",
            lambda: _curves(rows, epochs, manifest.build_objective().metric),
            _no_curves(rows),
            480,
        ),
        ("importance", "Parameter importance", lambda: _importance(study), few, 380),
        ("slice", "Slice", lambda: optuna.visualization.plot_slice(study), none, 420),
        ("contour", "Contour", lambda: _contour(study, names), few, 640),
        ("parallel", "Parallel coordinates", lambda: _parallel(study), none, 460),
    ]
    return [_drawn(*maker) for maker in makers]


def rebuilt(manifest: StudyManifest, trials: Sequence[FrozenTrial]) -> optuna.Study:
    """The ended trials in a study in memory, as people read them: the values themselves where their places in a list
    are recorded, and texts escaped, since plotly reads marks in labels.
    """
    listed = {one.name: one for one in manifest.build_space().parameters if isinstance(one, Choice)}
    study = optuna.create_study(direction=manifest.build_objective().direction)
    study.add_trials([_plain(trial, listed) for trial in trials if trial.state.is_finished()])
    return study


def _plain(trial: FrozenTrial, listed: Mapping[str, Choice]) -> FrozenTrial:
    params, distributions = dict(trial.params), dict(trial.distributions)
    for name, distribution in trial.distributions.items():
        if name in listed:
            distributions[name] = CategoricalDistribution([_text(choice) for choice in listed[name].choices])
            params[name] = _text(listed[name].decode(params[name]))
        elif isinstance(distribution, CategoricalDistribution):  # the variant
            distributions[name] = CategoricalDistribution([_text(choice) for choice in distribution.choices])
            params[name] = _text(params[name])
    return optuna.trial.create_trial(
        state=trial.state,
        value=trial.value,
        params=params,
        distributions=distributions,
        intermediate_values=trial.intermediate_values,
    )


def _text(value: Any) -> Any:
    return html.escape(value) if isinstance(value, str) else value


def _drawn(name: str, title: str, make: Callable[[], Any], reason: str | None, height: int) -> Drawing:
    if reason is not None:
        return Drawing(name, title, None, reason)
    try:
        figure = make()
    except (ValueError, RuntimeError) as problem:  # Optuna's answer to values or parameters it cannot plot
        return Drawing(name, title, None, " ".join(str(problem).split()))
    figure.update_layout(title=None, template="plotly_white", height=height, width=None, margin={"t": 30, "r": 20})
    return Drawing(name, title, figure.to_json(), height=height)


def _too_few(complete: int, names: int) -> str | None:
    if complete < 2:
        return f"it needs at least 2 complete trials, the study has {complete}"
    return None if names >= 2 else "it needs at least 2 varied parameters"


def _no_curves(rows: Sequence[TrialRow]) -> str | None:
    return None if any(row.values for row in rows) else "no epoch was reported yet"


def _importance(study: optuna.Study) -> Any:
    return optuna.visualization.plot_param_importances(study, evaluator=_evaluator())


def _evaluator() -> Any:
    # seeded, so that the same study gives the same page
    return optuna.importance.FanovaImportanceEvaluator(seed=0)


def _contour(study: optuna.Study, names: Sequence[str]) -> Any:
    chosen = list(names)
    if len(chosen) > CONTOUR_PARAMS:
        try:
            chosen = list(optuna.importance.get_param_importances(study, evaluator=_evaluator()))[:CONTOUR_PARAMS]
        except (ValueError, RuntimeError):
            chosen = chosen[:CONTOUR_PARAMS]
    if len(chosen) < 2:
        raise ValueError("fewer than 2 parameters are in every complete trial")
    return optuna.visualization.plot_contour(study, params=chosen)


def _parallel(study: optuna.Study) -> Any:
    return optuna.visualization.plot_parallel_coordinate(study)


def _curves(rows: Sequence[TrialRow], epochs: int, metric: str) -> Any:
    from plotly import graph_objects

    figure = graph_objects.Figure()
    named: set[str] = set()
    for row in [row for row in rows if row.values][:MOST_CURVES]:
        points = sorted(row.values.items())
        figure.add_scatter(
            x=[epoch for epoch, _ in points],
            y=[value for _, value in points],
            mode="lines+markers",
            line={"color": COLOURS.get(row.state, "#888888"), "width": 1.5},
            marker={"size": 5},
            opacity=0.8,
            name=row.state.lower(),
            legendgroup=row.state,
            showlegend=row.state not in named,
            hovertemplate=f"trial {row.number}<br>epoch %{{x}}<br>%{{y:.4f}}<extra></extra>",
        )
        named.add(row.state)
    figure.update_layout(
        xaxis={"title": "epoch", "range": [0.8, epochs + 0.2], "dtick": max(1, epochs // 12)},
        yaxis={"title": metric},
    )
    return figure
