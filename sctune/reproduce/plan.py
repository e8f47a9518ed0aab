"""From the command's options to the cells, studies and gaps of a table; trains nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from sctune.config import load_profile
from sctune.data.convert import prepare
from sctune.errors import ConfigError, DataError, WeightsError
from sctune.paths import home, studies_folder
from sctune.reproduce.cells import ELPV, Asked, Block, Cell, plain, table_blocks
from sctune.reproduce.checks import check_setup
from sctune.reproduce.columns import Column, before_training, table_columns, with_outliers
from sctune.reproduce.header import header_of
from sctune.reproduce.paper import paper_datasets, paper_table
from sctune.reproduce.setup import Setup
from sctune.reproduce.studies import StudyPlan, plan_studies
from sctune.reproduce.tables import Header, Missing

SEEDS = (42, 43, 44)


@dataclass(frozen=True)
class ReproduceOptions:
    """What the command is told; None: the machine or a default decides.

    methods: columns by name; data_root: folder of prepared data sets; out: folder of the results; shuffled: control
    run on shuffled training labels.
    """

    table: str
    asked: Asked = field(default_factory=Asked)
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = SEEDS
    profile: str | None = None
    data_root: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    out: Path | None = None
    shuffled: bool = False
    study_root: Path | None = None
    max_concurrent: int | None = None


@dataclass(frozen=True)
class TablePlan:
    """A checked plan. missing: what cannot be run, and why; header: the first lines of every output."""

    options: ReproduceOptions
    setup: Setup
    blocks: tuple[Block, ...]
    studies: tuple[StudyPlan, ...]
    missing: tuple[Missing, ...]
    header: Header
    data_root: Path
    out: Path
    study_root: Path

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the table, some followed by the same networks before their training.

        In a control run that is each, and what is not run is left out.
        """
        setup = self.setup
        shown = setup.runnable if setup.shuffled else setup.columns
        return tuple(
            one
            for column in shown
            for one in ((column, before_training(column)) if setup.shows_untrained(column) else (column,))
        )

    @property
    def downloads(self) -> list[str]:
        """What is to be said of ImageNet weights that are not on this machine yet."""
        from sctune.backbones.weights import IMAGENET, local_weights

        users: dict[str, list[str]] = {}
        for study in self.studies:
            if study.trunk is not None and study.trunk[1] == IMAGENET:
                users.setdefault(study.trunk[0], []).extend(column.name for column in study.columns)
        found = []
        for backbone, names in users.items():
            without = f"without them {', '.join(dict.fromkeys(names))} cannot be run"
            try:
                if local_weights(backbone) is None:
                    found.append(f"weights of {backbone} are downloaded when training or scoring needs them; {without}")
            except WeightsError as problem:
                found.append(f"{problem}; {without}")
        return found

    @property
    def lines(self) -> list[str]:
        """The plan in words, as the dry run shows it."""
        runs = [
            f"study {study.name}: {len(study.columns)} trials ({', '.join(c.name for c in study.columns)}) x "
            f"{study.tasks} tasks x {study.epochs} epochs on {study.place.source}; rows: "
            f"{', '.join(cell.row.label for cell in study.cells)}"
            for study in self.studies
        ]
        able = sum(cell.reason is None for block in self.blocks for cell in block.cells)
        total = sum(len(block.cells) for block in self.blocks)
        return [
            *self.header.lines,
            f"{able} of {total} rows can be run with the data in {self.data_root}",
            *runs,
            *self.downloads,
            *(f"missing: {line}" for line in self.missing),
            f"results go to {self.out}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of a dry run."""
        return {
            "format_version": 1,
            "table": self.header.table,
            "header": self.header.lines,
            "studies": [
                {
                    "name": study.name,
                    "data": study.place.source,
                    "category": study.place.category,
                    "rows": [cell.row.label for cell in study.cells],
                    "known_classes": list(study.kinds),
                    "n_anomalies": study.anomalies,
                    "columns": [column.name for column in study.columns],
                    "tasks": study.tasks,
                    "epochs": study.epochs,
                }
                for study in self.studies
            ],
            "downloads": self.downloads,
            "missing": [{"reason": gap.reason, "cells": list(gap.cells)} for gap in self.missing],
            "out": str(self.out),
        }


def make_plan(options: ReproduceOptions) -> TablePlan:
    """Check everything that can be checked before a run. Raises ConfigError with one line; writes nothing."""
    table = paper_table(options.table)
    profile = options.profile or ("paper" if _has_gpu() else "cpu")
    load_profile(profile)
    root = _data_root(options.data_root)
    out = _out_folder(options, profile)
    for option, numbers in (("--seeds", options.seeds), ("--n-anomalies", options.asked.anomalies)):
        if len(set(numbers)) < len(numbers):
            raise ConfigError(f"{option} {','.join(map(str, numbers))}: name each number once")
    columns = with_outliers(table_columns(table, profile, options.methods), options.overrides)
    whole = Setup(table, columns, profile, options.seeds, options.overrides, options.shuffled)
    setup, reasons = check_setup(whole, options.methods)
    blocks = table_blocks(table, options.asked, root)
    studies = tuple(plan_studies(setup, blocks))
    return TablePlan(
        options=options,
        setup=setup,
        blocks=blocks,
        studies=studies,
        missing=(*missing_cells(blocks), *_left_out(columns, reasons)),
        header=header_of(setup, [study.place for study in studies]),
        data_root=root,
        out=out,
        study_root=(options.study_root or studies_folder()).expanduser().absolute(),
    )


def prepare_elpv(plan: TablePlan, say: Callable[[list[str]], None]) -> TablePlan:
    """The plan with ELPV as a prepared folder of the data root, made from the installed package where it is needed."""
    if not any(study.place.source == ELPV for study in plan.studies):
        return plan
    target = plan.data_root / ELPV
    say([f"ELPV is not in {plan.data_root}: preparing it from the installed package"])
    prepare(ELPV, None, target)
    return make_plan(plan.options)


def missing_cells(blocks: Sequence[Block]) -> list[Missing]:
    """The rows that cannot be run, together by their reason."""
    by_reason: dict[str, list[str]] = {}
    for block in blocks:
        for cell in block.cells:
            if cell.reason is not None:
                by_reason.setdefault(cell.reason, []).append(cell_name(block, cell))
    return [Missing(reason, tuple(names)) for reason, names in by_reason.items()]


def _left_out(columns: Sequence[Column], reasons: Mapping[str, str]) -> list[Missing]:
    """The columns that cannot be run, together by their reason."""
    by_reason: dict[str, list[str]] = {}
    for column in columns:
        if column.name in reasons:
            by_reason.setdefault(reasons[column.name], []).append(column.label)
    return [Missing(reason, tuple(labels)) for reason, labels in by_reason.items()]


def cell_name(block: Block, cell: Cell) -> str:
    name = cell.row.label if cell.row.label == block.group.label else f"{block.group.label} {cell.row.label}"
    return f"{name} n={cell.anomalies}" if cell.anomalies else name


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _data_root(given: Path | None) -> Path:
    if given is None:
        return home() / "data"
    root = given.expanduser().absolute()
    if not root.is_dir():
        names = ", ".join(paper_datasets())
        raise DataError(f"--data-root {root} is no folder; give one that holds prepared data sets ({names})")
    return root


def _out_folder(options: ReproduceOptions, profile: str) -> Path:
    out = (options.out or Path("reproduce") / _default_name(options, profile)).expanduser().absolute()
    place = next(folder for folder in (out, *out.parents) if folder.exists())
    if not place.is_dir():
        raise ConfigError(f"--out {out}: {place} is a file; give a folder")
    return out


def _default_name(options: ReproduceOptions, profile: str) -> str:
    """table1-cpu for the plain command; asked for anything else it is another name, so that no results are lost."""
    asked, root = options.asked, _data_root(options.data_root)
    other = {
        "categories": sorted(map(plain, asked.categories)),
        "known_classes": sorted(map(plain, asked.known_classes)),
        "anomalies": sorted(asked.anomalies),
        "methods": sorted(set(options.methods)),
        "seeds": [] if options.seeds == SEEDS else options.seeds,
        "overrides": dict(options.overrides),
        "data_root": "" if root == _data_root(None) else str(root),
    }
    parts = [options.table, profile, *(["shuffled"] if options.shuffled else []), *sorted(asked.datasets)]
    if any(other.values()):
        parts.append(sha256(json.dumps(other, sort_keys=True, default=str).encode()).hexdigest()[:8])
    return "-".join(parts)
