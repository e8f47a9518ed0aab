"""From scores to results, and the three renderings of a table."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from sklearn.metrics import roc_auc_score

from sctune.metrics.statistics import Scores
from sctune.reproduce.cells import Asked, Block, table_blocks
from sctune.reproduce.columns import Column, before_training, table_columns
from sctune.reproduce.paper import Number, paper_table
from sctune.reproduce.pictures import _curves, _dots, picture
from sctune.reproduce.results import Ours, Result, table_results
from sctune.reproduce.tables import (
    CSV_COLUMNS,
    DASH,
    HEADINGS,
    MORE_HEADINGS,
    Header,
    Missing,
    csv_text,
    markdown,
    notes,
    terminal_tables,
)
from tests.reproduce.conftest import CARPET, write_root

HEADER = Header("table2", "AUROC in the hard setting", "cpu", "profile cpu; seeds 42, 43", ("a note",), False)
CREDITED = replace(HEADER, attributions=("Images by somebody",))


def make_scores(draw: int, pool: str, subset: str, seed: int) -> Scores:
    random = np.random.default_rng(draw)
    labels = np.array([0] * 30 + [1] * 20)
    paths = tuple(map(str, range(50)))
    return Scores(pool, subset, paths, labels, random.normal(size=50) + labels, seed)


def auroc(run: Scores) -> float:
    return float(roc_auc_score(run.labels, run.scores))


class Table:
    """Results of a table whose data exist as folders; `without`: cells that have no scores."""

    def __init__(self, name: str, root: Path, without: tuple[str, ...] = (), **asked: Any) -> None:
        table = paper_table(name)
        self.blocks: tuple[Block, ...] = table_blocks(table, Asked(**asked), root)
        self.columns: tuple[Column, ...] = table_columns(table, "cpu")
        self.scored: dict[Any, list[Scores]] = {}
        for block in self.blocks:
            for cell in block.cells:
                if cell.reason is None and cell.place is not None and cell.row.label not in without:
                    for column in self.columns:
                        if column.values is not None:
                            first = len(self.scored) * 2
                            runs = [make_scores(first + n, cell.place.name, cell.row.label, 42 + n) for n in (0, 1)]
                            self.scored[cell.key, column.name] = runs
        self.results = table_results(self.blocks, self.columns, self.scored)

    def find(self, row: str, column: str, anomalies: int = 10) -> Result:
        (result,) = [
            result
            for result in self.results
            if (result.row, result.column.name, result.anomalies) == (row, column, anomalies)
        ]
        return result

    def runs(self, row: str, column: str) -> list[Scores]:
        (found,) = [r for (_, name), r in self.scored.items() if name == column and r[0].subset == row]
        return found


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Worked out once: its intervals are of 2000 samples each, and no test changes it."""
    root = write_root(tmp_path_factory.mktemp("table") / "data", {"mvtec/carpet": CARPET})
    with pytest.MonkeyPatch.context() as patch:
        # made before the patch that each test has
        patch.setattr("sctune.reproduce.cells.elpv_installed", lambda: False)
        return Table("table2", root, categories=("carpet",), anomalies=(10,))


def test_a_row_is_the_mean_over_its_seeds(table: Table) -> None:
    result = table.find("Cut", "dra")
    values = [auroc(run) for run in table.runs("Cut", "dra")]
    assert result.ours is not None
    assert result.ours.auroc == pytest.approx(np.mean(values))
    assert result.ours.std_trials == result.ours.std_pooled == pytest.approx(np.std(values))
    assert (result.ours.std_subsets, result.ours.seeds, result.ours.subsets) == (None, 2, 1)
    assert result.ours.by_seed == pytest.approx(dict(zip((42, 43), values, strict=True)))
    assert result.ours.low < result.ours.auroc < result.ours.high
    assert result.paper == Number(0.922, 0.038)
    assert result.difference == pytest.approx(np.mean(values) - 0.922)


def test_a_mean_averages_its_rows(table: Table) -> None:
    rows = ("Color", "Cut", "Hole", "Metal", "Thread")
    values = np.array([[auroc(run) for run in table.runs(row, "saliencycut")] for row in rows])
    mean = table.find("Mean", "saliencycut")
    assert mean.is_mean and mean.ours is not None and mean.note == ""
    assert mean.ours.auroc == pytest.approx(values.mean())
    assert mean.ours.std_trials == pytest.approx(values.mean(axis=0).std())
    assert mean.ours.std_subsets == pytest.approx(values.mean(axis=1).std())
    assert mean.ours.std_pooled == pytest.approx(values.std())
    assert (mean.ours.seeds, mean.ours.subsets) == (2, 5)
    assert mean.ours.by_seed == pytest.approx(dict(zip((42, 43), values.mean(axis=0), strict=True)))
    assert mean.paper == Number(0.965, 0.018)


def test_a_mean_over_some_rows_is_no_counterpart_of_the_papers(carpet: Path) -> None:
    """Whether rows were not asked for, or are missing."""
    asked = Table("table2", carpet, categories=("carpet",), known_classes=("cut", "hole"), anomalies=(10,))
    missing = Table("table2", carpet, ("Color", "Metal", "Thread"), categories=("carpet",), anomalies=(10,))
    for table in (asked, missing):
        mean = table.find("Mean", "saliencycut")
        assert mean.ours is not None and mean.ours.subsets == 2
        assert (mean.paper, mean.difference, mean.note) == (None, None, "partial: 2 of 5 rows")
    # of one row it would only repeat the row
    one = Table("table2", carpet, categories=("carpet",), known_classes=("cut",), anomalies=(10,))
    assert [result.row for result in one.results] == ["Cut"] * 9


def test_methods_that_are_not_here_stand_with_the_papers_numbers(table: Table) -> None:
    result = table.find("Thread", "saoe")
    assert (result.ours, result.difference, result.paper) == (None, None, Number(0.834, 0.297))
    ours = table.find("Thread", "saoe_no_outliers")
    assert ours.ours is not None and (ours.paper, ours.difference) == (None, None)


def test_a_lost_mean_is_worked_out_and_marked(make_root: Any) -> None:
    table = Table("table2", make_root({"elpv": {"mono": 12, "poly": 12}}), datasets=("elpv",), anomalies=(10,))
    mean = table.find("Mean", "saliencycut")
    assert mean.paper is None and mean.difference is None and mean.ours is not None
    assert mean.derived is not None and mean.derived.mean == pytest.approx(0.781)
    assert mean.derived.std == pytest.approx(0.0606, abs=1e-4)
    text = markdown(HEADER, table.results, [])
    assert "≈0.781 (of its rows)" in text and "≈ marks a mean that the text at hand has lost" in text
    assert table.find("Mean", "dra").derived is None
    # for programs too, apart from what the paper itself prints
    (row,) = [
        row
        for row in csv.DictReader(io.StringIO(csv_text(HEADER, table.results)))
        if (row["row"], row["column"]) == ("Mean", "saliencycut")
    ]
    assert (row["paper_auroc"], row["difference"]) == ("", "")
    assert float(row["paper_derived"]) == mean.derived.mean
    assert float(row["difference_derived"]) == mean.difference_derived == mean.ours.auroc - mean.derived.mean
    document = mean.to_dict()
    assert document["paper"] is None and document["difference"] is None
    assert document["paper_derived"] == {"mean": mean.derived.mean, "std": mean.derived.std, "source": ""}
    assert document["difference_derived"] == mean.difference_derived


def test_a_partial_mean_has_no_difference_to_a_derived_one(make_root: Any) -> None:
    root = make_root({"elpv": {"mono": 12, "poly": 12}})
    mean = Table("table2", root, ("Mono",), datasets=("elpv",), anomalies=(10,)).find("Mean", "saliencycut")
    assert mean.derived is not None and mean.ours is not None and mean.note == "partial: 1 of 2 rows"
    assert mean.difference_derived is None


def test_csv_holds_every_number(table: Table) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(HEADER, table.results))))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert len(rows) == len(table.results) == 6 * 9
    for row, result in zip(rows, table.results, strict=True):
        assert (row["table"], row["profile"], row["labels"]) == ("table2", "cpu", "true")
        assert (row["row"], row["column"], row["is_mean"]) == (
            result.row,
            result.column.name,
            str(int(result.is_mean)),
        )
        if result.ours is None:
            assert row["auroc"] == row["ci_low"] == row["std_pooled"] == row["difference"] == ""
        else:
            assert float(row["auroc"]) == result.ours.auroc
            assert float(row["ci_high"]) == result.ours.high
            assert float(row["std_pooled"]) == result.ours.std_pooled
        assert row["paper_auroc"] == ("" if result.paper is None else str(result.paper.mean))
        if result.difference is not None:
            assert float(row["difference"]) == result.difference


def test_markdown_has_a_line_for_every_number(table: Table) -> None:
    gaps = [Missing("it is not there", tuple(f"cell {n}" for n in range(6)))]
    text = markdown(HEADER, table.results, gaps)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert cells[0] == [*HEADINGS, *MORE_HEADINGS]
    assert len(lines) == 2 + len(table.results)
    assert {len(row) for row in cells} == {12}
    cut = table.find("Cut", "dra")
    assert cut.ours is not None and cut.ours.std_trials is not None and cut.difference is not None
    (found,) = [row for row in cells if row[0] == "Carpet Cut" and row[2] == "DRA"]
    assert found == [
        "Carpet Cut",
        "10",
        "DRA",
        f"{cut.ours.auroc:.3f}",
        f"{cut.ours.low:.3f} to {cut.ours.high:.3f}",
        f"{cut.ours.std_trials:.3f}",
        DASH,
        f"{cut.ours.std_pooled:.3f}",
        "0.922 ± 0.038",
        f"{cut.difference:+.3f}",
        "2",
        "",
    ]
    (absent,) = [row for row in cells if row[0] == "Carpet Cut" and row[2] == "MLEP"]
    assert absent[3:8] == [DASH] * 5 and absent[8:] == ["0.653 ± 0.120", DASH, DASH, ""]
    assert "- cell 0, cell 1, cell 2, cell 3 and 2 more: it is not there" in text
    assert "profile cpu; seeds 42, 43" in text and "- a note" in text


def test_rows_that_training_makes_worse_are_named() -> None:
    column = Column("cutpaste", "CutPaste")
    values = {"Carpet": (0.75, 0.9), "Grid": (0.9, 0.75), "Wood": (0.8, None)}
    results = []
    for row, pair in values.items():
        for one, value in zip((column, before_training(column)), pair, strict=True):
            ours = None if value is None else Ours(value, None, None, None, value, value, 1, 1, {42: value})
            results.append(Result("MVTec AD", row, 0, one, False, ours, None))
    expected = "CutPaste is better before its training than after it: MVTec AD Carpet 0.900 and 0.750"
    assert notes(HEADER, results) == ["a note", expected]
    assert notes(CREDITED, results) == ["a note", "images: Images by somebody", expected]
    # of shuffled labels nothing is to be learned
    assert notes(replace(HEADER, shuffled=True), results) == ["a note"]


def test_a_network_that_its_training_leaves_as_it_was_is_named() -> None:
    column = Column("cutpaste", "CutPaste")
    pairs = {"Carpet": (0.75, 0.75), "Grid": (0.75, 0.7)}
    results = [
        Result("MVTec AD", row, 1, one, False, Ours(value, None, None, None, value, value, 1, 1, {42: value}), None)
        for row, pair in pairs.items()
        for one, value in zip((column, before_training(column)), pair, strict=True)
    ]
    (line,) = notes(HEADER, results)[1:]
    assert line.startswith("CutPaste scores the same before its training") and line.endswith("(MVTec AD Carpet n=1)")


def test_methods_that_one_without_training_is_better_than_are_named() -> None:
    dra, gaussian = (
        Column(name, name, {"method.name": kind}) for name, kind in (("dra", "deviation"), ("G", "gaussian"))
    )
    values = {1: (0.7, 0.9), 10: (0.9, 0.8)}
    results = [
        Result("ELPV", "ELPV", n, one, False, Ours(value, None, None, None, value, value, 1, 1, {42: value}), None)
        for n, pair in values.items()
        for one, value in zip((dra, gaussian), pair, strict=True)
    ]
    assert notes(HEADER, results)[1:] == ["G, nothing trained, is above dra: ELPV n=1 0.900 and 0.700"]
    assert notes(replace(HEADER, shuffled=True), results) == ["a note"]


def test_the_terminal_table_fits_80_columns(table: Table) -> None:
    stream = io.StringIO()
    Console(file=stream, width=80).print(*terminal_tables(table.results), sep="\n")
    shown = stream.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert "Carpet, 10 training anomalies" in shown
    for text in ("Metal", "Mean", "DevNet", ".933±.022", ".965±.018"):
        assert text in shown
    cut = table.find("Cut", "saliencycut")
    assert cut.ours is not None and f"{cut.ours.auroc:.3f}"[1:] in shown


def test_a_control_run_is_marked_everywhere(table: Table, tmp_path: Path) -> None:
    header = Header("table2", "title", "cpu", "facts", (), True)
    assert "**CONTROL RUN: trained on SHUFFLED LABELS" in markdown(header, table.results, [])
    assert {row["labels"] for row in csv.DictReader(io.StringIO(csv_text(header, table.results)))} == {"shuffled"}
    marked, plain = (picture(h, table.results, tmp_path / n) for h, n in ((header, "a.png"), (HEADER, "b.png")))
    reds = []
    for path in (marked, plain):
        title = np.asarray(Image.open(path).convert("RGB"), int)[:45]
        reds.append(int((title[..., 0] > title[..., 1] + 80).sum()))
    assert reds[0] > 100 and reds[1] == 0


@pytest.mark.parametrize("name", ["table1", "fig7a", "fig7b"])
def test_pictures_are_drawn_for_every_kind_of_table(carpet: Path, tmp_path: Path, name: str) -> None:
    header = Header(name, "title", "cpu", "facts", (), False)
    full = Table(name, carpet, categories=("carpet",))
    empty = Table(name, carpet, tuple(row.label for group in paper_table(name).groups for row in group.rows))
    sizes = []
    for number, table in enumerate((full, empty)):
        path = picture(header, table.results, tmp_path / f"{number}.png")
        with Image.open(path) as image:
            sizes.append(image.size)
            assert len(image.convert("RGB").getcolors(2**24) or []) > 10
    assert all(width > 400 and height > 200 for width, height in sizes)


def test_the_picture_says_what_is_partial_and_missing(carpet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    whole = Figure.suptitle
    monkeypatch.setattr(Figure, "suptitle", lambda self, text, **more: (titles.append(text), whole(self, text, **more)))
    shown: dict[str, tuple[list[str], str]] = {}
    for name, without in (("table2", ()), ("table2", ("Color", "Cut")), ("fig7b", ()), ("fig7b", ("Color", "Cut"))):
        table = Table(name, carpet, without, categories=("carpet",), anomalies=(10,))
        axes = Figure().subplots()
        handles = (_curves if name == "fig7b" else _dots)(axes, table.results)
        labels = [str(h.get_label()) for h in handles] + [tick.get_text() for tick in axes.get_yticklabels()]
        picture(HEADER, table.results, carpet.parent / "a.png")
        shown[f"{name} {len(without)}"] = (labels, titles[-1].splitlines()[-1])
    assert "Carpet Mean (partial: 3 of 5 rows)" in shown["table2 2"][0]
    assert "Carpet, anywhere (partial: 3 of 5 rows)" in shown["fig7b 2"][0]
    for name in ("table2", "fig7b"):
        assert shown[f"{name} 2"][1] == "2 of 5 rows missing or without all columns"
        assert "missing" not in shown[f"{name} 0"][1] and "partial" not in "".join(shown[f"{name} 0"][0])


def test_the_same_numbers_give_the_same_picture(table: Table, tmp_path: Path) -> None:
    first, second = (picture(HEADER, table.results, tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
