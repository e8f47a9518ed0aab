"""A search whose checkpoints lie in an object store: it is away for a while, its driver is killed, it goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.s3_server import BUCKET, SECRET, S3Server

NAME, EPOCHS = "bucketed", 4


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    server = S3Server(tmp_path)
    yield server
    server.stop()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_in_an_object_store(
    sctune: Any, smoke: list[str], server: S3Server, wait_until: Callable[..., None], tmp_path: Path
) -> None:
    mine = type(sctune)(tmp_path / "home")
    mine.home.mkdir()
    mine.env |= server.env
    more = ["--name", NAME, "--storage-path", f"s3://{BUCKET}/shared", "--sampler", "random", "--scheduler", "none"]
    more += ["--trials", "6", "--keep-best", "2", "--checkpoint-interval", "0", "--set", "budget.iterations=20"]
    log = tmp_path / "stderr"

    def record() -> list[Any]:
        return list(mine.record(NAME)) if (mine.study(NAME) / "study.json").exists() else []

    def ended() -> int:
        return sum(trial.state.name == "COMPLETE" for trial in record())

    with mine.started(*smoke, *more, stderr=log) as process:
        wait_until(lambda: ended() >= 1, 150, "a full run")
        server.hold()
        wait_until(lambda: "paused, no trial is started: the study's storage" in log.read_text(), 120, "the pause")
        server.release()
        before = ended()
        wait_until(lambda: ended() > before, 150, "a full run after it")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert "FAIL" not in {trial.state.name for trial in record()}

    done = mine("resume", NAME, timeout=300)
    assert "record and MLflow agree" in mine("status", NAME, "--check").stdout
    stored = record()
    assert [trial.state.name for trial in stored] == ["COMPLETE"] * 6
    assert all(sorted(trial.intermediate_values) == list(range(1, EPOCHS + 1)) for trial in stored)
    kept = {key.split("/")[3] for key in server.objects() if key.startswith(f"shared/{NAME}/trials/")}
    assert len(kept) == 2
    texts = [log.read_text(), done.stdout, done.stderr]
    texts += [path.read_bytes().decode(errors="replace") for path in mine.home.rglob("*") if path.is_file()]
    assert not [text for text in texts if SECRET in text]

    mine("delete", NAME, "--yes")
    assert not [key for key in server.objects() if key.startswith(f"shared/{NAME}/")]
