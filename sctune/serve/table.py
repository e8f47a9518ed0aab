"""Tables of scored images: CSV or JSONL, written row by row so that an interrupted command can go on behind them.

Beside FILE lies FILE.model.json, which says what model and threshold the rows are of.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sctune.errors import DataError
from sctune.files import whole_file

FORMAT_VERSION = 1
COLUMNS = (
    "path", "score", "label", "threshold", "brightness", "contrast", "width", "height", "error",
    "size", "mtime", "sha256", "note",
)  # fmt: skip
"""Tables of earlier versions end with `error`; what they lack is read as None."""
HEAT_MAP = "heat_map"
"""Last column where heat maps are written: the name of the file."""
SUFFIXES = (".csv", ".jsonl")
NUMBERS = ("score", "threshold", "brightness", "contrast")
WHOLE_NUMBERS = ("width", "height", "size")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class FileIdentity:
    """What the rows of a table are of. model: for people; weights: `score_digest`; threshold: None without one."""

    model: str
    weights: str
    threshold: float | None
    columns: tuple[str, ...] = COLUMNS

    @property
    def text(self) -> str:
        return f"{self.model}, digest {self.weights[:8]}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "weights": self.weights,
            "threshold": self.threshold,
            "columns": list(self.columns),
        }


def side_file(table: Path) -> Path:
    """Where the identity of a table lies."""
    return table.with_name(f"{table.name}.model.json")


def read_identity(table: Path) -> FileIdentity | None:
    """None where there is no side file; raises DataError for one that is damaged or of a newer sctune."""
    path = side_file(table)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format_version"] != FORMAT_VERSION:
            raise DataError(f"{path} has format_version {content['format_version']}, this sctune reads 1; update it")
        return FileIdentity(content["model"], content["weights"], content["threshold"], tuple(content["columns"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DataError(f"cannot read {path}, which says what {table} is of: {problem}; give another file") from None


def lines_of(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> bytes:
    """Rows as the lines of a table of this name."""
    if path.suffix.lower() == ".csv":
        return csv_lines(rows, columns).encode()
    return "".join(json.dumps({name: row[name] for name in columns}) + "\n" for row in rows).encode()


def header_of(path: Path, columns: Sequence[str]) -> bytes:
    """What a new table of this name begins with."""
    return (",".join(columns) + "\n").encode() if path.suffix.lower() == ".csv" else b""


def csv_lines(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Rows as lines of CSV; floats with all their digits, None as nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([row[name] for name in columns] for row in rows)
    return text.getvalue()


def read_table(table: Path) -> Iterator[dict[str, Any]]:
    """Rows of a CSV or JSONL file with columns `path` and `score` at least; numbers as numbers, empty cells as None.

    Raises DataError that names the line for what cannot be read.
    """
    try:
        with table.open("rb") as stream:
            yield from rows_of(table, stream)
    except OSError as problem:
        raise DataError(f"cannot read {table}: {problem.strerror}") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system refuses in the block into a DataError that names the place."""
    try:
        yield
    except OSError as problem:
        raise DataError(
            f"cannot write {path}: {problem.strerror or problem}; make room or give another place"
        ) from None


def check_name(path: Path) -> None:
    """Raises DataError for a name that does not say CSV or JSONL."""
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"--out {path}: give a file name that ends in .csv or .jsonl")


def refuse_other(path: Path, identity: FileIdentity) -> None:
    """Raises DataError where the file exists and its rows are of another model or threshold, or heat maps differ."""
    if not path.exists() or path.stat().st_size == 0:
        return
    found = read_identity(path)
    if found is None:
        raise DataError(
            f"{path} exists, and nothing beside it says what model it is of ({side_file(path).name}); give another "
            "--out, or remove it"
        )
    way_out = f"give another --out, or remove it and {side_file(path).name}"
    if found.weights != identity.weights:
        raise DataError(f"{path} holds scores of another model ({found.text}; not {identity.text}); {way_out}")
    if found.threshold != identity.threshold:
        raise DataError(f"{path} was made with the threshold {found.threshold}, not {identity.threshold}; {way_out}")
    # other columns are a matter of the version that wrote it, which `appending` sees to
    if (HEAT_MAP in found.columns) != (HEAT_MAP in identity.columns):
        raise DataError(
            f"{path} was made {'with' if HEAT_MAP in found.columns else 'without'} --heat-maps; do so again, or "
            f"{way_out}"
        )


def write_identity(path: Path, identity: FileIdentity) -> None:
    """Write the side file of a table."""
    target = side_file(path)
    with writing(target), whole_file(target) as staged:
        staged.write_text(json.dumps(identity.to_dict(), indent=1) + "\n", encoding="utf-8")


def rows_of(table: Path, stream: BinaryIO) -> Iterator[dict[str, Any]]:
    """As `read_table`, of an open file; table: for its kind and for messages."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    number = 1
    try:
        if table.suffix.lower() == ".jsonl":
            for line in text:
                yield _typed(json.loads(line))
                number += 1
            return
        reader = csv.DictReader(text, strict=True)
        missing = [name for name in ("path", "score") if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{table} has no column {missing[0]!r}; give a table that `sctune predict` wrote")
        for cells in reader:
            number = reader.line_num
            if None in cells or None in cells.values():
                raise ValueError(f"not {len(reader.fieldnames or ())} cells")
            yield _typed(cells)
    except DataError:
        raise
    except (csv.Error, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise DataError(f"{table}, line {number}: no row of `sctune predict` ({problem})") from None


def _typed(cells: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {name: None if cell == "" else cell for name, cell in cells.items()}
    if not isinstance(row["path"], str):
        raise ValueError("a row without a path")
    for names, kind in ((NUMBERS, float), (WHOLE_NUMBERS, int)):
        row |= {name: kind(row[name]) for name in names if row[name] is not None}
    return row
