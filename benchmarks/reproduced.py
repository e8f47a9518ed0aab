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

    Raises ConfigError for what is no such document.
    """
    found: dict[tuple[str, str, int], Row] = {}
    for assignment in assignments:
        data, _, path = assignment.partition("=")
        document = _read(assignment, Path(path))
        shown = {(one["column"], _cell(document["table"], one)): one for one in document["results"] if one["ours"]}
        for (column, cell), one in shown.items():
            if cell is None or column.endswith("-untrained"):
                continue
            before = shown.get((f"{column}-untrained", cell))
            untrained = {} if before is None else before["ours"]["by_seed"]
            for seed, value in one["ours"]["by_seed"].items():
                row = found.setdefault(
                    (data, column, int(seed)), {"data": data, "method": column, "seed": int(seed), "cells": {}}
                )
                row["cells"][cell] = {"auroc": value, "untrained": untrained.get(seed) if untrained else None}
    return list(found.values())


def _cell(table: str, result: Row) -> str | None:
    """The board's cell of a result, None for means and for cells that the board has not."""
    if result["is_mean"] or (table == "table2" and result["n_anomalies"] != HARD):
        return None
    return CELLS[table].format(n=result["n_anomalies"], row=result["row"].lower())


def _read(assignment: str, path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if document["table"] in CELLS:
            return document
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise ConfigError(f"--reproduced {assignment}: give NAME=FILE, a document of sctune reproduce table1|2|3 --json")
