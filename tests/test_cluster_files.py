"""ray_cluster.yaml and cluster/on_premise.yaml: what can be proved of them without a cloud or other machines."""

from __future__ import annotations

import copy
import inspect
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

PROVIDER_KEYS = {"type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips", "key_pair"}
"""What Ray's AWS provider reads, less what we refuse: security_group (opens ssh to the world) and credentials."""
HEALTH = ("initial_delay_ms", "period_ms", "timeout_ms", "failure_threshold")
Config = dict[str, Any]


@pytest.fixture(scope="module")
def config() -> Config:
    path = Path(__file__).resolve().parents[1] / "ray_cluster.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def desks() -> Config:
    path = Path(__file__).resolve().parents[1] / "cluster" / "on_premise.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def check_with_ray(config: Config) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def launch_shape() -> Any:
    """AWS's own description of an instance launch, as botocore ships it."""
    from botocore.loaders import Loader
    from botocore.model import ServiceModel

    service = ServiceModel(Loader().load_service_model("ec2", "service-2"))
    return service.operation_model("RunInstances").input_shape


def problems(config: Config, shape: Any) -> list[str]:
    """Mistakes that Ray's validation lets pass: in the provider, in node_config, in the numbers of workers."""
    from botocore.validate import ParamValidator

    found = [f"provider.{key} is unknown or refused" for key in config["provider"].keys() - PROVIDER_KEYS]
    for name, node_type in config["available_node_types"].items():
        node = node_type["node_config"]
        report = ParamValidator().validate(node | {"MinCount": 1, "MaxCount": 1}, shape).generate_report()
        found += [f"{name}: {line}" for line in report.splitlines()]
        if node.get("InstanceType") not in shape.members["InstanceType"].enum:
            found.append(f"{name}: no instance type {node.get('InstanceType')}")
        market = node.get("InstanceMarketOptions", {}).get("MarketType", "spot")
        if market not in shape.members["InstanceMarketOptions"].members["MarketType"].enum:
            found.append(f"{name}: no market {market}")
        if not node.get("SecurityGroupIds"):
            found.append(f"{name}: without SecurityGroupIds Ray opens port 22 to the world")
        if name != config["head_node_type"] and node_type.get("max_workers", 0) > config["max_workers"]:
            found.append(f"{name}: max_workers above the cluster's")
    return found


def test_passes_rays_own_validation(config: Config) -> None:
    check_with_ray(config)


def test_passes_what_ray_does_not_check(config: Config) -> None:
    assert problems(config, launch_shape()) == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("available_node_types.gpu_worker.node_config.InstanceTyp", "g5.xlarge", "InstanceTyp"),
        ("available_node_types.gpu_worker.node_config.InstanceType", "g5.xlarg", "no instance type"),
        ("available_node_types.gpu_worker.node_config.InstanceMarketOptions.MarketType", "spott", "no market"),
        ("available_node_types.head.node_config.MetadataOptions.HttpToken", "required", "HttpToken"),
        ("available_node_types.head.node_config.SecurityGroupIds", [], "port 22"),
        ("provider.regoin", "eu-central-1", "provider.regoin"),
        ("provider.security_group", {"GroupName": "open"}, "provider.security_group"),
        ("max_workers", 2, "max_workers above"),
    ],
)
def test_mistakes_that_ray_lets_pass_are_found(config: Config, path: str, value: Any, message: str) -> None:
    broken = copy.deepcopy(config)
    *parents, leaf = path.split(".")
    place = broken
    for parent in parents:
        place = place[parent]
    place[leaf] = value
    check_with_ray(broken)
    assert any(message in problem for problem in problems(broken, launch_shape()))


def test_ray_refuses_a_gpu_count_given_as_text(config: Config) -> None:
    import jsonschema

    broken = copy.deepcopy(config)
    broken["available_node_types"]["gpu_worker"]["resources"]["GPU"] = "1"
    with pytest.raises(jsonschema.ValidationError, match="'1' is not of type 'integer'"):
        check_with_ray(broken)


def test_head_has_no_gpu_and_workers_have(config: Config) -> None:
    types = config["available_node_types"]
    workers = [types[name] for name in types if name != config["head_node_type"]]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    assert workers and all(worker["resources"]["GPU"] >= 1 for worker in workers)
    assert 0 < config["idle_timeout_minutes"] <= 30


def test_every_node_runs_the_same_image(config: Config) -> None:
    """Ray demands one Python version on all nodes."""
    assert len({node["node_config"]["ImageId"] for node in config["available_node_types"].values()}) == 1


@pytest.mark.parametrize("role", ["head", "worker"])
def test_start_commands_are_understood_by_ray(config: Config, role: str) -> None:
    from ray.scripts.scripts import start

    (command,) = [line for line in config[f"{role}_start_ray_commands"] if "ray start" in line]
    assert "RAY_AUTH_MODE=token" in command
    words = shlex.split(command.partition("ray start")[2])
    known = {option for parameter in start.params for option in parameter.opts}
    assert {word.split("=")[0] for word in words if word.startswith("-")} <= known
    if role == "head":
        assert "--dashboard-host=127.0.0.1" in words
        settings = dict(re.findall(r"RAY_health_check_(\w+)=(\d+)", command))
        assert set(settings) == set(HEALTH)
        seconds = int(settings["failure_threshold"]) * (int(settings["timeout_ms"]) + int(settings["period_ms"])) / 1000
        assert seconds == 15


def test_every_spot_worker_watches_for_its_notice(config: Config, tmp_path: Path) -> None:
    """The command as it stands, in a shell that ends at once as ssh's does: the watcher goes on without it."""
    *_, command = config["worker_start_ray_commands"]
    assert "watch-spot" in command
    for node_type in config["available_node_types"].values():
        spot = node_type["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        assert not spot or node_type is not config["available_node_types"][config["head_node_type"]]
    program = tmp_path / "sctune-env" / "bin" / "sctune"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$RAY_AUTH_MODE $@"\nsleep 3\necho still there\n')
    program.chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.1"}
    subprocess.run(["bash", "-c", f"({command})"], env=environment, check=True, timeout=30)
    log, end = tmp_path / "watch-spot.log", time.monotonic() + 30
    while "still there" not in log.read_text() and time.monotonic() < end:
        time.sleep(0.2)
    assert log.read_text() == "token cluster watch-spot --address=10.0.0.1:6379\nstill there\n"


def test_the_watcher_is_started_as_the_command_line_has_it(config: Config) -> None:
    from sctune.cli.cluster_nodes import watch_spot

    words = config["worker_start_ray_commands"][-1]
    assert re.findall(r"--(\w+)=\S+:6379", words) == list(inspect.signature(watch_spot).parameters)


LOCAL_KEYS = {
    *("cluster_name", "provider", "auth", "min_workers", "max_workers", "upscaling_speed", "idle_timeout_minutes"),
    *("file_mounts", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
}


def local_problems(desks: Config) -> list[str]:
    """Mistakes that Ray's validation lets pass."""
    found = [f"{key} is unknown" for key in desks.keys() - LOCAL_KEYS]
    found += [f"provider.{key} is unknown" for key in desks["provider"].keys() - {"type", "head_ip", "worker_ips"}]
    found += [f"auth.{key} is unknown" for key in desks["auth"].keys() - {"ssh_user", "ssh_private_key"}]
    machines = [desks["provider"]["head_ip"], *desks["provider"]["worker_ips"]]
    if len(set(machines)) < len(machines):
        found.append("a machine is named twice")
    found += [f"{name} is every machine's own" for name in machines if name.startswith("127.") or name == "localhost"]
    for key in ("min_workers", "max_workers"):
        if desks[key] != len(machines) - 1:
            found.append(f"{key} is not the number of workers")
    return found


def test_machines_of_our_own_pass(desks: Config) -> None:
    check_with_ray(desks)
    assert local_problems(desks) == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_workers", 3, "max_workers is not the number of workers"),
        ("provider.worker_ip", ["10.0.0.9"], "provider.worker_ip is unknown"),
        ("provider.head_ip", "127.0.0.1", "is every machine's own"),
        ("provider.worker_ips", ["10.0.0.10", "10.0.0.12"], "named twice"),
        ("auth.ssh_privat_key", "~/.ssh/id", "auth.ssh_privat_key is unknown"),
    ],
)
def test_mistakes_in_them_are_found(desks: Config, key: str, value: Any, message: str) -> None:
    broken = copy.deepcopy(desks)
    *parents, leaf = key.split(".")
    (broken[parents[0]] if parents else broken)[leaf] = value
    assert any(message in problem for problem in local_problems(broken))


def test_machines_of_our_own_are_set_up_and_started_as_those_of_aws(config: Config, desks: Config) -> None:
    assert desks["setup_commands"] == config["setup_commands"]
    assert desks["file_mounts"] == config["file_mounts"]
    head, ours = config["head_start_ray_commands"][-1], desks["head_start_ray_commands"][-1]
    assert ours.replace(" --num-cpus=0 --num-gpus=0", "") == head
    # no spot instances there
    assert desks["worker_start_ray_commands"] == config["worker_start_ray_commands"][:-1]


def test_health_settings_are_names_that_ray_reads() -> None:
    """Ray ignores an unknown RAY_ variable without a word, so the names are looked up in its server."""
    import ray

    server = Path(ray.__file__).parent / "core" / "src" / "ray" / "gcs" / "gcs_server"
    content = server.read_bytes()
    assert all(f"health_check_{name}".encode() in content for name in HEALTH)


@pytest.mark.parametrize(
    "file",
    [
        "ray_cluster.yaml",
        "cluster/on_premise.yaml",
        "cluster/kuberay.yaml",
        "cluster/kuberay-cluster.yaml",
        "cluster/slurm.sbatch",
        "cluster/README.md",
    ],
)
def test_every_way_to_start_a_head_notices_a_lost_link_in_fifteen_seconds(file: str) -> None:
    """All of them have the settings that were measured, and a new way must be listed here."""
    root = Path(__file__).resolve().parents[1]
    starts = [
        str(path.relative_to(root))
        for path in [root / "ray_cluster.yaml", *(root / "cluster").rglob("*")]
        if path.is_file() and re.search(r"--head\b|kind: Ray", path.read_text(encoding="utf-8"))
    ]
    assert file in starts and len(starts) == 6, starts
    content = (root / file).read_text(encoding="utf-8")
    found = re.findall(r"RAY_health_check_(\w+?)(?:=|, value: \")(\d+)", content)
    assert dict(found) == {
        "initial_delay_ms": "2000",
        "period_ms": "1000",
        "timeout_ms": "2000",
        "failure_threshold": "5",
    }
    assert len(found) == 4, "once, so that no second value contradicts"


def run_setup(config: Config, home: Path) -> str:
    """The setup commands as they stand, in a home folder of their own; returns what they printed.

    pip leaves the dependencies out and asks no index, by its own variables: they are gigabytes, and `make env`
    installs the same list anyway. Everything else is what a node does.
    """
    environment = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_CONFIG_FILE": os.devnull,
    }
    output = ""
    for command in config["setup_commands"]:
        done = subprocess.run(["bash", "-c", command], env=environment, cwd=home, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        output += done.stdout + done.stderr
    return output


def test_setup_commands_run_in_a_clean_environment(
    config: Config, wheel: Path, repository: Path, tmp_path: Path
) -> None:
    sources = {"./dist": wheel, "./constraints.txt": repository / "constraints.txt", "~/.sctune/cluster_token": None}
    for remote, local in config["file_mounts"].items():
        target = tmp_path / remote.removeprefix("~/")
        source = sources[local]
        target.parent.mkdir(parents=True, exist_ok=True)
        if source is None:
            target.write_text("secret")
            target.chmod(0o644)  # as badly as it can arrive
        elif local == "./dist":
            target.mkdir()
            shutil.copy(source, target)
        else:
            shutil.copy(source, target)

    output = run_setup(config, tmp_path)

    assert "does not provide the extra" not in output
    assert re.search(r"^sctune \d+\.\d+", output, re.MULTILINE)
    assert stat.S_IMODE((tmp_path / ".ray" / "auth_token").stat().st_mode) == 0o600
    (installed,) = (tmp_path / "sctune-env").glob("lib/python3*/site-packages/sctune")
    assert (installed / "search_spaces" / "threshold_patch.yaml").is_file()

    # `ray up` runs them again on a living head: a changed wheel of the same version must replace the old one
    (installed / "errors.py").write_text("old")
    run_setup(config, tmp_path)
    assert (installed / "errors.py").read_bytes() == (repository / "sctune" / "errors.py").read_bytes()
    assert (tmp_path / ".bashrc").read_text().count("sctune-env") == 1


def test_a_missing_token_ends_the_setup(config: Config, tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").touch()
    with pytest.raises(AssertionError, match="auth_token"):
        run_setup(config, tmp_path)
