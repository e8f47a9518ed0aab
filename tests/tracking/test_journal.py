from __future__ import annotations

import json
from pathlib import Path

import pytest

from sctune.errors import TrackingError
from sctune.tracking.journal import Journal


def filled(path: Path, count: int) -> Journal:
    journal = Journal(path)
    journal.append([{"kind": "tags", "n": n} for n in range(count)])
    return journal


def numbers(journal: Journal, limit: int = 100) -> list[int]:
    return [event["n"] for event in journal.read(limit)[0]]


def test_reads_on_after_what_was_delivered_and_numbers_for_ever(tmp_path: Path) -> None:
    journal = filled(tmp_path / "j.jsonl", 5)
    events, last = journal.read(2)
    assert ([event["n"] for event in events], last) == ([0, 1], 2)
    assert numbers(journal, 2) == [0, 1], "reading alone delivers nothing"
    journal.mark_delivered(2)
    assert numbers(journal) == [2, 3, 4]
    again = Journal(tmp_path / "j.jsonl")
    assert (again.delivered, again.last) == (2, 5)
    assert numbers(again) == [2, 3, 4]
    again.append([{"kind": "tags", "n": 5}])
    assert [json.loads(line)["seq"] for line in (tmp_path / "j.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_a_delivered_journal_is_started_anew_and_its_numbers_go_on(tmp_path: Path) -> None:
    journal = filled(tmp_path / "j.jsonl", 3)
    journal.read(10)
    journal.mark_delivered(3)
    again = Journal(tmp_path / "j.jsonl")
    assert (tmp_path / "j.jsonl").stat().st_size == 0
    again.append([{"kind": "tags", "n": 7}])
    assert (again.last, numbers(again)) == (4, [7])


@pytest.mark.parametrize(
    "torn", [b'{"format_version": 1, "se', b'{"format_version": 1, "seq": 4, "event": {"n": 9}}', b"\xff\xfe"]
)
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "j.jsonl"
    filled(path, 3).close()
    with path.open("ab") as stream:
        stream.write(torn)
    journal = Journal(path)
    journal.append([{"kind": "tags", "n": 3}])
    assert numbers(journal) == [0, 1, 2, 3]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_damaged_line_in_the_middle_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    filled(path, 3).close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"#" * 20 + b"\n" + lines[2])
    journal = Journal(path)
    assert (numbers(journal), journal.last) == ([0, 2], 3)


def test_a_damaged_cursor_only_sends_again(tmp_path: Path) -> None:
    journal = filled(tmp_path / "j.jsonl", 3)
    journal.read(2)
    journal.mark_delivered(2)
    (tmp_path / "j.jsonl.cursor").write_text("{")
    assert numbers(Journal(tmp_path / "j.jsonl")) == [0, 1, 2]


def test_a_newer_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text('{"format_version": 99, "seq": 1, "event": {}}\n')
    with pytest.raises(TrackingError, match="newer sctune"):
        Journal(tmp_path / "j.jsonl")


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="cannot write the tracking journal"):
        Journal(tmp_path / "file" / "j.jsonl")
