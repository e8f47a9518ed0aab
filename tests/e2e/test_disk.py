"""A search whose storage fills up, on a small file system of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SIZE = 64 * 2**20
NAME = "full"


@dataclass(frozen=True)
class Filled:
    """A search that met two full disks. paused: it waited for room. kept: in its checkpoints' folder at its end.

    left: what it left in the folders of figures and model, which were too small for them.
    """

    code: int
    out: str
    err: str
    paused: bool
    kept: tuple[Path, ...]
    left: tuple[Path, ...]


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


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with file.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(b"0" * 2**16)


@pytest.fixture(scope="module")
def filled(
    sctune: Any, smoke: list[str], wait_until: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Filled]:
    """One search for both tests: its checkpoints' disk is full for a while, those of figures and model at its end."""
    folder, study = tmp_path_factory.mktemp("disks"), sctune.study(NAME)
    log = folder / "stderr"
    words = ["--name", NAME, "--storage-path", folder / "small", "--sampler", "random", "--scheduler", "none"]
    words += ["--trials", 3, "--keep-best", 2, "--checkpoint-interval", 0, "--max-concurrent", 1]
    words += ["--set", "budget.iterations=10"]

    def record() -> list[Any]:
        return list(sctune.record(NAME)) if (study / "study.json").exists() else []

    with mounted(folder / "small", SIZE) as small:
        with sctune.started(*smoke, *words, stderr=log) as process:
            wait_until(lambda: any(trial.state.name == "COMPLETE" for trial in record()), 200, "a full run")
            fill(small / "filler")
            wait_until(lambda: "paused, no trial is started: the disk of" in log.read_text(), 100, "the pause")
            # a trial more would be seen by then
            count = len(record())
            time.sleep(1)
            paused = process.poll() is None and len(record()) == count
            with mounted(study / "figures", 2**14) as figures, mounted(study / "best", 2**18) as best:
                (small / "filler").unlink()
                out, _ = process.communicate(timeout=200)
                left = (*figures.iterdir(), *best.iterdir())
        kept = tuple(path.relative_to(small) for path in small.rglob("*"))
        # a sync reads the checkpoints
        yield Filled(process.returncode, out, log.read_text(), paused, kept, left)


@pytest.mark.timeout(600)
def test_a_full_disk_pauses_a_search(sctune: Any, filled: Filled) -> None:
    assert filled.paused
    assert "going on: there is room again" in filled.err
    assert "Traceback" not in filled.err
    stored = sctune.record(NAME)
    assert [trial.state.name for trial in stored] == ["COMPLETE"] * 3
    assert all(sorted(trial.intermediate_values) == [1, 2, 3, 4] for trial in stored)
    assert sum(path.parent == Path(NAME, "trials") for path in filled.kept) == 2
    assert not [path for path in filled.kept if path.name.startswith(".epoch-")]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_disk_that_is_full_at_the_end_costs_nothing_but_a_sync(sctune: Any, filled: Filled) -> None:
    told = filled.out + filled.err
    assert filled.code == 3, told
    (line,) = [line for line in told.splitlines() if "disk is full" in line]
    assert line == f"the disk is full: figures, best model could not be written; make room, then `sctune sync {NAME}`"
    assert filled.left == ()
    checked = sctune("status", NAME, "--check", code=3).stdout
    assert f"its figures or its model were not written, since the disk was full; `sctune sync {NAME}`" in checked
    # it compares again at its end
    synced = sctune("sync", NAME).stdout
    assert f"best model: models:/{NAME}@candidate" in synced
    assert "record and MLflow agree" in synced
    study = sctune.study(NAME)
    assert (study / "figures" / "search.png").is_file() and (study / "best" / "model.safetensors").is_file()
