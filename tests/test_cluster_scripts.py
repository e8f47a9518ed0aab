"""cluster/: what can be proved of its files without a Slurm or a Kubernetes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml

Config = dict[str, Any]
HEALTH = ("initial_delay_ms", "period_ms", "timeout_ms", "failure_threshold")

STAND_INS = {
    "scontrol": "printf 'n0\\nn1\\nn2\\n'",
    "hostname": "echo 10.0.0.1",
    "srun": 'while [[ $1 == -* ]]; do [[ $1 == -w ]] && shift; shift; done; exec "$@"',
    "ray": 'echo "ray $* token=${#RAY_AUTH_TOKEN} mode=$RAY_AUTH_MODE" >> "$LOG"\n'
    # as many nodes as have started
    "case $1 in status) sed -n 's/^ray start.*/ 1 node_x/p' \"$LOG\";; start) exec sleep 60;; esac",
    "sctune": 'trap "exit 3" TERM; echo "sctune $*" >> "$LOG"; [ -z "$HOLD" ] && exit 4; sleep 30 & wait $!',
}


def start_slurm_script(repository: Path, folder: Path, arguments: list[str], hold: str = "") -> subprocess.Popen[str]:
    for name, body in STAND_INS.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    environment = {
        "PATH": f"{folder}:/usr/local/bin:/usr/bin:/bin",
        "LOG": str(folder / "log"),
        "HOLD": hold,
        "SCTUNE_SHARED": "/shared",
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "n[0-2]",
    }
    script = ["bash", str(repository / "cluster" / "slurm.sbatch"), *arguments]
    return subprocess.Popen(script, env=environment, text=True, start_new_session=True, stderr=subprocess.PIPE)


def end_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_slurm_script_starts_a_node_each_and_hands_on_the_exit_code(repository: Path, tmp_path: Path) -> None:
    """The script's own logic, with stand-ins for Slurm and Ray."""
    process = start_slurm_script(repository, tmp_path, ["search", "--space", "full"])
    try:
        assert process.wait(timeout=60) == 4
    finally:
        end_group(process)
    log = (tmp_path / "log").read_text().splitlines()
    starts = [line for line in log if line.startswith("ray start")]
    assert len([line for line in starts if "--head --port=23456 --num-cpus=0 --num-gpus=0" in line]) == 1
    assert len([line for line in starts if "--address=10.0.0.1:23456" in line]) == 2
    assert all("token=64 mode=token" in line for line in starts)
    places = "--study-root /shared/studies --storage-path /shared/checkpoints"
    assert log[-1] == f"sctune search --space full --address 10.0.0.1:23456 {places}"


def test_slurm_time_limit_stops_the_search_in_a_resumable_way(repository: Path, tmp_path: Path) -> None:
    process = start_slurm_script(repository, tmp_path, ["resume", "mine"], hold="1")
    try:
        deadline = time.monotonic() + 60
        log = tmp_path / "log"
        while not (log.exists() and "sctune resume mine" in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 3
    finally:
        end_group(process)


def test_slurm_script_names_what_is_missing(repository: Path, tmp_path: Path) -> None:
    script = ["bash", str(repository / "cluster" / "slurm.sbatch")]
    done = subprocess.run(script, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode != 0 and "SCTUNE_SHARED: set it to a folder that all nodes see" in done.stderr


def test_slurm_script_leaves_time_to_stop(repository: Path) -> None:
    lines = (repository / "cluster" / "slurm.sbatch").read_text().splitlines()
    options = dict(re.findall(r"#SBATCH --([a-z-]+)=(\S+)", "\n".join(lines)))
    assert re.fullmatch(r"B:TERM@\d+", options["signal"])
    assert int(options["signal"].split("@")[1]) >= 40 and options["time"] and int(options["nodes"]) > 1


def kuberay_documents(repository: Path) -> tuple[Config, Config]:
    job, policy = yaml.safe_load_all((repository / "cluster" / "kuberay.yaml").read_text(encoding="utf-8"))
    return job, policy


def test_kuberay_job_has_what_the_operator_demands(repository: Path) -> None:
    import ray

    job, _ = kuberay_documents(repository)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert "--address auto" in spec["entrypoint"] and spec["shutdownAfterJobFinishes"] is True
    assert spec["submissionMode"] in {"K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"}
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] > 0
    assert "template" in cluster["headGroupSpec"]
    for group in cluster["workerGroupSpecs"]:
        assert {"groupName", "minReplicas", "maxReplicas", "template"} <= group.keys()
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] >= 1


def test_kuberay_pods_share_one_image_one_volume_and_closed_ports(repository: Path) -> None:
    job, policy = kuberay_documents(repository)
    cluster = job["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    label = policy["spec"]["podSelector"]["matchLabels"]
    for pod in [*pods, job["spec"]["submitterPodTemplate"]]:
        assert pod["metadata"]["labels"] == label
    containers = [pod["spec"]["containers"][0] for pod in pods]
    submitter = job["spec"]["submitterPodTemplate"]["spec"]["containers"][0]
    assert len({container["image"] for container in [*containers, submitter]}) == 1
    assert all({"name": "shared", "mountPath": "/shared"} in container["volumeMounts"] for container in containers)
    assert policy["spec"]["policyTypes"] == ["Ingress"] and "" not in policy["spec"]["ingress"]
    variables = {entry["name"] for entry in containers[0]["env"]}
    assert {f"RAY_health_check_{name}" for name in HEALTH} <= variables
