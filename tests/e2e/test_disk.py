"""A search whose storage fills up, on a small file system of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SIZE = 64 * 2**20


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes at `folder`, which is made where it is missing."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root and mount(8)")
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    with mounted(tmp_path / "small", SIZE) as folder:
        yield folder


@pytest.mark.timeout(240)
def test_a_full_disk_pauses_a_search(
    sctune: Any, smoke: list[str], small_disk: Path, wait_until: Callable[..., None], tmp_path: Path
) -> None:
    more = ["--name", "full", "--storage-path", small_disk, "--sampler", "random", "--scheduler", "none"]
    more += [
        "--trials",
        4,
        "--keep-best",
        2,
        "--checkpoint-interval",
        0,
        "--max-concurrent",
        1,
        "--set",
        "budget.iterations=10",
    ]
    log = tmp_path / "stderr"

    def record() -> list[Any]:
        return list(sctune.record("full")) if (sctune.study("full") / "study.json").exists() else []

    with sctune.started(*smoke, *more, stderr=log) as process:
        wait_until(lambda: any(trial.state.name == "COMPLETE" for trial in record()), 100, "a full run")
        filler = small_disk / "filler"
        with filler.open("wb") as file:
            try:
                while True:
                    file.write(b"0" * 2**16)
                    file.flush()
            except OSError:
                pass
        wait_until(lambda: "paused, no trial is started: the disk of" in log.read_text(), 60, "the pause")
        paused_at = len(record())
        wait_until(lambda: process.poll() is not None or len(record()) == paused_at, 5)
        assert process.poll() is None
        filler.unlink()
        assert process.wait(timeout=150) == 0, log.read_text()
    text = log.read_text()
    assert "going on: there is room again" in text
    assert "Traceback" not in text
    stored = sctune.record("full")
    assert [trial.state.name for trial in stored] == ["COMPLETE"] * 4
    assert all(sorted(trial.intermediate_values) == [1, 2, 3, 4] for trial in stored)
    folders = sorted(path.name for path in (small_disk / "full" / "trials").iterdir())
    assert len(folders) == 2
    assert not list(small_disk.rglob(".epoch-*"))


@pytest.mark.timeout(300)
def test_a_disk_that_is_full_at_the_end_costs_nothing_but_a_sync(
    sctune: Any, smoke: list[str], wait_until: Callable[..., None], tmp_path: Path
) -> None:
    study = sctune.study("late")
    with sctune.started(*smoke, "--name", "late", "--trials", 1, stderr=tmp_path / "stderr") as process:
        wait_until((study / "study.json").exists, 100, "the study")
        with mounted(study / "figures", 2**14) as figures, mounted(study / "best", 2**18) as best:
            out, _ = process.communicate(timeout=100)
            left = [*figures.iterdir(), *best.iterdir()]
    err = (tmp_path / "stderr").read_text()
    assert process.returncode == 3, out + err
    (line,) = [line for line in (out + err).splitlines() if "disk is full" in line]
    assert line == "the disk is full: figures, best model could not be written; make room, then `sctune sync late`"
    assert "Traceback" not in err and "COMPLETE" in out + err
    assert left == []
    checked = sctune("status", "late", "--check", code=3).stdout
    assert "its figures or its model were not written, since the disk was full; `sctune sync late`" in checked
    synced = sctune("sync", "late").stdout
    assert "best model: models:/late@candidate" in synced
    assert (study / "figures" / "search.png").is_file() and (study / "best" / "model.safetensors").is_file()
    assert "record and MLflow agree" in sctune("status", "late", "--check").stdout
