"""Three machines as far as files go: each node has a mount namespace in which the driver's folders are hidden.

One node goes and another comes while a search runs. Only `--storage-path`, the images and the environment are shared.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import COMMAND
from tests.hosts import HEALTH, RAY, end_namespace, namespaces_missing, without

EPOCHS = 8


class Node:
    """`ray start --block` and all that it starts, in a mount namespace of its own."""

    def __init__(self, words: list[str], env: dict[str, str], *hidden: Path) -> None:
        command = without(*hidden)
        self.hidden = hidden[0]
        self.process = subprocess.Popen(
            [*command, str(RAY), "start", "--block", *words],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.said = ""
        self.up = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if "--block" in line:  # the last thing that it says, when it has started
                self.up.set()
        self.up.set()

    def wait(self) -> None:
        assert self.up.wait(120), self.said
        assert self.process.poll() is None, self.said
        self.namespace = os.readlink(f"/proc/{self.process.pid}/ns/mnt")

    def files(self) -> list[str]:
        """What the node wrote where the driver has its folders."""
        root = Path(f"/proc/{self.process.pid}/root{self.hidden}")
        return sorted(path.name for path in root.iterdir())

    def kill(self) -> None:
        """End everything in the node's namespace at once, as when its power fails."""
        end_namespace(self.namespace)
        self.process.wait(10)


@pytest.fixture
def nodes(sctune: Any) -> Iterator[Callable[..., Node]]:
    """Starts a node of one CPU each time it is called; the first call makes the head, which runs no trials.

    Arguments are the folders that are hidden from the node, in place of the driver's home.
    """
    reason = namespaces_missing()
    if reason is not None:
        pytest.skip(reason)
    from sctune.search.cluster.connection import RAY_ENVIRONMENT

    env = {**sctune.env, **RAY_ENVIRONMENT, **HEALTH}
    # Ray's sockets need a short path
    temporary = Path(tempfile.mkdtemp(prefix="sct-", dir="/tmp"))
    started: list[Node] = []

    def start(*hidden: Path) -> Node:
        if not started:
            words = ["--head", "--port=0", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={temporary}"]
            (empty := temporary / "nothing").mkdir()
            node = Node(words, env, empty)
        else:
            node = Node([f"--address={started[0].address}", "--num-cpus=1"], env, *(hidden or [sctune.home]))
        started.append(node)
        node.wait()
        if len(started) == 1:
            match = re.search(r"--address='([^']+)'", node.said)
            assert match, node.said
            node.address = match[1]  # type: ignore[attr-defined]
        return node

    try:
        yield start
    finally:
        for node in reversed(started):
            if hasattr(node, "namespace"):
                node.kill()
            else:
                sctune.end_group(node.process.pid)
        shutil.rmtree(temporary, ignore_errors=True)


def epochs_of(log: Path) -> list[list[int]]:
    """Epochs told by each attempt of a trial, from its log."""
    attempts: list[list[int]] = []
    for line in log.read_text().splitlines() if log.exists() else []:
        if " start: " in line:
            attempts.append([])
        elif match := re.search(rf" epoch (\d+)/{EPOCHS} ", line):
            attempts[-1].append(int(match[1]))
    return attempts


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_goes_and_another_comes(
    sctune: Any, smoke: list[str], nodes: Callable[[], Any], runs_of: Any, wait_until: Any, tmp_path: Path
) -> None:
    head, first, second = nodes(), nodes(), nodes()
    shared = tmp_path / "shared"
    more = ["--name", "nodes", "--address", head.address, "--storage-path", shared, "--scheduler", "none"]
    more += ["--set", f"budget.epochs={EPOCHS}", "--set", "budget.iterations=25", "--checkpoint-interval", "0"]
    logs = [sctune.study("nodes") / "logs" / f"trial-{number:05d}.log" for number in range(4)]
    with sctune.started(*smoke, *more, "--trials", "4", "--json") as search:
        wait_until(lambda: search.poll() is not None or logs[0].exists(), 240, "the first trial")
        # planned for two nodes, one trial on each; what comes now has room for the trial of the one that goes
        third = nodes()
        wait_until(
            lambda: search.poll() is not None or all(sum(map(len, epochs_of(log))) >= 2 for log in logs[:2]),
            240,
            "two epochs of two trials",
        )
        assert search.poll() is None, search.communicate()
        # the caches of both nodes are their own, and nothing of the study is seen there
        assert [node.files() for node in (first, second)] == [["cache"], ["cache"]]
        first.kill()
        out, err = search.communicate(timeout=300)
        assert search.returncode == 0, err
        # on a slow machine the second node may have run all that was left before a worker came up there
        assert third.files() in (["cache"], [])
    trials = sctune.record("nodes")
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4, (out, err)
    assert all(sorted(trial.intermediate_values) == list(range(1, EPOCHS + 1)) for trial in trials)
    assert runs_of("nodes").keys() == {None, 0, 1, 2, 3}
    told = [epochs_of(log) for log in logs]
    # the trial of the lost node started again, from its last checkpoint, whose report is told again
    (again,) = [attempts for attempts in told if len(attempts) > 1]
    before, after = again
    assert after[0] >= max(before, default=1)
    times = Counter(epoch for attempts in told for attempt in attempts for epoch in attempt)
    assert times.total() <= 4 * EPOCHS + 1
    # its last checkpoint is of the second attempt, and nobody has more than one
    kept = {path.parent.name: path.name for path in (shared / "nodes" / "trials").glob("*/epoch-*")}
    assert len(list((shared / "nodes" / "trials").glob("*/epoch-*"))) == len(kept) <= 4
    number = f"{told.index(again):05d}"
    assert "attempt-02" in kept.get(number, "attempt-02")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_node_without_the_images_gets_no_trials(
    sctune: Any, smoke: list[str], nodes: Callable[..., Any], image_folder: Path, tmp_path: Path
) -> None:
    head, _ = nodes(), nodes()
    nodes(image_folder)
    more = ["--address", head.address, "--storage-path", tmp_path / "shared", "--scheduler", "none"]
    done = sctune(*smoke, *more, "--publish", "never", "--name", "mount", "--trials", "2", timeout=240)
    named = [line for line in done.stderr.splitlines() if "mount the images there" in line]
    assert named and all("left out until the next launch" in line for line in named), done.stderr
    assert "on 2 node(s)" in done.stderr
    trials = sctune.record("mount")
    assert [(trial.state.name, trial.user_attrs["attempt"]) for trial in trials] == [("COMPLETE", 1)] * 2
    assert "mount the images there" in sctune("status", "mount").stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_node_needs_the_images(
    sctune: Any, smoke: list[str], nodes: Callable[..., Any], image_folder: Path, tmp_path: Path
) -> None:
    head, node, shared = nodes(), nodes(sctune.home, image_folder), tmp_path / "shared"
    more = ["--address", head.address, "--storage-path", shared, "--scheduler", "none", "--keep-best", "9"]
    done = sctune(*smoke, *more, "--name", "handed", "--trials", "2", timeout=400)
    assert [trial.state.name for trial in sctune.record("handed")] == ["COMPLETE"] * 2, done.stderr
    assert node.files() == ["cache"]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("images for the nodes")]
    assert "published in" in line and line.endswith(str(shared / ".published"))
    # a driver that has no images, nor has ever decoded them, and trials beside it
    shutil.rmtree(sctune.home / "cache")
    words = [*without(image_folder), str(COMMAND), "resume", "handed", "--trials", "+1"]
    resumed = subprocess.run(
        words, env=sctune.env, cwd=sctune.home, capture_output=True, text=True, timeout=400, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert f"1 decoded set(s) of them come from {shared / '.published'}" in resumed.stderr
    assert [trial.state.name for trial in sctune.record("handed")] == ["COMPLETE"] * 3, resumed.stderr
    # nor what was published: both reasons in one line
    shutil.rmtree(shared / ".published")
    refused = subprocess.run(
        words, env=sctune.env, cwd=sctune.home, capture_output=True, text=True, timeout=400, check=False
    )
    assert refused.returncode == 2 and "nothing of it in" in refused.stderr and refused.stderr.count("\n") == 1
