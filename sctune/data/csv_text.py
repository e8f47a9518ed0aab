"""The text of a CSV file as spreadsheets write it: encoding, separator, header and rows."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from sctune.errors import DataError

SEPARATORS = (",", ";", "\t")
_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_SEP_LINE = re.compile(r'"?sep=(.)"?[,;\t]*', re.IGNORECASE)


@dataclass(frozen=True)
class CsvText:
    """header: names in lower case; rows: (line, cells), both without blanks around; notes: one line each.

    line: where the row ends in the file, from 1. Rows without any text are left out.
    """

    header: list[str]
    rows: list[tuple[int, list[str]]]
    notes: tuple[str, ...]


def read_csv_text(path: Path, known: Sequence[str]) -> CsvText:
    """Header and rows of a CSV file.

    known: names of columns, in lower case, by which the separator is found. Encodings: UTF-8 and UTF-16 with BOM,
    UTF-8 without, else Latin-1, which a note says. Raises DataError for what is no such file, and for a row with more
    cells than the header.
    """
    text, notes = _decoded(path)
    body, skipped, separator = _separated(text, known)
    reader = csv.reader(StringIO(body, newline=""), delimiter=separator)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        rows = [(reader.line_num + skipped, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as problem:
        raise DataError(f"{path}, line {reader.line_num + skipped}: not a CSV file ({problem})") from None
    rows = [(line, cells) for line, cells in rows if any(cells)]
    for line, cells in rows:
        if any(cells[len(header) :]):
            raise DataError(
                f"{path}, line {line}: {len(cells)} cells under {len(header)} columns; put text that holds "
                f'{separator!r} into "quotes"'
            )
    return CsvText(header, rows, notes)


def csv_header(path: Path, known: Sequence[str]) -> list[str]:
    """Names of the columns, in lower case; raises DataError as `read_csv_text`."""
    text, _ = _decoded(path)
    body, _, separator = _separated(text, known)
    return [name.strip().lower() for name in _cells(body.splitlines()[:1], separator)]


def read_text(path: Path) -> str:
    """The text of a file in UTF-8; raises DataError for any other."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"cannot read {path}: {problem}") from None


def _decoded(path: Path) -> tuple[str, tuple[str, ...]]:
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror}") from None
    coding = next((name for mark, name in _BOMS if content.startswith(mark)), "utf-8")
    notes: tuple[str, ...] = ()
    try:
        text = content.decode(coding)
    except UnicodeDecodeError as problem:
        if coding != "utf-8":
            raise DataError(f"cannot read {path}: {problem}; save it as UTF-8") from None
        text, line = _latin(content), content[: problem.start].count(b"\n") + 1
        notes = (f"{path} is not UTF-8 (line {line}) and was read as Latin-1; save it as UTF-8 if names look wrong",)
    if "\0" in text:
        raise DataError(f"cannot read {path}: it holds zero bytes; save it as a CSV file in UTF-8")
    return text, notes


def _latin(content: bytes) -> str:
    try:
        # what Windows calls Latin-1 has letters where Latin-1 has control characters
        return content.decode("cp1252")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _separated(text: str, known: Sequence[str]) -> tuple[str, int, str]:
    """The text from its header on, the number of lines before that, and the separator."""
    lines = StringIO(text, newline="")
    skipped, start = 0, 0
    for line in lines:
        said = _SEP_LINE.fullmatch(line.strip("\r\n"))
        if said:
            return text[start + len(line) :], skipped + 1, said[1]
        if line.strip():
            return text[start:], skipped, _separator(line, known)
        skipped, start = skipped + 1, start + len(line)
    return "", skipped, ","


def _separator(header: str, known: Sequence[str]) -> str:
    """What divides the header into most known columns, then into most columns, then the first of SEPARATORS."""

    def rank(separator: str) -> tuple[int, int]:
        names = [name.strip().lower() for name in _cells([header], separator)]
        return sum(name in known for name in names), len(names)

    return max(SEPARATORS, key=rank)


def _cells(lines: Iterator[str] | Sequence[str], separator: str) -> list[str]:
    try:
        return next(csv.reader(lines, delimiter=separator), [])
    except csv.Error:
        return []
