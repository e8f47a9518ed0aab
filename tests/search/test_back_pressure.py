"""A full disk and --max-disk hold starts back, say so once, and give way by themselves."""

from __future__ import annotations

import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sctune.search.run import back_pressure as gates
from sctune.search.run.back_pressure import MARGIN, DiskUse, StartGate
from sctune.search.run.retention import CheckpointKeeper
from sctune.trial.checkpoint import TrialStore

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study folder with three trials' checkpoints of one MB each, and a store elsewhere."""
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "record.db").write_bytes(b"0" * 1000)
    for number in range(3):
        store = TrialStore(str(tmp_path / "store"), number)
        store.save(1, 1, {"t": ({"w": torch.zeros(250_000)}, {})}, None, True)
    return folder


def make_gate(
    study: Path, lines: list[str], max_bytes: int | None = None, trouble: Callable[[], str | None] = lambda: None
) -> StartGate:
    storage = str(study.parent / "store")
    keeper = CheckpointKeeper(storage, 3, [])
    keeper.kept = [(0.9, 0), (0.8, -1), (0.7, -2)]
    return StartGate(DiskUse(study, storage), keeper, max_bytes, 2, trouble, lines.append)


def held_back(gate: StartGate) -> bool:
    gate.look()
    return gate()


def test_a_full_disk_holds_starts_back_until_there_is_room(
    study: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 10**9
    monkeypatch.setattr(gates.shutil, "disk_usage", lambda _: Usage(10**10, 0, free))
    gate = make_gate(study, lines)
    assert not held_back(gate)
    # room for two checkpoints is not enough without the margin
    free = MARGIN + 10**6
    assert held_back(gate)
    assert held_back(gate)
    free = MARGIN + 3 * 10**6
    assert not held_back(gate)
    assert len(lines) == 2
    assert lines[0].startswith("paused, no trial is started: the disk of")
    assert "17.8MB free" in lines[0]
    assert lines[1].startswith("going on")
    assert gate.stuck is None


def test_only_the_disk_of_the_checkpoints_needs_room_for_them(
    study: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {study: MARGIN + 1, study.parent / "store": 10**9}
    monkeypatch.setattr(gates.shutil, "disk_usage", lambda place: Usage(10**10, 0, free[place]))
    monkeypatch.setattr(gates, "_device", str)
    gate = make_gate(study, lines)
    assert not held_back(gate)
    free[study] = MARGIN - 1
    assert held_back(gate)
    assert f"the disk of {study} has" in lines[0] and "16.8MB may be needed" in lines[0]
    free |= {study: 10**9, study.parent / "store": MARGIN + 10**6}
    assert held_back(gate)


def test_max_disk_gives_up_the_worst_first_and_the_best_never(study: Path, lines: list[str]) -> None:
    storage = str(study.parent / "store")

    def kept() -> list[int]:
        return [number for number in range(3) if TrialStore(storage, number).names()]

    assert not held_back(make_gate(study, lines, 4 * 10**6))
    assert kept() == [0, 1, 2]
    assert not held_back(make_gate(study, lines, 2_100_000))
    assert kept() == [0, 1]
    gate = make_gate(study, lines, 10**6)
    assert held_back(gate)
    assert kept() == [0]
    assert gate.stuck is not None
    assert "more than --max-disk 1.0MB" in gate.stuck
    # what is being written counts as well
    (study.parent / "store" / "trials" / "00000" / ".epoch-0002-attempt-01.ab").mkdir()
    (study.parent / "store" / "trials" / "00000" / ".epoch-0002-attempt-01.ab" / "x").write_bytes(b"0" * 10**6)
    assert held_back(make_gate(study, lines, 1_500_000))


def test_a_record_that_cannot_be_written_holds_starts_back(study: Path, lines: list[str]) -> None:
    trouble: str | None = "the database is away"
    gate = make_gate(study, lines, trouble=lambda: trouble)
    assert held_back(gate)
    trouble = None
    assert not held_back(gate)
    assert [line.split(":")[0] for line in lines] == ["paused, no trial is started", "going on"]


def test_storage_that_is_gone_holds_starts_back(study: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> Usage:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(gates.shutil, "disk_usage", broken)
    assert held_back(make_gate(study, lines))
    assert "Stale file handle" in lines[0]


def test_a_storage_that_took_no_checkpoint_is_tried_before_the_next_start(
    study: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = make_gate(study, lines)
    assert not held_back(gate)
    gate.doubt()
    assert gate()
    away = True

    def probe(*_: object) -> None:
        if away:
            raise OSError("AWS Error\nNETWORK_CONNECTION")

    with monkeypatch.context() as patched:
        patched.setattr(gates, "probe", probe)
        assert held_back(gate)
        away = False
        assert not held_back(gate)
    gate.doubt()
    assert gate()
    assert not held_back(gate), "the real storage takes a file"
    assert not list((study.parent / "store").glob(".sctune-probe*"))
    assert lines[:2] == [
        "paused, no trial is started: the study's storage took no checkpoint",
        "going on: there is room again, and storage and record can be written",
    ]


def test_a_doubt_that_comes_during_a_look_stays(study: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    gate = make_gate(study, lines)
    gate.doubt()
    monkeypatch.setattr(gates, "probe", lambda *_: gate.doubt())
    assert held_back(gate)
    monkeypatch.undo()
    assert not held_back(gate)


def test_a_pause_is_told_while_nothing_is_to_be_started(
    study: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 10
    monkeypatch.setattr(gates, "CHECK_S", 0.01)
    monkeypatch.setattr(gates.shutil, "disk_usage", lambda _: Usage(10**10, 0, free))
    with make_gate(study, lines):
        while not lines:
            time.sleep(0.01)
        free = 10**9
        while len(lines) < 2:
            time.sleep(0.01)
    assert [line.partition(":")[0] for line in lines] == ["paused, no trial is started", "going on"]
