"""A search whose storage fills up, on a small file system of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SIZE = 64 * 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root and mount(8)")
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


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
