"""Which cells a table has, which of them are asked for, and which the data at hand allow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from sctune.data.catalog import DataSet, open_dataset, sole_category
from sctune.data.layouts import folders_in
from sctune.errors import ConfigError, DataError, nearest
from sctune.reproduce.paper import Group, PaperData, PaperRow, PaperTable, paper_datasets, paper_table

ELPV = "elpv"


CellKey = tuple[str, str | None, int]
"""Data, known class, number of training anomalies."""


@dataclass(frozen=True)
class Asked:
    """The part of a table that is wanted; an empty list asks for all that the paper has. A name given twice is one."""

    datasets: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    known_classes: tuple[str, ...] = ()
    anomalies: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("datasets", "categories", "known_classes"):
            first: dict[str, str] = {}
            for value in getattr(self, name):
                first.setdefault(plain(value), value)
            object.__setattr__(self, name, tuple(first.values()))


@dataclass(frozen=True)
class Place:
    """Data that are there. source and category: as a task names them; data: what was found."""

    dataset: str
    source: str
    category: str | None
    data: DataSet

    @property
    def name(self) -> str:
        return self.dataset if self.category is None else f"{self.dataset}/{self.category}"


@dataclass(frozen=True)
class Cell:
    """A row of a table at one number of training anomalies (0: anomaly-free).

    kind: folder of the known class (hard setting); reason: why it cannot be run, None where it can.
    """

    row: PaperRow
    anomalies: int
    place: Place | None = None
    kind: str | None = None
    reason: str | None = None

    @property
    def key(self) -> CellKey:
        """The same for two cells that are the same runs."""
        return (self.place.name if self.place else self.row.label, self.kind, self.anomalies)


@dataclass(frozen=True)
class Block:
    """Cells of one group. rows: how many rows the group has in all, of which some may not be asked for."""

    group: Group
    cells: tuple[Cell, ...]
    rows: int

    @property
    def whole(self) -> bool:
        """Whether all rows that the group's mean averages are among the cells."""
        return len({cell.row.label for cell in self.cells}) == self.rows


def plain(name: str) -> str:
    """A name without what folders and papers write differently: case, `_`, `-` and spaces."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def match(name: str, known: Iterable[str]) -> str | None:
    """The known name that is the same but for case, `_`, `-` and spaces; None where there is none."""
    return next((other for other in known if plain(other) == plain(name)), None)


def table_blocks(table: PaperTable, asked: Asked, root: Path) -> tuple[Block, ...]:
    """The blocks of a table that are asked for, each cell with its data below `root` or the reason why not.

    A data set or category that the paper's table lacks can be asked for: such cells have no numbers of the paper.
    Raises ConfigError for names that do not exist.
    """
    _check(table, asked)
    places = _Places(root)
    blocks = []
    classes: set[str] = set()
    for group, total in _groups(table, asked):
        rows = group.rows or _rows_of_data(group, asked, places)
        classes |= {row.label for row in rows if row.known_class}
        wanted = tuple(row for row in rows if _is_known(row, asked.known_classes))
        cells = tuple(
            _cell(table.setting, group, row, anomalies, places)
            for row in wanted
            for anomalies in asked.anomalies or table.anomalies
        )
        if cells:
            blocks.append(Block(group, cells, total or len(rows)))
    for name in asked.known_classes:
        if match(name, (text for block in blocks for cell in block.cells for text in _names(cell.row))) is None:
            raise ConfigError(f"--known-class {name!r}: no such class in {table.name}; {nearest(name, classes)}")
    return tuple(blocks)


def _check(table: PaperTable, asked: Asked) -> None:
    datasets = paper_datasets()
    for name in asked.datasets:
        if name not in datasets:
            raise ConfigError(f"unknown --dataset {name!r}; {nearest(name, datasets)}")
    owners = [data for data in datasets.values() if data.categories and data.name in (asked.datasets or datasets)]
    known = [category for data in owners for category in data.categories]
    for name in asked.categories:
        if match(name, known) is None:
            if not owners:
                raise ConfigError(f"--category {name!r}: {', '.join(asked.datasets)} has no categories; leave it out")
            raise ConfigError(f"--category {name!r}: {owners[0].name} has no such category; {nearest(name, known)}")
    if asked.known_classes and table.setting != "hard":
        raise ConfigError(f"--known-class goes with the hard setting (table2, table4, fig7a, fig7b), not {table.name}")
    if table.setting == "anomaly-free" and asked.anomalies:
        raise ConfigError(f"--n-anomalies: {table.name} is the anomaly-free setting, which trains on none")


def _groups(table: PaperTable, asked: Asked) -> list[tuple[Group, int]]:
    """The groups asked for with the rows asked for, and how many the group has in all; 0: those that the data have."""
    datasets = paper_datasets()
    wanted = [match(name, datasets["mvtec"].categories) or name for name in asked.categories]
    names = asked.datasets or (("mvtec",) if wanted else tuple(datasets))
    chosen, seen = [], set()
    for group in table.groups:
        rows = tuple(row for row in group.rows if not wanted or _category(group, row) in (None, *wanted))
        if group.dataset in names and rows:
            chosen.append((replace(group, rows=rows), len(group.rows)))
            seen |= {(group.dataset, _category(group, row)) for row in rows}
    for name in asked.datasets:
        if not datasets[name].categories and (name, None) not in seen:
            more = _more(table, datasets[name], None)
            chosen.append((more, len(more.rows)))
    for category in wanted:
        if ("mvtec", category) not in seen:
            more = _more(table, datasets["mvtec"], category)
            chosen.append((more, len(more.rows)))
    return chosen


def _category(group: Group, row: PaperRow) -> str | None:
    return group.category or row.category


def _more(table: PaperTable, data: PaperData, category: str | None) -> Group:
    """A group that the paper's table does not have; in the hard setting with the classes of its Table 2, if any."""
    label = category.capitalize() if category else data.label
    if table.setting != "hard":
        return Group(label, data.name, (PaperRow(label, category, numbers=table.elsewhere.get(data.name, {})),))
    for group in paper_table("table2").groups:
        if (group.dataset, group.category) == (data.name, category):
            return replace(group, rows=tuple(replace(row, numbers={}) for row in group.rows), means={})
    # without rows: its classes are those that the data have
    return Group(label, data.name, (), category, "Mean")


class _Places:
    """Looks for data once each; gives a reason where they are not there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._found: dict[tuple[str, str | None], Place | str] = {}

    def find(self, dataset: str, category: str | None) -> Place | str:
        if (dataset, category) not in self._found:
            self._found[dataset, category] = self._look(dataset, category)
        return self._found[dataset, category]

    def _look(self, dataset: str, category: str | None) -> Place | str:
        folder = match(dataset, folders_in(self.root))
        if folder is None and dataset == ELPV and elpv_installed():
            return Place(ELPV, ELPV, None, open_dataset(ELPV))
        if folder is None:
            label = paper_datasets()[dataset].label
            return f"{label} is not in {self.root}; `sctune data list` says how to get it"
        source = self.root / folder
        name = None
        if category is not None:
            name = match(category, folders_in(source))
            if name is None:
                return f"{source} has no folder {category}; `sctune data list` says how to get it"
        try:
            if category is None:
                name = sole_category(source)
            return Place(dataset, str(source), name, open_dataset(str(source), name))
        except DataError as problem:
            return str(problem)


def elpv_installed() -> bool:
    return find_spec("elpv_dataset") is not None


def _rows_of_data(group: Group, asked: Asked, places: _Places) -> tuple[PaperRow, ...]:
    """A row for each anomaly class of the data; where they are missing, for those asked for by name."""
    place = places.find(group.dataset, group.category)
    if isinstance(place, str):
        return tuple(PaperRow(name, known_class=name) for name in asked.known_classes) or (PaperRow("each class"),)
    return tuple(PaperRow(kind, known_class=kind) for kind in place.data.kinds)


def _cell(setting: str, group: Group, row: PaperRow, anomalies: int, places: _Places) -> Cell:
    place = places.find(group.dataset, _category(group, row))
    if isinstance(place, str):
        return Cell(row, anomalies, reason=place)
    kind = None
    if setting == "hard":
        kind = match(str(row.known_class), place.data.kinds)
        if kind is None:
            known = ", ".join(place.data.kinds)
            return Cell(row, anomalies, reason=f"{place.name} has no anomaly class {row.known_class}, only {known}")
    reason = _too_few(setting, place, kind, anomalies)
    return Cell(row, anomalies, place, kind, reason)


def _too_few(setting: str, place: Place, kind: str | None, anomalies: int) -> str | None:
    total = len(place.data.anomalies)
    if setting == "hard":
        own = sum(file.kind == kind for file in place.data.anomalies)
        if own < anomalies:
            return f"{place.name} has {own} images of {kind}, {anomalies} are to be trained on"
        if own == total:
            return f"{place.name} has no other anomaly class than {kind} to test on"
    elif total <= anomalies:
        return f"{place.name} has {total} anomalies; {anomalies} in training leave none to test on"
    return None


def _is_known(row: PaperRow, wanted: Sequence[str]) -> bool:
    return not wanted or any(match(name, _names(row)) is not None for name in wanted)


def _names(row: PaperRow) -> tuple[str, ...]:
    return tuple(name for name in (row.label, row.known_class) if name)
