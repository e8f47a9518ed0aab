"""ray_cluster.yaml: what can be proved of it without a cloud."""

from __future__ import annotations

import copy
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
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


def test_health_settings_are_names_that_ray_reads() -> None:
    """Ray ignores an unknown RAY_ variable without a word, so the names are looked up in its server."""
    import ray

    server = Path(ray.__file__).parent / "core" / "src" / "ray" / "gcs" / "gcs_server"
    content = server.read_bytes()
    assert all(f"health_check_{name}".encode() in content for name in HEALTH)


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
