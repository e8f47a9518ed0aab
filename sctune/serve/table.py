"""Tables of scored images: CSV or JSONL, written row by row so that an interrupted command can go on behind them.

Beside FILE lies FILE.model.json, which says what model and threshold the rows are of.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sctune.errors import DataError

FORMAT_VERSION = 1
COLUMNS = ("path", "score", "label", "threshold", "brightness", "contrast", "width", "height", "error")
HEAT_MAP = "heat_map"
"""Last column where heat maps are written: the name of the file."""
SUFFIXES = (".csv", ".jsonl")
NUMBERS = ("score", "threshold", "brightness", "contrast")
WHOLE_NUMBERS = ("width", "height")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Identity:
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


def read_identity(table: Path) -> Identity | None:
    """None where there is no side file; raises DataError for one that is damaged or of a newer sctune."""
    path = side_file(table)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format_version"] != FORMAT_VERSION:
            raise DataError(f"{path} has format_version {content['format_version']}, this sctune reads 1; update it")
        return Identity(content["model"], content["weights"], content["threshold"], tuple(content["columns"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DataError(f"cannot read {path}, which says what {table} is of: {problem}; give another file") from None


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
            yield from _rows(table, stream)
    except OSError as problem:
        raise DataError(f"cannot read {table}: {problem.strerror}") from None


class Table:
    """A table open for more rows; use `appending`. done: paths of the rows that are there; counts: of all rows."""

    def __init__(self, path: Path, stream: BinaryIO, identity: Identity) -> None:
        self.path = path
        self.identity = identity
        self.done: set[str] = set()
        self.counts = Counts()
        self._stream = stream
        self._end = 0

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows and hand them to the system; raises DataError for a full disk, with whole rows before it."""
        if self.path.suffix.lower() == ".csv":
            text = csv_lines(rows, self.identity.columns)
        else:
            text = "".join(json.dumps({name: row[name] for name in self.identity.columns}) + "\n" for row in rows)
        content = text.encode()
        try:
            self._write_all(content)
        except OSError as problem:
            with suppress(OSError):
                self._stream.truncate(self._end)
            raise DataError(
                f"cannot write {self.path}: {problem.strerror}; {self.counts.rows} rows are there, make room and run "
                "the same command again"
            ) from None
        self._end += len(content)
        for row in rows:
            self.counts.add(row)

    def _take_up(self) -> None:
        """Read the rows that are there, and cut off what was half written."""
        content = self._stream.read()
        self._end = content.rfind(b"\n") + 1
        for row in _rows(self.path, io.BytesIO(content[: self._end])) if self._end else ():
            self.done.add(row["path"])
            self.counts.add(row)
        self._stream.truncate(self._end)
        self._stream.seek(self._end)
        if not self._end and self.path.suffix.lower() == ".csv":
            header = (",".join(self.identity.columns) + "\n").encode()
            with writing(self.path):
                self._write_all(header)
            self._end = len(header)

    def _write_all(self, content: bytes) -> None:
        # an unbuffered stream may take a part, which on a full disk comes before the error
        written = 0
        while written < len(content):
            written += self._stream.write(content[written:])


@dataclass
class Counts:
    """Rows by what became of them."""

    rows: int = 0
    anomalous: int = 0
    normal: int = 0
    failed: int = 0

    def add(self, row: Row) -> None:
        self.rows += 1
        self.failed += row["error"] is not None
        self.anomalous += row["label"] == "anomalous"
        self.normal += row["label"] == "normal"


@contextmanager
def appending(path: Path, identity: Identity) -> Iterator[Table]:
    """A new table, or one of the same model and threshold to go on with.

    Raises DataError for an existing file of something else, for one that another process writes, and where it cannot
    be written.
    """
    check_name(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_other(path, identity)
        stream = path.open("a+b", buffering=0)
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another command is writing {path}; wait for it, or give another --out") from None
        except OSError:  # a network file system without locks
            pass
        stream.seek(0)
        table = Table(path, stream, identity)
        _write_identity(path, identity)
        table._take_up()
        yield table


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


def refuse_other(path: Path, identity: Identity) -> None:
    """Raises DataError where the file exists and its rows are of another model, threshold or set of columns."""
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
    if found.columns != identity.columns:
        raise DataError(
            f"{path} was made {'with' if HEAT_MAP in found.columns else 'without'} --heat-maps; do so again, or "
            f"{way_out}"
        )


def _write_identity(path: Path, identity: Identity) -> None:
    target = side_file(path)
    staged = target.with_name(f"{target.name}.new")
    with writing(target):
        staged.write_text(json.dumps(identity.to_dict(), indent=1) + "\n", encoding="utf-8")
        staged.replace(target)


def _rows(table: Path, stream: BinaryIO) -> Iterator[dict[str, Any]]:
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
