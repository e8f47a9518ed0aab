"""`sctune cluster check`: what a search needs of driver, nodes and services, looked at without beginning one."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

from sctune.config import TrialConfig, search_defaults
from sctune.data.place import needs_of
from sctune.errors import SctuneError, StorageError, StudyError
from sctune.files import check_writable
from sctune.paths import cache_folder, home, nearest_folder, studies_folder
from sctune.search.cluster import findings as found
from sctune.search.cluster.asking import Answer, ask_nodes, limit_of, nodes_of_cluster
from sctune.search.cluster.facts import all_versions
from sctune.search.cluster.findings import Finding, NodeReport, State
from sctune.search.cluster.judge import TEMPORARY_BYTES, judge
from sctune.search.cluster.security import cluster_findings, token_asked
from sctune.search.cluster.wanted import Wanted, beside
from sctune.search.plan.base import base_config, search_space
from sctune.search.plan.locations import storage_uri
from sctune.search.plan.options import SearchOptions
from sctune.search.plan.plan import open_tasks, profile_of
from sctune.search.run.driver import session
from sctune.search.run.wanted import backbone_weights, image_sets
from sctune.search.space.definition import Space
from sctune.search.study.database import storage_url
from sctune.search.study.database_check import check_database
from sctune.search.study.options import NEVER
from sctune.tracking.choice import choose_store
from sctune.tracking.server import check_tracking, safe_uri
from sctune.urls import STORAGE_VARIABLE, chosen

NAME = "cluster-check"
"""Of a study that is not made: where its checkpoints would lie, the storage is looked at."""


@dataclass(frozen=True)
class ClusterCheck:
    """What was found. address: of Ray's head; driver: host of this process; own: findings there and at the services."""

    address: str
    driver: str
    own: tuple[Finding, ...]
    nodes: tuple[NodeReport, ...]

    @property
    def findings(self) -> list[Finding]:
        return [*self.own, *(one for report in self.nodes for one in report.findings)]

    @property
    def healthy(self) -> bool:
        return found.worst(self.findings) is not State.FAILED

    def to_dict(self) -> dict[str, Any]:
        return {
            "address": self.address,
            "healthy": self.healthy,
            "driver": {"host": self.driver, "checks": [one.to_dict() for one in self.own]},
            "nodes": [report.to_dict() for report in self.nodes],
        }


def check_cluster(options: SearchOptions, limit_s: float | None = None) -> ClusterCheck:
    """Check the cluster at options.address (None: `auto`) as a search with these options would find it.

    limit_s: seconds that a node may take; None: by the images. Leaves nothing behind but what it learnt of the images
    (digests, in the cache). Raises ClusterError without a cluster, ConfigError for options that cannot be.
    """
    # Ray prints to stdout that it lost a node, in the middle of a document
    with redirect_stdout(sys.stderr), session(options.address or "auto"):
        import ray

        profile = profile_of(options, any(node.gpus > 0 for node in nodes_of_cluster()))
        space = search_space(options, profile, base_config(options, profile))
        driver = _Driver(options, profile, space)
        with token_asked() as token:
            wanted, answers = _ask(driver, limit_s)
            driver.findings += cluster_findings(token())
        address = ray.get_runtime_context().gcs_address
    own = sorted(driver.findings, key=lambda one: found.CHECKS.index(one.check))
    return ClusterCheck(address, socket.gethostname(), tuple(own), tuple(judge(wanted, answers)))


def _ask(driver: _Driver, limit_s: float | None) -> tuple[Wanted, list[Answer]]:
    wanted = driver.look()
    try:
        return wanted, ask_nodes(wanted, limit_s or limit_of(wanted))
    except StorageError as problem:
        # the driver's own trouble: the nodes are asked all else
        driver.findings = [one for one in driver.findings if one.check != found.STORAGE]
        driver.findings.append(found.of_error(found.STORAGE, problem))
        wanted = replace(wanted, storage="")
        return wanted, ask_nodes(wanted, limit_s or limit_of(wanted))


class _Driver:
    """Looks at this machine and the services; what it finds wrong is not asked of the nodes."""

    def __init__(self, options: SearchOptions, profile: str, space: Space) -> None:
        self._options, self._profile, self._space = options, profile, space
        self._root = (options.study_root or studies_folder()).expanduser().absolute()
        self.findings: list[Finding] = []

    def look(self) -> Wanted:
        config, options = self._space.base, self._options
        versions = all_versions()
        self.findings.append(found.ok(found.VERSIONS, ", ".join(f"{name} {is_}" for name, is_ in versions.items())))
        wanted = Wanted(
            storage="",
            versions=versions,
            cpus=options.cpus_per_trial or search_defaults(self._profile).cpus_per_trial,
            # shares are fractions of a GPU, so that where one is a share is too
            gpus=None if isinstance(options.gpus_per_trial, str) else options.gpus_per_trial,
            on_gpus=config.runtime.device != "cpu",
            published=options.publish != NEVER,
        )
        looks: dict[str, Callable[[Wanted], tuple[Wanted, str]]] = {
            found.DATA: lambda so_far: self._data(so_far, config),
            found.WEIGHTS: self._weights,
            found.STORAGE: self._storage,
            found.DISK: self._disk,
            found.TRACKING: self._tracking,
            found.DATABASE: self._database,
        }
        for check, look in looks.items():
            try:
                wanted, detail = look(wanted)
                self.findings.append(found.ok(check, detail) if detail else found.skipped(check))
            except SctuneError as problem:
                self.findings.append(found.of_error(check, problem))
        return wanted

    def _data(self, wanted: Wanted, config: TrialConfig) -> tuple[Wanted, str]:
        _, _, splits, _ = open_tasks(self._options, config, self._profile, (config.seed,))
        data = image_sets(splits)
        needs = needs_of(splits.values(), cache_folder(), config.data.image_size)
        return replace(wanted, needs=needs, data=data), f"{sum(len(one.paths) for one in data)} images"

    def _weights(self, wanted: Wanted) -> tuple[Wanted, str]:
        weights = backbone_weights(self._space)
        return replace(wanted, weights=weights), ", ".join(weights)

    def _storage(self, wanted: Wanted) -> tuple[Wanted, str]:
        uri = storage_uri(self._options.storage_path, self._root / NAME)
        return replace(wanted, storage=uri), f"written and read in {beside(uri)}"

    def _disk(self, wanted: Wanted) -> tuple[Wanted, str]:
        free = shutil.disk_usage(nearest_folder(self._root)).free
        told = f"{free / 2**30:.1f} GiB free for studies in {self._root}"
        if free < TEMPORARY_BYTES:
            raise StudyError(f"{told}; free some, or give another --study-root")
        return wanted, told

    def _tracking(self, wanted: Wanted) -> tuple[Wanted, str]:
        store = choose_store(self._options.tracking_uri, home())
        check_tracking(store.uri, make=False)
        return wanted, safe_uri(store.uri)

    def _database(self, wanted: Wanted) -> tuple[Wanted, str]:
        record = chosen(self._options.storage, STORAGE_VARIABLE)
        if record is not None:
            return wanted, check_database(storage_url(record))
        check_writable(self._root, "--study-root", StudyError)
        return wanted, f"SQLite in {self._root}"
