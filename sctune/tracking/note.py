"""The description of a study's run in MLflow: its best trials as a table, links to their charts, the next commands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from sctune.metrics.merit import in_order
from sctune.metrics.objective import Objective
from sctune.text import without_sections
from sctune.tracking.plots import PlottedTrial

TOP = 10
MOST_COMPARED = 50
"""Runs on one page of MLflow's; its address holds all their ids."""
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|<>~&])")


def study_note(
    name: str, rows: Sequence[PlottedTrial], noise: float | None, facts: Sequence[tuple[str, str]], objective: Objective
) -> str:
    """Markdown with places for `linked`. noise: standard error of the best value; facts: (what, text) lines."""
    ranked = in_order(rows, objective)
    ended = [row for row in ranked if row.value is not None and row.state in ("COMPLETE", "PRUNED")]
    counts = {state: sum(row.state == state for row in rows) for state in dict.fromkeys(row.state for row in ranked)}
    lines = ["No full run yet.", ""]
    if ended and ended[0].state == "COMPLETE":
        spread = "" if noise is None else f" &pm; {noise:.4f} (standard error over the scored images)"
        best = f"trial {ended[0].number}, {_plain(objective.metric)} {ended[0].value:.4f}"
        lines = [f"**Best: {best}**{spread}", ""]
    if ended:
        # first, since the page folds a long description
        compared = [row.number for row in ended[:MOST_COMPARED]]
        lines += [
            f"[Compare {'the best' if len(compared) < len(ended) else 'the'} {len(compared)} trials]({{compare:"
            f"{','.join(map(str, compared))}}}): parallel coordinates, scatter and contour plots",
            "",
            *_table(ended[:TOP], objective),
            "",
        ]
    lines += [f"- {_plain(what)}: {_plain(text)}" for what, text in facts]
    lines += ["- trials: " + (", ".join(f"{count} {state}" for state, count in counts.items()) or "none"), ""]
    lines += [
        "```",
        f"sctune status {name}          # all trials, and what can be told apart",
        f"sctune best {name} > best.yaml",
        f"sctune report {name} --out report.html",
        "```",
        "",
        f"In the search box: `tags.study = '{name}' and tags.state = 'COMPLETE'`",
    ]
    return "\n".join(lines)


def linked(note: str, experiment: str, run_of: Callable[[int], str | None]) -> str:
    """The note with addresses inside MLflow's page; run_of: id of a trial's run, None for one that is not known."""

    def run(match: re.Match[str]) -> str:
        found = run_of(int(match[1]))
        return "#" if found is None else f"#/experiments/{quote(experiment)}/runs/{quote(found)}"

    def compare(match: re.Match[str]) -> str:
        ids = [found for number in match[1].split(",") if (found := run_of(int(number))) is not None]
        return f"#/compare-runs?runs={_listed(ids)}&experiments={_listed([experiment])}"

    return re.sub(r"\{compare:([\d,]+)\}", compare, re.sub(r"\{run:(\d+)\}", run, note))


def _table(rows: Sequence[PlottedTrial], objective: Objective) -> list[str]:
    names = sorted({name for row in rows for name in row.params})
    head = ["trial", "state", "epochs", _plain(objective.label), *without_sections(names).values()]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row.state, str(max(row.values, default=0)), f"{row.value:.4f}"]
        cells += [_plain(_text(row.params.get(name, ""))) for name in names]
        lines.append([f"[{row.number}]({{run:{row.number}}})", *cells])
    return [f"| {' | '.join(line)} |" for line in lines]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is, in one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split())).replace(r"\<", "&lt;").replace(r"\&", "&amp;")


def _listed(values: Sequence[str]) -> str:
    return quote(json.dumps(list(values)), safe="")
