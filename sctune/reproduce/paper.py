"""The paper's tables as data: its numbers, its rows, its data sets (paper tables 1 to 4, figure 7; `paper.yaml`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from sctune.config import Setting
from sctune.errors import ConfigError, nearest

_NUMBER = re.compile(r"([01]\.\d+)(?:±(\d\.\d{3}))?")


@dataclass(frozen=True)
class Number:
    """AUROC in [0, 1] and its standard deviation; None where the paper gives none. source: empty for the paper."""

    mean: float
    std: float | None
    source: str = ""


Numbers = Mapping[tuple[int, str], Number]
"""(training anomalies, column) -> the paper's number; what it lacks or the text at hand has lost is not in it."""


@dataclass(frozen=True)
class PaperRow:
    """A line of a table: a category of a data set, or an anomaly class that is known in training."""

    label: str
    category: str | None = None
    known_class: str | None = None
    numbers: Numbers = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Rows of one data set, and the line that averages them; mean_label: None where there is one row only."""

    label: str
    dataset: str
    rows: tuple[PaperRow, ...]
    category: str | None = None
    mean_label: str | None = None
    means: Numbers = field(default_factory=dict)


@dataclass(frozen=True)
class Note:
    """What a reader must know. columns: it is said where one of them is run; of none: always."""

    text: str
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class PaperTable:
    """A table or figure. columns: the paper's, in its order; vary: those that are run unless others are asked for.

    untrained: of these the ones that stand beside themselves before their training; elsewhere: data set that the table
    lacks -> what others print of it.
    """

    name: str
    title: str
    setting: Setting
    anomalies: tuple[int, ...]
    columns: tuple[str, ...]
    vary: tuple[str, ...]
    untrained: tuple[str, ...]
    notes: tuple[Note, ...]
    groups: tuple[Group, ...]
    elsewhere: Mapping[str, Numbers] = field(default_factory=dict)


@dataclass(frozen=True)
class PaperData:
    """A data set of the paper; categories: empty where it has none."""

    name: str
    label: str
    categories: tuple[str, ...]


def paper_table(name: str) -> PaperTable:
    """A table by name; raises ConfigError with the nearest one for others."""
    tables = _content()["tables"]
    if name not in tables:
        raise ConfigError(f"unknown table {name!r}; {nearest(name, tables)}")
    entry = tables[name]
    columns = tuple(entry.get("columns", ()))
    sources, elsewhere = entry.get("sources", {}), entry.get("elsewhere", {"numbers": {}})
    return PaperTable(
        name=name,
        title=entry["title"],
        setting=entry["setting"],
        anomalies=tuple(entry["anomalies"]),
        columns=columns,
        vary=tuple(entry.get("vary", columns)),
        untrained=tuple(entry.get("untrained", ())),
        notes=tuple(
            Note(note) if isinstance(note, str) else Note(note["text"], tuple(note["columns"]))
            for note in entry.get("notes", ())
        ),
        groups=tuple(_group(group, columns, sources) for group in entry["groups"]),
        elsewhere={
            data: _numbers({entry["anomalies"][0]: numbers}, columns, dict.fromkeys(columns, elsewhere["source"]))
            for data, numbers in elsewhere["numbers"].items()
        },
    )


def table_names() -> tuple[str, ...]:
    return tuple(_content()["tables"])


def paper_datasets() -> dict[str, PaperData]:
    """The six data sets by name, in the paper's order."""
    return {
        name: PaperData(name, entry["label"], tuple(entry.get("categories", ())))
        for name, entry in _content()["datasets"].items()
    }


def column_label(name: str) -> str:
    """What a method or another column is called in tables."""
    return str(_content()["labels"].get(name, name))


def readings_of(name: str) -> tuple[str, ...]:
    """Columns that are our reading of the paper's column `name`; empty where there is none."""
    return tuple(_content()["readings"].get(name, ()))


def _group(entry: Mapping[str, Any], columns: tuple[str, ...], sources: Mapping[str, str]) -> Group:
    mean = entry.get("mean", {})
    return Group(
        label=entry["label"],
        dataset=entry["dataset"],
        rows=tuple(
            PaperRow(row["label"], row.get("category"), row.get("known_class"), _numbers(row, columns, sources))
            for row in entry["rows"]
        ),
        category=entry.get("category"),
        mean_label=mean.get("label"),
        means=_numbers(mean, columns, sources),
    )


def _numbers(entry: Mapping[Any, Any], columns: tuple[str, ...], sources: Mapping[str, str]) -> Numbers:
    found = {}
    for anomalies, listed in entry.items():
        if isinstance(anomalies, int):
            for column, text in zip(columns, listed, strict=True):
                if text is not None:
                    found[anomalies, column] = _number(str(text), sources.get(column, ""))
    return found


def _number(text: str, source: str) -> Number:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"paper.yaml: {text!r} is no number of a table")
    return Number(float(match[1]), None if match[2] is None else float(match[2]), source)


@cache
def _content() -> dict[str, Any]:
    return dict(yaml.safe_load(files("sctune.reproduce").joinpath("paper.yaml").read_text(encoding="utf-8")))
