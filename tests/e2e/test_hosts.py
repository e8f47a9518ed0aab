"""Hosts that share no file: S3 between them, the record in PostgreSQL, runs on an MLflow server, all with passwords.

A host's power fails, another is cut off, new ones join, the driver is killed, and one on another host, which has never
seen the images, goes on. The table that the test prints (`-s`) says what it cost.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import _free_port
from tests.e2e.conftest import COMMAND, wait_until
from tests.e2e.test_services import USER, create_user
from tests.hosts import HEALTH, Host, Network, networks_missing
from tests.services import PASSWORDS, Mlflow, Storage, database_server

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

NAME, TRIALS, EPOCHS = "hosts", 6, 8
CUT_S = 30.0


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    if (reason := networks_missing()) is not None:
        pytest.skip(reason)
    if find_spec("flask_wtf") is None:
        pytest.skip("needs flask-wtf for MLflow's users; `make test-cluster` brings it")
    with ExitStack() as entered:
        yield entered


class Site:
    """The services, the network, and the folders that a host lacks; `worker` adds a host of one CPU to the cluster."""

    def __init__(self, stack: ExitStack, sctune: Any, images: Path, folder: Path) -> None:
        from sctune.search.cluster.connection import RAY_ENVIRONMENT

        server = stack.enter_context(database_server())
        self.storage = Storage(folder / "disk", ())
        stack.callback(self.storage.stop)
        self.storage.make_buckets()
        self.mlflow = Mlflow(folder, server, self.storage, _free_port())
        stack.callback(self.mlflow.stop)
        create_user(self.mlflow)
        self.home, self.images = folder / "home", images
        self.home.mkdir()
        self.record = f"postgresql://studies@127.0.0.1:{server.port}/studies"
        self.env = {**sctune.env, **RAY_ENVIRONMENT, **HEALTH, **self.storage.env, "SCTUNE_HOME": str(self.home)}
        self.env |= {"PGPASSWORD": PASSWORDS["STUDIES_DB_PASSWORD"]}
        self.env |= {"MLFLOW_TRACKING_USERNAME": USER[0], "MLFLOW_TRACKING_PASSWORD": USER[1]}
        ports = [server.port, self.storage.ports[0], int(self.mlflow.url.rpartition(":")[2])]
        self.network = Network(ports)
        stack.callback(self.network.end)
        self.head = self.network.host(self.env)
        self.head.start_ray(
            "--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={self.head.temporary}"
        )
        self.address = f"{self.head.address}:6379"

    def worker(self) -> Host:
        host = self.network.host(self.env, self.home, self.images, self.head.temporary)
        host.start_ray(f"--address={self.address}", "--num-cpus=1")
        return host

    def driver(self, host: Host, *words: object) -> subprocess.Popen[str]:
        """A command of sctune on a host; its streams are files in the host's own temporary folder."""
        out, err = (host.temporary / f"{words[0]}.{name}" for name in ("out", "err"))
        with out.open("w") as stdout, err.open("w") as stderr:
            return subprocess.Popen(
                host.command(COMMAND, *words),
                env=self.env,
                text=True,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def run(self, host: Host, *words: object) -> str:
        """Its stdout, when it has ended well."""
        process = self.driver(host, *words)
        assert process.wait(600) == 0, self.said(host, words[0])
        return (host.temporary / f"{words[0]}.out").read_text()

    def said(self, host: Host, command: object) -> str:
        return "".join((host.temporary / f"{command}.{name}").read_text()[-20000:] for name in ("out", "err"))

    def told(self, host: Host) -> Counter[tuple[int, int]]:
        """(Trial, epoch) as often as it was told to the driver on a host."""
        found: Counter[tuple[int, int]] = Counter()
        for log in host.files(self.home / "studies" / NAME / "logs").glob("trial-*.log"):
            number = int(log.stem.rpartition("-")[2])
            found.update((number, int(epoch)) for epoch in re.findall(rf" epoch (\d+)/{EPOCHS} ", log.read_text()))
        return found


def test_a_study_goes_on_whatever_host_is_lost(
    stack: ExitStack, sctune: Any, image_folder: Path, tmp_path: Path
) -> None:
    site = Site(stack, sctune, image_folder, tmp_path)
    first, second = site.worker(), site.worker()
    places = ["--storage", site.record, "--tracking-uri", site.mlflow.url, "--storage-path", "s3://sctune/checkpoints"]
    given = ["--profile", "smoke", "--data", image_folder, "--address", site.address, *places]
    healthy = json.loads(site.run(site.head, "cluster", "check", *given, "--json"))
    assert healthy["healthy"] is True and len(healthy["nodes"]) == 3, healthy

    budget = ["--set", f"budget.epochs={EPOCHS}", "--set", "budget.iterations=25", "--checkpoint-interval", "0"]
    budget += ["--selection", "extra", "--scheduler", "none", "--trials", TRIALS]
    words = ["search", *given, *budget, "--name", NAME]
    driver = site.driver(site.head, *words)

    def trained(more: int, what: str) -> None:
        before = site.told(site.head).total()

        def reached() -> bool:
            assert driver.poll() is None, site.said(site.head, "search")
            return site.told(site.head).total() >= before + more

        wait_until(reached, 300, what)

    trained(4, "four epochs")
    first.kill()
    third = site.worker()
    trained(4, "four epochs without the host that failed")
    second.cut()
    fourth = site.worker()
    time.sleep(CUT_S)
    second.mend()
    assert second.ray is not None and second.ray.wait(180) is not None, "a node that was given up ends by itself"
    trained(4, "four epochs without the host that was cut off")
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()

    resumed = site.driver(third, "resume", NAME, "--storage", site.record, "--address", site.address, "--json")
    assert resumed.wait(600) == 0, site.said(third, "resume")
    document = json.loads((third.temporary / "resume.out").read_text())
    assert [trial["state"] for trial in document["trials"]] == ["COMPLETE"] * TRIALS
    status = json.loads(site.run(third, "status", NAME, "--storage", site.record, "--check", "--json"))
    assert status["agrees"] is True, status
    assert fourth.ray is not None and fourth.ray.poll() is None
    told = site.told(site.head) + site.told(third)
    points = stored_points(site)
    repeated, lost = told.total() - len(told), TRIALS * EPOCHS - len(points)
    doubled = sum(count > 1 for count in points.values())
    print(
        "\n| hosts | faults | epochs | lost | trained again | doubled |\n| --- | --- | --- | --- | --- | --- |\n"
        "| 3, then 2 more | power of one, one cut off for 30 s, the driver killed | "
        f"{TRIALS * EPOCHS} | {lost} | {repeated} | {doubled} |"
    )
    assert (lost, doubled) == (0, 0)
    # of each trial that was under way at a fault one epoch at most
    assert repeated <= 1 + 1 + 2


def stored_points(site: Site) -> Counter[tuple[int, int]]:
    """(Trial, epoch) of each value of the objective on the MLflow server; a second run of a trial doubles its own."""
    from sctune.tracking.server import TRIAL_TAG, mlflow_client

    found: Counter[tuple[int, int]] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", USER[0])
        patch.setenv("MLFLOW_TRACKING_PASSWORD", USER[1])
        client = mlflow_client(site.mlflow.url)
        experiments = [one.experiment_id for one in client.search_experiments()]
        for run in client.search_runs(experiments, f"tags.`{TRIAL_TAG}` != ''"):
            for point in client.get_metric_history(run.info.run_id, "selection_auroc"):
                found[int(run.data.tags[TRIAL_TAG]), point.step] += 1
    return found
