"""The manifests of cluster/: KubeRay's by a schema of ours, others by the published ones, and what none sees."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import kuberay

Document = dict[str, Any]
RAY = ("kuberay.yaml", "kuberay-cluster.yaml")
SERVICES = Path("services")
UNITS = ("sctune-backup.service", "sctune-mlflow.service", "sctune-storage.service", "sctune-worker.service")


@pytest.fixture(scope="module")
def cluster(repository: Path) -> Path:
    return repository / "cluster"


def documents(path: Path) -> list[Document]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def ray_document(path: Path) -> Document:
    return documents(path)[0]


def containers(node: Any) -> Iterator[Document]:
    """Of every pod anywhere in a document."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("containers", "initContainers"):
                yield from value
            else:
                yield from containers(value)
    elif isinstance(node, list):
        for value in node:
            yield from containers(value)


@pytest.mark.parametrize("name", RAY)
def test_kuberay_takes_them(cluster: Path, name: str) -> None:
    assert kuberay.problems(ray_document(cluster / name)) == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec.rayClusterSpec.workerGroupSpecs.0.replica", 3, "'replica' was unexpected"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.minReplicas", "0", "'0' is not of type 'integer'"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.replicas", 9, "not within 0 and 4"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams", {"num-cpus": 0}, "0 is not of type 'string'"),
        ("spec.rayClusterSpec.authOptions.mode", "tokens", "is not one of"),
        ("spec.backoffLimits", 3, "'backoffLimits' was unexpected"),
        ("apiVersion", "ray.io/v1alpha1", "was expected"),
    ],
)
def test_kuberays_mistakes_are_found(cluster: Path, path: str, value: Any, message: str) -> None:
    broken = copy.deepcopy(ray_document(cluster / "kuberay.yaml"))
    *parents, leaf = path.split(".")
    place: Any = broken
    for parent in parents:
        place = place[int(parent) if parent.isdigit() else parent]
    place[leaf] = value
    assert any(message in problem for problem in kuberay.problems(broken)), kuberay.problems(broken)


def test_job_and_cluster_have_the_same_pods(cluster: Path) -> None:
    job, stays = (kuberay.cluster_of(ray_document(cluster / name)) for name in RAY)
    assert job == stays


def test_a_worker_leaves_before_it_is_ended(cluster: Path) -> None:
    _, worker, *_ = kuberay.pods_of(ray_document(cluster / "kuberay.yaml"))
    (container,) = worker["spec"]["containers"]
    (*_, command) = container["lifecycle"]["preStop"]["exec"]["command"]
    seconds = re.search(r"sctune cluster leave .*--within (\d+)s", command)
    assert seconds and int(seconds[1]) + 20 <= worker["spec"]["terminationGracePeriodSeconds"]


def test_a_jobs_next_attempt_goes_on_with_its_study(cluster: Path, tmp_path: Path) -> None:
    """The entrypoint as it stands, with a stand-in for sctune."""
    words = ray_document(cluster / "kuberay.yaml")["spec"]["entrypoint"]
    stand_in = tmp_path / "sctune"
    stand_in.write_text('#!/bin/sh\n[ "$1" = status ] && exit $STATUS\necho "$@"\n')
    stand_in.chmod(0o755)
    said = {}
    for status in ("0", "2"):
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "STATUS": status}
        said[status] = subprocess.run(words, shell=True, env=environment, capture_output=True, text=True).stdout
    assert said["0"] == "resume threshold-patch --address auto\n"
    assert said["2"].startswith("search --space threshold_patch --name threshold-patch --address auto ")


def secrets_made(cluster: Path) -> set[str]:
    done = subprocess.run(["python3", str(cluster / SERVICES / "make_secrets.py")], capture_output=True, text=True)
    rows = dict(line.split("=") for line in done.stdout.splitlines())
    assert all(re.fullmatch(r"[0-9a-f]{32}", value) for value in rows.values()) and len(set(rows.values())) == len(rows)
    return set(rows)


def test_every_secret_that_is_asked_for_is_made(cluster: Path) -> None:
    made = secrets_made(cluster)
    compose = (cluster / SERVICES / "compose.yaml").read_text()
    asked = set(re.findall(r"\$\{([A-Z0-9_]+)(?!:?-)[}:]", re.sub(r"\$\{[A-Z_]+:-[^}]*\}", "", compose)))
    assert asked == made
    for path in [cluster / SERVICES / "kubernetes.yaml", *(cluster / name for name in RAY)]:
        keys = set(re.findall(r"name: sctune-services, key: (\w+)", path.read_text()))
        assert keys and keys <= made, path
    for unit in UNITS[:3]:
        text = (cluster / SERVICES / "systemd" / unit).read_text()
        assert set(re.findall(r"\$(\w*(?:PASSWORD|KEY))\"", text)) <= made


def test_compose_is_closed_checked_and_kept(cluster: Path) -> None:
    compose = documents(cluster / SERVICES / "compose.yaml")[0]
    services = compose["services"]
    for name in ("postgres", "storage", "mlflow"):
        assert services[name]["restart"] == "unless-stopped" and services[name]["healthcheck"]["test"]
        # reached where the user says, and on this machine alone by default
        assert all(port.startswith("${BIND:-127.0.0.1}:") for port in services[name]["ports"])
    assert all(re.search(r":[\w.-]*\d", service["image"]) for service in services.values())
    waits = services["mlflow"]["depends_on"]
    assert {name: row["condition"] for name, row in waits.items()} == {
        "postgres": "service_healthy",
        "storage": "service_healthy",
        "buckets": "service_completed_successfully",
    }
    named = {entry.split(":")[0] for service in services.values() for entry in service.get("volumes", [])}
    assert set(compose["volumes"]) <= named


def test_pods_of_the_services_have_limits_probes_and_no_rights(cluster: Path) -> None:
    found = list(containers(documents(cluster / SERVICES / "kubernetes.yaml")))
    assert {each["name"] for each in found} == {"postgres", "storage", "mlflow", "buckets", "backup"}
    for each in [*found, *(one for name in RAY for one in containers(ray_document(cluster / name)))]:
        assert each["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert each["resources"]["limits"]["memory"] and each["resources"]["requests"]["cpu"]
        if each.get("ports"):
            assert {"readinessProbe", "livenessProbe"} <= each.keys()


def test_kustomize_names_files_that_are_there(cluster: Path) -> None:
    folder = cluster / SERVICES
    text = documents(folder / "kustomization.yaml")[0]
    files = [entry.rpartition("=")[2] for row in text["configMapGenerator"] for entry in row["files"]]
    assert all((folder / name).is_file() for name in [*files, *text["resources"]])
    mounted = set(re.findall(r"configMap: \{name: ([\w-]+)\}", (folder / "kubernetes.yaml").read_text()))
    assert mounted == {row["name"] for row in text["configMapGenerator"]}
    dockerfile = (folder / "Dockerfile").read_text()
    assert all((folder / name).is_file() for name in re.findall(r"^COPY (\S+)", dockerfile, re.MULTILINE))


def test_systemd_takes_the_units(cluster: Path, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze")
    folder = cluster / SERVICES / "systemd"
    assert sorted(path.name for path in folder.glob("*.service")) == list(UNITS)
    for path in folder.iterdir():
        # the programs are not here
        (tmp_path / path.name).write_text(re.sub(r"/opt/sctune/bin/\w+", "/bin/true", path.read_text()))

    def said(folder: Path) -> str:
        words = ["systemd-analyze", "verify", *map(str, sorted(folder.iterdir()))]
        return subprocess.run(words, capture_output=True, text=True, check=False).stderr

    assert said(tmp_path) == ""
    broken = tmp_path / UNITS[3]
    broken.write_text(broken.read_text().replace("RestartSec", "RestratSec"))
    assert "RestratSec" in said(tmp_path)


def published_schema(name: str) -> Any:
    """A schema that check-jsonschema carries."""
    spec = find_spec("check_jsonschema")
    if spec is None or spec.origin is None:
        pytest.skip("needs check-jsonschema; `make test-cluster` brings it")
    return json.loads((Path(spec.origin).parent / "builtin_schemas" / "vendor" / name).read_text())


@pytest.mark.cluster
def test_compose_is_what_its_specification_allows(cluster: Path) -> None:
    import jsonschema

    schema = published_schema("compose-spec.json")
    checker = jsonschema.validators.validator_for(schema)(schema)
    compose = documents(cluster / SERVICES / "compose.yaml")[0]
    assert [error.message for error in checker.iter_errors(compose)] == []
    compose["services"]["mlflow"]["depends_on"]["postgres"]["condition"] = "healthy"
    compose["services"]["postgres"]["imge"] = "postgres"
    said = " ".join(error.message for error in checker.iter_errors(compose))
    assert "('imge' was unexpected)" in said and "'condition': 'healthy'" in said


@pytest.mark.cluster
def test_kubernetes_takes_every_document(cluster: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="`make test-cluster` brings it")
    everything = documents(cluster / SERVICES / "kubernetes.yaml")
    for name in RAY:
        ray, *others = documents(cluster / name)
        everything += [*kuberay.pods_of(ray), *others]
    assert len(everything) == 16
    for document in everything:
        validate.validate(document, "1.37", strict=True)
    everything[0]["spec"]["selectr"] = {}
    with pytest.raises(validate.ValidationError, match="selectr"):
        validate.validate(everything[0], "1.37", strict=True)
