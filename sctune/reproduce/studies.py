"""From cells and columns to studies: one search each over the columns, on the same data and number of anomalies."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from sctune import __version__
from sctune.config import TASK_FIELDS, Setting, Task, TrialConfig, field_names, is_field, load_profile
from sctune.errors import ConfigError, nearest
from sctune.files import replace_files
from sctune.reproduce.cells import Block, Cell, Place
from sctune.reproduce.columns import EPOCHS, Column
from sctune.reproduce.files import data_digest
from sctune.reproduce.paper import PaperTable
from sctune.search.plan.options import SearchOptions
from sctune.search.space.activation import activation_conditions

SELECTION_LIMIT = 16
"""Test images per class scored after each epoch: curves for the tracking only, nothing is chosen by them."""

SHUFFLE = "data.shuffle_labels"
PAPER = {"model.normal_head": "mlp"}
"""The paper's methods have no density of the normal images, whatever the profile has."""
_OPTIONS = {"data.n_anomalies": "--n-anomalies", "data.selection": "", SHUFFLE: "--shuffle-labels"}


@dataclass(frozen=True)
class Setup:
    """What all studies of one command share. overrides: dotted values of --set."""

    table: PaperTable
    columns: tuple[Column, ...]
    profile: str
    seeds: tuple[int, ...]
    overrides: Mapping[str, Any]
    shuffled: bool

    def config(self, column: Column) -> TrialConfig:
        """The configuration of a column without its data; raises ConfigError where it cannot be."""
        setting = self.table.setting
        hard = {"data.known_class": "any"} if setting == "hard" else {}
        fixed = {"data.setting": setting, "data.selection": "test", **hard, **self._fixed()}
        return load_profile(self.profile).override(fixed | dict(column.values or {}) | dict(self.overrides))

    def _fixed(self) -> dict[str, Any]:
        # only where it changes something: what is fixed is in the name of a study
        own = load_profile(self.profile).flat()
        paper = {name: value for name, value in PAPER.items() if own[name] != value}
        return paper | {"data.selection_limit": SELECTION_LIMIT} | ({SHUFFLE: True} if self.shuffled else {})

    def space(self, columns: Sequence[Column], epochs: int) -> dict[str, Any]:
        """The space file that varies these columns, all trained for the same number of epochs."""
        varied = {column.name: _varied(column) for column in columns}
        fields = [tuple(values) for values in varied.values()]
        tree: dict[str, Any] = {"format_version": 1, "name": f"reproduce-{self.table.name}"}
        tree["description"] = f"{self.table.title} (paper, {self.table.name})"
        if len(set(fields)) == 1 and len(fields[0]) == 1:
            (field,) = fields[0]
            tree["parameters"] = {field: {"values": [values[field] for values in varied.values()]}}
        else:
            tree["variants"] = varied
        tree["set"] = self._fixed() | {EPOCHS: epochs}
        return tree


@dataclass(frozen=True)
class StudyPlan:
    """One study. cells: of one place and one number of anomalies; columns: its trials."""

    name: str
    place: Place
    setting: Setting
    anomalies: int
    cells: tuple[Cell, ...]
    columns: tuple[Column, ...]
    space: Mapping[str, Any]
    epochs: int
    seeds: tuple[int, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.kind for cell in self.cells if cell.kind is not None))

    @property
    def tasks(self) -> int:
        return max(1, len(self.kinds)) * len(self.seeds)

    def task(self, cell: Cell, seed: int) -> Task:
        """The task that gives a cell's number for one seed."""
        place = self.place
        return Task(
            source=place.source, category=place.category, setting=self.setting, known_class=cell.kind, seed=seed
        )

    def column_of(self, params: Mapping[str, Any]) -> Column | None:
        """The column that a trial of the study was run for, by its parameters."""
        for column in self.columns:
            if params.get("variant") == column.name or dict(params) == _varied(column):
                return column
        return None

    def search_options(
        self, setup: Setup, space_file: Path, study_root: Path, max_concurrent: int | None
    ) -> SearchOptions:
        """What `run_search` is asked for."""
        place = self.place
        return SearchOptions(
            space=str(space_file),
            name=self.name,
            profile=setup.profile,
            data=place.source,
            categories=() if place.category is None else (place.category,),
            setting=self.setting,
            known_classes=self.kinds,
            n_anomalies=self.anomalies or None,
            seeds=self.seeds,
            selection="test",
            sampler="grid",
            scheduler="none",
            overrides=dict(setup.overrides),
            # a table of the paper compares its own columns
            references=False,
            # the last checkpoint of every trial is scored after the study
            keep_best=len(self.columns),
            study_root=study_root,
            max_concurrent=max_concurrent,
        )


def check_setup(setup: Setup) -> tuple[Setup, dict[str, str]]:
    """The setup with the columns that can be trained, and the reasons why others of a figure cannot.

    Raises ConfigError for --set of what the table varies or an option sets or what takes the effect from it, and for
    a column of a table that cannot be trained with these values.
    """
    varied = {name for column in setup.columns for name in _varied(column)}
    for name in setup.overrides:
        if not is_field(name):
            raise ConfigError(f"--set {name}: unknown configuration key; {nearest(name, field_names())}")
        if name in varied:
            raise ConfigError(f"--set {name}: {setup.table.name} varies it; leave it out, or run `sctune search`")
        if name in (*TASK_FIELDS, *_OPTIONS):
            instead = f"; use {_OPTIONS[name]}" if _OPTIONS.get(name) else ""
            raise ConfigError(f"--set {name}: the table decides it{instead}")
    _check_effect(setup)
    impossible: dict[str, str] = {}
    runnable = [column for column in setup.columns if column.values is not None]
    for column in runnable:
        try:
            setup.config(column)
        except ConfigError as problem:
            if column.point is None or len(impossible) == len(runnable) - 1:
                raise ConfigError(f"{column.label}: {problem}") from None
            impossible[column.name] = str(problem)
    return replace(setup, columns=tuple(c for c in setup.columns if c.name not in impossible)), impossible


def _check_effect(setup: Setup) -> None:
    """Raises ConfigError for --set of a value under which what a figure varies is without effect."""
    # a method's lesser settings may well be; the axis of a figure may not
    varied = {name: None for column in setup.columns if column.point is not None for name in _varied(column)}
    for name in varied:
        for other, wanted in activation_conditions().get(name, ()):
            if other in setup.overrides and setup.overrides[other] not in wanted:
                raise ConfigError(
                    f"--set {other}={setup.overrides[other]}: {setup.table.name} varies {name}, which has an effect "
                    f"only with {other}={' or '.join(map(str, wanted))}; leave it out"
                )


def plan_studies(setup: Setup, blocks: Sequence[Block]) -> list[StudyPlan]:
    """The studies that give all cells that can be run, in the order of the table."""
    together: dict[tuple[str, str | None, int], list[Cell]] = {}
    for block in blocks:
        for cell in block.cells:
            if cell.reason is None and cell.place is not None:
                together.setdefault((cell.place.source, cell.place.category, cell.anomalies), []).append(cell)
    lengths: dict[int, list[Column]] = {}
    for column in setup.columns:
        if column.values is not None:
            lengths.setdefault(setup.config(column).budget.epochs, []).append(column)
    studies = []
    for cells in together.values():
        place = cells[0].place
        assert place is not None
        for epochs, columns in lengths.items():
            space = setup.space(columns, epochs)
            anomalies = cells[0].anomalies
            plan = StudyPlan(
                "", place, setup.table.setting, anomalies, tuple(cells), tuple(columns), space, epochs, setup.seeds
            )
            studies.append(replace(plan, name=_name(setup, plan)))
    return studies


def write_space(plan: StudyPlan, folder: Path) -> Path:
    """The study's space as a file, which `sctune search --space` would take too; ConfigError where none can be."""
    path = folder / f"{plan.name}.yaml"
    text = yaml.safe_dump(dict(plan.space), sort_keys=False)
    replace_files({path: lambda staged: staged.write_text(text, encoding="utf-8")})
    return path


def _name(setup: Setup, plan: StudyPlan) -> str:
    """Readable, and the same exactly for the same work: settings, data and version are in its last part."""
    work = {
        "table": [setup.table.name, plan.setting, plan.anomalies],
        "space": plan.space,
        "profile": setup.profile,
        "overrides": dict(setup.overrides),
        "place": [plan.place.source, plan.place.category],
        "data": data_digest(plan.place.data),
        "kinds": plan.kinds,
        "seeds": plan.seeds,
        "version": __version__,
    }
    digest = sha256(json.dumps(work, sort_keys=True, default=str).encode()).hexdigest()[:8]
    anomalies = f"n{plan.anomalies}" if plan.anomalies else ""
    where = [setup.table.name, plan.place.dataset, plan.place.category or "", plan.setting, anomalies, setup.profile]
    parts = [part for part in where if part] + (["shuffled"] if setup.shuffled else [])
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", f"reproduce-{'-'.join(parts)}")
    return f"{readable[:71]}-{digest}"


def _varied(column: Column) -> dict[str, Any]:
    return {name: value for name, value in (column.values or {}).items() if name not in (EPOCHS, *PAPER)}
