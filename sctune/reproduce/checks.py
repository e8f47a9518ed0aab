"""Which columns of a table can be run with what a command sets, and why the others cannot."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from sctune.config import TASK_FIELDS, field_names, is_field
from sctune.errors import ConfigError, nearest
from sctune.reproduce.columns import Column, entry_of, is_the_papers
from sctune.reproduce.setup import SHUFFLE, Setup, varied_values
from sctune.search.space.activation import activation_conditions

_OPTIONS = {
    "method.name": "--method",
    "data.n_anomalies": "--n-anomalies",
    "data.selection": "",
    SHUFFLE: "--shuffle-labels",
}


def check_setup(setup: Setup, named: Collection[str] = ()) -> tuple[Setup, dict[str, str]]:
    """The setup with the columns that can be trained, and by name the reasons why others cannot.

    Such a column keeps the paper's numbers. named: columns that were asked for by name; they must be possible.
    Raises ConfigError for --set of what the table varies or an option sets or what takes the effect from it, for a
    column asked for that cannot be trained with these values, and for values that leave no column.
    """
    _check_names(setup)
    _check_effect(setup)
    useless = {column.name: why for column in setup.runnable if (why := _no_use(setup, column))}
    takers = [column for column in setup.runnable if column.name not in useless]
    refused = {column.name: why for column in takers if (why := _problem(setup, column))}
    reasons = useless | refused
    wanted = [column for column in setup.runnable if column.name in named and column.point is None]
    if len(refused) == len(takers):
        # what the columns say that have a use for all of it tells more than that others have none
        wanted = [*takers, *setup.runnable]
    for column in wanted:
        if column.name in reasons:
            raise ConfigError(f"{column.label}: {reasons[column.name]}")
    left = [replace(column, values=None) if column.name in reasons else column for column in setup.columns]
    kept = [column for column in left if column.name not in reasons or column.name in setup.table.columns]
    return replace(setup, columns=tuple(kept)), reasons


def _check_names(setup: Setup) -> None:
    """Raises ConfigError for --set of a name that is none, that an option sets, or that the table varies."""
    # a method that the paper compares with may have a value of its own for what its own methods share
    varied = {name for column in setup.runnable if is_the_papers(column) for name in varied_values(column)}
    for name in setup.overrides:
        if not is_field(name):
            raise ConfigError(f"--set {name}: unknown configuration key; {nearest(name, field_names())}")
        if name in (*TASK_FIELDS, *_OPTIONS):
            instead = f"; use {_OPTIONS[name]}" if _OPTIONS.get(name) else ""
            raise ConfigError(f"--set {name}: the table decides it{instead}")
        if name in varied:
            raise ConfigError(f"--set {name}: {setup.table.name} varies it; leave it out, or run `sctune search`")


def _check_effect(setup: Setup) -> None:
    """Raises ConfigError for --set of a value under which what a figure varies is without effect."""
    # a method's lesser settings may well be; the axis of a figure may not
    varied = {name: None for column in setup.columns if column.point is not None for name in varied_values(column)}
    for name in varied:
        for other, wanted in activation_conditions().get(name, ()):
            if other in setup.overrides and setup.overrides[other] not in wanted:
                raise ConfigError(
                    f"--set {other}={setup.overrides[other]}: {setup.table.name} varies {name}, which has an effect "
                    f"only with {other}={' or '.join(map(str, wanted))}; leave it out"
                )


def _no_use(setup: Setup, column: Column) -> str | None:
    """Why a value of --set means nothing to a column; None where all of them do."""
    entry, own = entry_of(column), varied_values(column)
    for name, value in setup.overrides.items():
        if not entry.looks_at(name):
            return f"--set {name}={value}: method {entry.name} has no use for it"
        if name in own and own[name] != value:
            return f"--set {name}={value}: it has {own[name]} of its own"
    return None


def _problem(setup: Setup, column: Column) -> str | None:
    """Why a column cannot be trained with what the command sets; None where it can."""
    try:
        setup.config(column)
    except ConfigError as problem:
        return str(problem)
    return None
