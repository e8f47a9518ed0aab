"""Rows of the board from the documents of `sctune reproduce --json`: what is trained there is not trained again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure_common import Row

from sctune.errors import ConfigError

CELLS = {"table1": "{n}", "table2": "hard {row}", "table3": "none"}
"""Table -> name of the board's cell that a row of it is."""
HARD = 10
"""Anomalies of the known class in the board's hard cells."""


def reproduced_rows(assignments: Sequence[str]) -> list[Row]:
    """A row for each data set, method and seed. assignments: NAME=FILE, the board's name of the table's one data set.

    Raises ConfigError for what is no such document, or no training of the board.
    """
    found: dict[tuple[str, str, int], Row] = {}
    for assignment in assignments:
        data, _, path = assignment.partition("=")
        for (column, cell), seeds in _read(assignment, Path(path)).items():
            for seed, value in seeds.items():
                row = found.setdefault(
                    (data, column, int(seed)), {"data": data, "method": column, "seed": int(seed), "cells": {}}
                )
                row["cells"][cell] = {"auroc": value, "untrained": None}
    return list(found.values())


def _read(assignment: str, path: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Column and cell of the board -> AUROC of each seed."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        table, results = document["table"], document["results"]
        if table not in CELLS or document["profile"] != "cpu" or document["shuffled_labels"]:
            raise ConfigError(f"--reproduced {assignment}: the board is of table1 to table3, profile cpu, true labels")
        shown = [(one["column"], _cell(table, one), one["ours"]["by_seed"]) for one in results if one["ours"]]
    except (OSError, ValueError, TypeError, KeyError):
        raise ConfigError(
            f"--reproduced {assignment}: give NAME=FILE, what sctune reproduce table1|2|3 --json printed at its end"
        ) from None
    found: dict[tuple[str, str], dict[str, float]] = {}
    for column, cell, by_seed in shown:
        # before its training the board has it of its own seeds
        if cell is None or column.endswith("-untrained"):
            continue
        if (column, cell) in found:
            raise ConfigError(f"--reproduced {assignment}: {column} has two rows {cell!r}; give a data set a file each")
        found[column, cell] = by_seed
    return found


def _cell(table: str, result: Row) -> str | None:
    """The board's cell of a result, None for means and for cells that the board has not."""
    if result["is_mean"] or (table == "table2" and result["n_anomalies"] != HARD):
        return None
    return CELLS[table].format(n=result["n_anomalies"], row=result["row"])
