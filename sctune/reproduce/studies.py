"""From cells and columns to studies: one search each over the columns, on the same data and number of anomalies."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from sctune import __version__
from sctune.config import Setting, Task, yaml_text
from sctune.files import replace_files
from sctune.reproduce.cells import Block, Cell, Place
from sctune.reproduce.columns import Column, is_the_papers, own_values
from sctune.reproduce.files import data_digest
from sctune.reproduce.setup import Setup
from sctune.search.plan.options import SearchOptions

Trunk = tuple[str, str]
"""A backbone and its weights, as `model.backbone` and `model.weights` name them."""


@dataclass(frozen=True)
class StudyPlan:
    """One study. cells: of one place and one number of anomalies; columns: its trials, of one trunk or of none."""

    name: str
    place: Place
    setting: Setting
    anomalies: int
    cells: tuple[Cell, ...]
    columns: tuple[Column, ...]
    space: Mapping[str, Any]
    epochs: int
    seeds: tuple[int, ...]
    trunk: Trunk | None = None

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
            own = own_values(column)
            if params.get("variant") == column.name:
                return column
            # a space that varies one field only has no variants
            if params and all(name in own and own[name] == value for name, value in params.items()):
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
            overrides=setup.search_overrides,
            # a table of the paper compares its own columns
            references=False,
            # the last checkpoint of every trial is scored after the study
            keep_best=len(self.columns),
            study_root=study_root,
            max_concurrent=max_concurrent,
        )


def plan_studies(setup: Setup, blocks: Sequence[Block]) -> list[StudyPlan]:
    """The studies that give all cells that can be run, in the order of the table."""
    together: dict[tuple[str, str | None, int], list[Cell]] = {}
    for block in blocks:
        for cell in block.cells:
            if cell.reason is None and cell.place is not None:
                together.setdefault((cell.place.source, cell.place.category, cell.anomalies), []).append(cell)
    alike: dict[tuple[int, bool, bool, Trunk | None], list[Column]] = {}
    for column in setup.runnable:
        alike.setdefault(_alike(setup, column), []).append(column)
    studies = []
    for cells in together.values():
        place = cells[0].place
        assert place is not None
        for (epochs, _, _, trunk), columns in alike.items():
            space = setup.space(columns, epochs)
            anomalies = cells[0].anomalies
            plan = StudyPlan(
                "", place, setup.setting, anomalies, tuple(cells), tuple(columns), space, epochs, setup.seeds, trunk
            )
            studies.append(replace(plan, name=_name(setup, plan)))
    return studies


def _alike(setup: Setup, column: Column) -> tuple[int, bool, bool, Trunk | None]:
    """What is the same for the columns of a study.

    Epochs and weights are by the rules of a study. Another backbone is another study, so that one whose weights cannot
    be had takes no other column with it. The paper's own methods stay among themselves, and so do those that train
    nothing: what is compared with others must not change the name of their study, under which they may be trained
    already.
    """
    config = setup.config(column)
    trunk = (config.model.backbone, config.model.weights) if config.entry.looks_at("model.backbone") else None
    return config.budget.epochs, is_the_papers(column), config.entry.trains, trunk


def write_space(plan: StudyPlan, folder: Path) -> Path:
    """The study's space as a file, which `sctune search --space` would take too; ConfigError where none can be."""
    path = folder / f"{plan.name}.yaml"
    text = yaml_text(plan.space)
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
