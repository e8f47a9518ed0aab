"""What a table varies: methods (tables 1 to 3), heads and augmentation (table 4), threshold or patches (figure 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sctune.config import MethodEntry, method_entry
from sctune.config.methods import DEFAULT
from sctune.errors import ConfigError, nearest
from sctune.methods.named import method_names, method_values
from sctune.reproduce.paper import PaperTable, column_label, readings_of

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Figure 7a, from the paper's section 4.8."""

PATCH_COUNTS = tuple(range(2, 10))
"""Figure 7b; the paper does not list them (METHODS 2.2): one patch size, anywhere on the map, holds all of these."""

DIAGONAL_COUNTS = (2, 3, 4)
"""As the public code places them, on the diagonal; a map of 7 x 7 cells holds no more."""

EPOCHS = "budget.epochs"
OUTLIERS, WITH_OUTLIERS = "method.outlier_root", "saoe_outliers"
"""What a column without outliers sets to none, and the name of the column where --set names a folder of them."""


@dataclass(frozen=True)
class Column:
    """One configuration that a table compares.

    values: dotted values over the profile; None: the paper's numbers only, since sctune does not have the method or
    what a command sets leaves it out.
    point and series: place on the axis and curve it belongs to, in a figure. untrained: scored before its training,
    which is what a control run has to be compared with.
    """

    name: str
    label: str
    values: Mapping[str, Any] | None = field(default_factory=dict)
    point: float | None = None
    series: str = ""
    untrained: bool = False


def table_columns(table: PaperTable, profile: str, picked: Sequence[str] = ()) -> tuple[Column, ...]:
    """The columns of a table, in the paper's order each with what is our reading of it beside it.

    picked: only these; without, those that the table varies are run, and its other ones have the paper's numbers.
    Raises ConfigError for an unknown one.
    """
    known = {column.name: column for column in _all_columns(table, profile)}
    for name in picked:
        if name == WITH_OUTLIERS:
            raise ConfigError(
                f"--method {name}: take saoe_no_outliers and --set {OUTLIERS}=DIR, which gives that column"
            )
        if name not in known:
            raise ConfigError(f"unknown --method {name!r} of {table.name}; {nearest(name, known)}")
        if known[name].values is None:
            here = [column.name for column in known.values() if column.values is not None]
            ours = [other for other in readings_of(name) if other in here]
            instead = f"our reading, {' or '.join(ours)}" if ours else f"one of {', '.join(here)}"
            raise ConfigError(
                f"--method {name}: sctune does not have this method, only the paper's numbers of it; take {instead}"
            )
    if picked:
        return tuple(column for column in known.values() if column.name in picked)
    shown = {*table.columns, *table.vary} or set(known)
    run = set(table.vary) or set(known)
    return tuple(
        column if column.name in run else replace(column, values=None)
        for column in known.values()
        if column.name in shown
    )


def with_outliers(columns: Sequence[Column], overrides: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns, SAOE under its name without restriction where --set gives it outliers to see."""
    if overrides.get(OUTLIERS) is None:
        return tuple(columns)
    return tuple(_seeing_outliers(column) if OUTLIERS in own_values(column) else column for column in columns)


def _seeing_outliers(column: Column) -> Column:
    values = {name: value for name, value in own_values(column).items() if name != OUTLIERS}
    return replace(column, name=WITH_OUTLIERS, label=column_label(WITH_OUTLIERS), values=values)


def own_values(column: Column) -> Mapping[str, Any]:
    """The values that a column has over the profile."""
    return column.values or {}


def entry_of(column: Column) -> MethodEntry:
    """What is known of the method of a column."""
    return method_entry(own_values(column).get("method.name", DEFAULT))


def is_the_papers(column: Column) -> bool:
    """Whether a column is of the paper's own family of methods, which profiles are made for."""
    return entry_of(column).name == DEFAULT


def before_training(column: Column) -> Column:
    """The column of the same networks with the weights that they begin with."""
    series = f"{column.series} untrained".strip()
    name, label = f"{column.name}-untrained", f"{column.label} untrained"
    return replace(column, name=name, label=label, series=series, untrained=True)


def _all_columns(table: PaperTable, profile: str) -> list[Column]:
    if table.name == "table4":
        return _ablation(table, profile)
    if table.name == "fig7a":
        return [
            Column(f"{threshold:g}", f"threshold {threshold:g}", {"augment.threshold": threshold}, threshold)
            for threshold in THRESHOLDS
        ]
    if table.name == "fig7b":
        return _patches("grid2d", PATCH_COUNTS, "anywhere") + _patches("diag", DIAGONAL_COUNTS, "on the diagonal")
    here = method_names()
    names = [one for name in table.columns for one in (name, *readings_of(name))]
    # a method that the paper leaves out of this table can still be asked for
    names += [name for name in here if name not in names]
    return [Column(name, column_label(name), method_values(name, profile) if name in here else None) for name in names]


def _ablation(table: PaperTable, profile: str) -> list[Column]:
    """The five columns of Table 4 (METHODS 3.2); the first is DRA as it is."""
    columns = []
    for name in table.columns:
        heads, _, kind = name.partition("-")
        values = {"model.heads": heads, "augment.kind": kind}
        if heads == "four_head":
            values = method_values("dra", profile)
        elif heads == "two_head_latent" and profile == "paper":
            # the latent residual is DRA's, so its references are too
            values["model.reference_source"] = method_values("dra", profile)["model.reference_source"]
        columns.append(Column(name, column_label(name), values))
    return columns


def _patches(place: str, counts: Sequence[int], words: str) -> list[Column]:
    return [
        Column(
            f"{place}-{count}",
            f"{count} patches {words}",
            {"model.patch_place": place, "model.patch_count": count},
            count,
            words,
        )
        for count in counts
    ]
