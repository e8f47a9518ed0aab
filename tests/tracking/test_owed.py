"""The journal and what it owes: a full disk, a week without end, a crash between any two writes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from sctune.search.reconcile.check import check_stored
from sctune.search.reconcile.sync import sync
from sctune.tracking.journal import Journal
from sctune.tracking.writer import Writer

STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE)
FULL = Path("/dev/full")


def test_a_full_disk_costs_a_bounded_amount_of_memory_and_the_record_makes_up_for_it(
    player: Any, tmp_path: Path, local_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True
    write = Journal.append

    def append(journal: Journal, events: Any) -> int:
        if full:
            with FULL.open("wb", buffering=0) as device:
                device.write(b"x")  # raises what a full disk does
        return write(journal, events)

    monkeypatch.setattr(Journal, "append", append)
    study = player.make_study(tmp_path, local_uri)
    writer = Writer(local_uri, study.folder / "tracking.jsonl", queue_limit=8)
    player.play(study, writer, STATES)
    assert writer.undelivered == 8
    assert writer.lost > 0
    assert writer.owed
    end = time.monotonic() + 30
    while writer.last_error is None and time.monotonic() < end:
        writer.drain(0.1)
    assert "No space left" in str(writer.last_error)
    full = False
    player.end(study, writer)
    writer.close()
    study.record.close()
    player.save_checkpoint(study, 2)
    assert not check_stored(tmp_path, "played").agrees
    result = sync("played", tmp_path, 60)
    assert result.complete, result


def test_a_journal_that_is_delivered_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path)
    sizes = []
    for block in range(30):
        journal.append([{"kind": "tags", "n": 100 * block + n, "text": "x" * 50} for n in range(100)])
        _, last = journal.read(60)
        journal.mark_delivered(last)
        journal.compact(limit=10_000)
        sizes.append(path.stat().st_size)
        if block % 2:
            journal.mark_delivered(journal.read(1000)[1])
    assert max(sizes) < 60_000
    journal.append([{"kind": "tags", "n": -1}])
    seqs = [json.loads(line)["seq"] for line in path.read_text().splitlines()]
    assert seqs == list(range(seqs[0], 3002)), "no number is missing or given twice"
    again = Journal(path)
    assert (again.last, again.delivered) == (3001, 3000)
    assert [event["n"] for event in again.read(10)[0]] == [-1]


def test_a_batch_that_is_on_its_way_while_the_journal_is_cut(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append([{"kind": "tags", "n": n} for n in range(10)])
    journal.mark_delivered(journal.read(6)[1])
    _, last = journal.read(2)
    journal.compact(limit=1)
    journal.append([{"kind": "tags", "n": 10}])
    journal.mark_delivered(last)
    assert [event["n"] for event in journal.read(10)[0]] == [8, 9, 10]


def test_an_event_that_is_no_json_is_left_out_and_holds_up_nothing(tmp_path: Path) -> None:
    circle: dict[str, Any] = {"kind": "tags"}
    circle["tags"] = circle
    journal = Journal(tmp_path / "j.jsonl")
    assert journal.append([{"kind": "tags", "n": 0}, circle, {"kind": "tags", "n": 1}]) == 1
    assert [event["n"] for event in journal.read(10)[0]] == [0, 1]


def test_a_cursor_that_cannot_be_written_only_sends_again_after_a_crash(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append([{"kind": "tags", "n": n} for n in range(3)])
    (tmp_path / "j.jsonl.cursor.new").mkdir()  # writing it fails
    journal.mark_delivered(journal.read(2)[1])
    assert journal.delivered == 2
    assert [event["n"] for event in journal.read(10)[0]] == [2]
    assert Journal(tmp_path / "j.jsonl").delivered == 0


def test_the_mark_of_lost_events_survives_the_process(tmp_path: Path) -> None:
    writer = Writer("http://127.0.0.1:9", tmp_path / "j.jsonl", queue_limit=0)
    writer.put({"kind": "tags"})
    writer.close()
    assert json.loads((tmp_path / "j.jsonl.owed").read_text()) == {"format_version": 1, "owed": 1}
    writer = Writer("http://127.0.0.1:9", tmp_path / "j.jsonl")
    assert writer.owed
    writer.replayed()
    writer.close()
    assert not Writer("http://127.0.0.1:9", tmp_path / "j.jsonl").owed
    assert os.stat(tmp_path / "j.jsonl.owed").st_size < 100
