"""A reproduced table as CSV, as Markdown and for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from sctune.reproduce.columns import before_training, entry_of
from sctune.reproduce.paper import Number
from sctune.reproduce.results import Ours, Result

DASH = "\N{EM DASH}"

CSV_COLUMNS = (
    "table",
    "group",
    "row",
    "n_anomalies",
    "column",
    "is_mean",
    "auroc",
    "std_trials",
    "std_subsets",
    "std_pooled",
    "ci_low",
    "ci_high",
    "seeds",
    "subsets",
    "paper_auroc",
    "paper_std",
    "difference",
    "paper_derived",
    "difference_derived",
    "note",
    "profile",
    "labels",
)

HEADINGS = ("data", "n", "method", "AUROC", "95 % interval", "std trials", "std subsets", "std pooled", "paper")
MORE_HEADINGS = ("difference", "seeds", "note")
OF_ITS_ROWS = " (of its rows)"


@dataclass(frozen=True)
class Header:
    """What every rendering of a table says first. facts: profile, image size, epochs and so on, one line.

    attributions: what the licences of the images ask for, a line each.
    """

    table: str
    title: str
    profile: str
    facts: str
    notes: tuple[str, ...]
    shuffled: bool
    attributions: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        warning = ["CONTROL RUN: trained on SHUFFLED LABELS; none of these numbers is a result"]
        return [f"{self.table}: {self.title}", *(warning if self.shuffled else []), self.facts]


@dataclass(frozen=True)
class Missing:
    """Cells without a number, for one reason."""

    reason: str
    cells: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(self.cells[:4]) + (f" and {len(self.cells) - 4} more" if len(self.cells) > 4 else "")
        return f"{shown}: {self.reason}"


def csv_text(header: Header, results: Sequence[Result]) -> str:
    """One line per number; empty where there is none. All numbers with full precision."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for result in results:
        ours, paper = result.ours, result.paper
        measured = (
            (ours.auroc, ours.std_trials, ours.std_subsets, ours.std_pooled, ours.low, ours.high, ours.seeds)
            if ours
            else (None,) * 7
        )
        writer.writerow(
            (
                header.table,
                result.group,
                result.row,
                result.anomalies,
                result.column.name,
                int(result.is_mean),
                *measured,
                ours.subsets if ours else None,
                paper.mean if paper else None,
                paper.std if paper else None,
                result.difference,
                result.derived.mean if result.derived else None,
                result.difference_derived,
                result.note,
                header.profile,
                "shuffled" if header.shuffled else "true",
            )
        )
    return stream.getvalue()


def markdown(header: Header, results: Sequence[Result], missing: Sequence[Missing]) -> str:
    """The whole report: header, table, notes, what is missing and why."""
    title, *lines = header.lines
    parts = [f"# {title}", *(f"**{line}**" if "CONTROL" in line else line for line in lines)]
    rows = [(*HEADINGS, *MORE_HEADINGS), ("---",) * (len(HEADINGS) + len(MORE_HEADINGS)), *map(cells, results)]
    parts.append("\n".join(f"| {' | '.join(text.replace('|', '/') for text in row)} |" for row in rows))
    parts.append("\n".join(f"- {line}" for line in notes(header, results)))
    if missing:
        parts.append("Missing:\n\n" + "\n".join(f"- {line}" for line in missing))
    return "\n\n".join(parts) + "\n"


def terminal_tables(results: Sequence[Result]) -> list[Table]:
    """The same numbers within 80 columns, a table for each group; lines without any number are left out."""
    tables: dict[tuple[str, int], Table] = {}
    place = None
    for result in results:
        if result.ours is None and result.paper is None and result.derived is None:
            continue
        key = (result.group, result.anomalies)
        if key not in tables:
            tables[key] = _terminal_table(*key)
        row = result.row + (f" ({result.note})" if result.note else "")
        first, place = (row if (*key, row) != place else ""), (*key, row)
        texts = [text.replace("0.", ".") for text in cells(result)]
        auroc, interval, *stds, paper, difference = texts[3:10]
        tables[key].add_row(
            first,
            result.column.label,
            auroc,
            interval.replace(" to ", "-"),
            *stds,
            paper.removesuffix(OF_ITS_ROWS).replace(" ", ""),
            difference,
            style="bold" if result.is_mean else None,
        )
    return list(tables.values())


def training(anomalies: int) -> str:
    """The number of training anomalies in words."""
    return f"{anomalies or 'no'} training {'anomaly' if anomalies == 1 else 'anomalies'}"


def _terminal_table(group: str, anomalies: int) -> Table:
    table = Table(
        title=f"{group}, {training(anomalies)}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for heading in ("", "method", "AUROC", "95 %", "trial", "subs.", "pool.", "paper", "diff."):
        # long names of data and methods take more lines, numbers never do
        name = heading in ("", "method")
        table.add_column(heading, overflow="fold", no_wrap=not name, justify="left" if name else "right")
    return table


def cells(result: Result) -> tuple[str, ...]:
    """A result in words, in the order of the headings; a dash where there is no number."""
    derived = f"≈{result.derived.mean:.3f}{OF_ITS_ROWS}" if result.derived else DASH
    paper = _number(result.paper) if result.paper else derived
    difference = DASH if result.difference is None else f"{result.difference:+.3f}"
    seeds = str(result.ours.seeds) if result.ours else DASH
    amount = str(result.anomalies)
    return (_data(result), amount, result.column.label, *_measured(result.ours), paper, difference, seeds, result.note)


def notes(header: Header, results: Sequence[Result]) -> list[str]:
    """What a reader must know to compare the numbers."""
    lines = [*header.notes, *(f"images: {line}" for line in header.attributions)]
    if any(result.derived for result in results):
        lines.append("≈ marks a mean that the text at hand has lost, worked out from the paper's own rows")
    return lines if header.shuffled else [*lines, *_worse(results), *_without_training(results)]


def _worse(results: Sequence[Result]) -> list[str]:
    """Lines about rows in which a network is better before its training than after it, or the very same."""
    before = {(_data(one), one.anomalies, one.column.name): one.ours for one in results if one.column.untrained}
    found: dict[str, list[str]] = {}
    same: dict[str, list[str]] = {}
    for result in results:
        ours = result.ours
        start = before.get((_data(result), result.anomalies, before_training(result.column).name))
        if ours and start and start.auroc > ours.auroc:
            row = f"{_row(result)} {start.auroc:.3f} and {ours.auroc:.3f}"
            found.setdefault(result.column.label, []).append(row)
        elif ours and start and start.by_seed == ours.by_seed:
            same.setdefault(result.column.label, []).append(_row(result))
    return [
        *(f"{label} is better before its training than after it: {'; '.join(rows)}" for label, rows in found.items()),
        *(
            f"{label} scores the same before its training: with these settings nothing that scores is trained "
            f"({'; '.join(rows)})"
            for label, rows in same.items()
        ),
    ]


def _without_training(results: Sequence[Result]) -> list[str]:
    """Lines about trained methods that one without any training is better than, by their rows."""
    idle = [one for one in results if one.ours and not entry_of(one.column).trains]
    found: dict[tuple[str, str], list[str]] = {}
    for one in idle:
        for other in results:
            same = (_data(other), other.anomalies) == (_data(one), one.anomalies)
            shown = same and other.ours and not other.column.untrained and entry_of(other.column).trains
            if shown and one.ours and other.ours and one.ours.auroc > other.ours.auroc:
                row = f"{_row(one)} {one.ours.auroc:.3f} and {other.ours.auroc:.3f}"
                found.setdefault((one.column.label, other.column.label), []).append(row)
    return [f"{one}, nothing trained, is above {other}: {'; '.join(rows)}" for (one, other), rows in found.items()]


def _row(result: Result) -> str:
    return _data(result) + (f" n={result.anomalies}" if result.anomalies else "")


def _data(result: Result) -> str:
    return result.row if result.row == result.group else f"{result.group} {result.row}"


def _measured(ours: Ours | None) -> tuple[str, ...]:
    if ours is None:
        return (DASH,) * 5
    stds = (ours.std_trials, ours.std_subsets, ours.std_pooled)
    shown = (DASH if std is None else f"{std:.3f}" for std in stds)
    return (f"{ours.auroc:.3f}", f"{ours.low:.3f} to {ours.high:.3f}", *shown)


def _number(number: Number) -> str:
    return f"{number.mean:.3f}" + ("" if number.std is None else f" ± {number.std:.3f}")
