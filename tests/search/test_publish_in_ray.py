"""A search on a real Ray of several nodes, of which none but the driver's process can read the images.

Each node has a cache folder of its own. One finds its disk full, one comes when the search has been planned.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster
from rich.console import Console

from sctune.data.images import ImageCache
from sctune.paths import cache_folder
from sctune.search.cluster.connection import RAY_ENVIRONMENT
from sctune.search.plan.options import SearchOptions
from sctune.search.run.driver import run_search
from sctune.search.study.study import Study
from sctune.train.trainer import Trainer
from tests.conftest import TINY, make_folder

HERE = "/proc/self/cwd/images"
"""A folder of the current folder's, which is another one in every worker."""

FULL = """
import shutil, sys
usage = shutil.disk_usage
def told(path):
    full = sys._getframe(1).f_globals.get("__name__", "").endswith("published.parcel")
    return usage(path)._replace(free=1 << 20) if full else usage(path)
shutil.disk_usage = told
"""
"""For a node: what is taken from the driver finds a full disk, as if it had filled up since the node was checked."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="needs /proc")


class Nodes:
    """A cluster whose head runs no trials; homes: SCTUNE_HOME of each node added."""

    def __init__(self, root: Path) -> None:
        self.root, self.homes = root, {}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})

    def add(self, name: str, env: dict[str, str] | None = None) -> str:
        """The id of a new node of one CPU."""
        before = {node["NodeID"] for node in ray.nodes()} if ray.is_initialized() else set()
        self.homes[name] = self.root / name
        node = self.cluster.add_node(num_cpus=1, env_vars={"SCTUNE_HOME": str(self.homes[name]), **(env or {})})
        assert node.unique_id not in before
        return str(node.unique_id)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_ENVIRONMENT.items():
            patch.setenv(name, value)
        made = Nodes(tmp_path / "nodes")
        yield made
        ray.shutdown()
        made.cluster.shutdown()


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_folder: Path) -> Callable[..., SearchOptions]:
    """Options of a small search of images in the driver's current folder."""
    folder = tmp_path / "driver"
    make_folder(folder / "images")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PWD", str(folder))

    def options(nodes: Nodes, **more: Any) -> SearchOptions:
        fixed = {name: value for name, value in TINY.items() if not name.startswith(("data.", "augment."))}
        return SearchOptions(
            data=HERE,
            profile="smoke",
            n_anomalies=4,
            selection="extra",
            overrides=fixed | {"data.image_size": 64, "budget.epochs": 2},
            sampler="random",
            scheduler="none",
            cpus_per_trial=1,
            gpus_per_trial=0,
            address=nodes.cluster.address,
            storage_path=str(tmp_path / "shared"),
            references=False,
            **more,
        )

    return options


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nodes_without_the_images(ready: Callable[..., SearchOptions], nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "sitecustomize.py").write_text(FULL)
    nodes.add("first")
    nodes.add("full", {"PYTHONPATH": os.pathsep.join([str(tmp_path / "full"), os.environ["PYTHONPATH"]])})
    options = ready(nodes, name="s", trials=3, max_concurrent=3, publish_through="ray")
    messages = Console(file=(tmp_path / "messages").open("w"), width=500)
    # comes after the plan, and so after the checks of the nodes
    result = run_search(options, messages, lambda plan, resources: nodes.add("late") and None)
    messages.file.close()
    said = (tmp_path / "messages").read_text()
    study = Study.open(Path(os.environ["SCTUNE_HOME"]) / "studies", "s")
    assert [row.state for row in result.rows] == ["COMPLETE"] * 3, said

    named = [line for line in said.splitlines() if "left out until the next launch" in line]
    assert len(named) == 1 and "needs 1 MiB" in named[0] and "has 1 MiB free" in named[0], said
    assert study.manifest.launches[0].left_out == (named[0],)
    assert len(re.findall("images for the nodes: .*, published in .*, through Ray's object store", said)) == 1, said
    assert not (tmp_path / "shared" / ".published").exists()

    # bit by bit what the driver has, and nothing half taken
    (own,) = ImageCache(cache_folder()).entries()
    pixels = np.load(cache_folder() / own.key / "images.npy")
    for name in ("first", "late"):
        (held,) = ImageCache(nodes.homes[name] / "cache").entries()
        assert (held.key, held.images) == (own.key, own.images)
        np.testing.assert_array_equal(np.load(nodes.homes[name] / "cache" / held.key / "images.npy"), pixels)
    assert not ImageCache(nodes.homes["full"] / "cache").entries()
    assert not list(nodes.root.rglob("*.tmp"))
    # and who has the images gets the same values
    row = result.rows[0]
    config, (task,) = study.manifest.config_of(row.params), study.manifest.tasks
    *_, last = Trainer(config, task).fit()
    assert last.value == row.value
