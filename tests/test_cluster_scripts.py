"""cluster/: what can be proved of its files without a Slurm or a Kubernetes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Config = dict[str, Any]
HEALTH = ("initial_delay_ms", "period_ms", "timeout_ms", "failure_threshold")

STAND_INS = {
    "scontrol": 'echo "scontrol $*" >> "$LOG"; [ "$1" = requeue ] || printf \'n0\\nn1\\nn2\\n\'',
    "hostname": "echo 10.0.0.1",
    "sleep": "exec /bin/sleep 0.3",
    "srun": 'while [[ $1 == -* ]]; do [[ $1 == -w ]] && shift; shift; done; exec "$@"',
    # the first start of a worker fails, as on a busy node; as many nodes as have started
    "ray": "if [[ $* == start*--address=* ]] && mkdir $LOG.failed 2> /dev/null; then\n"
    'echo "failed $*" >> "$LOG"; exit 1; fi\n'
    'echo "ray $* token=${#RAY_AUTH_TOKEN} mode=$RAY_AUTH_MODE" >> "$LOG"\n'
    "case $1 in status) sed -n 's/^ray start.*/ 1 node_x/p' \"$LOG\";; start) exec /bin/sleep 60;; esac",
    "sctune": 'trap "exit ${STOPPED:-3}" TERM; echo "sctune $*" >> "$LOG"; [ -z "$HOLD" ] && exit 4; '
    "/bin/sleep 30 & wait $!",
}


class Job:
    """The script with stand-ins for Slurm and Ray; log: what they were told, line by line."""

    def __init__(self, repository: Path, folder: Path, words: list[str], more: dict[str, str]) -> None:
        programs = folder / "programs"
        programs.mkdir(exist_ok=True)
        for name, body in STAND_INS.items():
            path = programs / name
            path.write_text(f"#!/bin/bash\n{body}\n")
            path.chmod(0o755)
        self._log = folder / "log"
        environment = {
            "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
            "LOG": str(self._log),
            "HOLD": "",
            "SCTUNE_SHARED": str(folder),
            "SCTUNE_LOCAL": str(folder),
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NODELIST": "n[0-2]",
            "SLURM_CPUS_ON_NODE": "8",
            **more,
        }
        script = ["bash", str(repository / "cluster" / "slurm.sbatch"), *words]
        self.process = subprocess.Popen(
            script, env=environment, text=True, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )

    @property
    def log(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []

    def end(self, sent: signal.Signals | None = None) -> tuple[int, list[str]]:
        """Exit code and log; sent: to the script alone, when sctune runs."""
        try:
            deadline = time.monotonic() + 60
            while sent is not None and not any(line.startswith("sctune ") for line in self.log):
                assert time.monotonic() < deadline and self.process.poll() is None, self.log
                time.sleep(0.1)
            if sent is not None:
                self.process.send_signal(sent)
            return self.process.wait(timeout=60), self.log
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()


@pytest.fixture
def job(repository: Path, tmp_path: Path) -> Callable[..., Job]:
    """Words and variables -> the running script; SCTUNE_SHARED is tmp_path."""

    def start(*words: str, **more: str) -> Job:
        return Job(repository, tmp_path, list(words), more)

    return start


def driver(log: list[str]) -> list[str]:
    """What sctune was called with."""
    (line,) = [line for line in log if line.startswith("sctune ")]
    return line.split()[1:]


def test_slurm_script_starts_a_node_each_and_hands_on_the_exit_code(job: Callable[..., Job], tmp_path: Path) -> None:
    code, log = job("search", "--space", "full").end()
    assert code == 4
    starts = [line for line in log if line.startswith("ray start")]
    assert len([line for line in starts if "--num-cpus=0 --head --port=23456" in line and "--num-gpus=0" in line]) == 1
    # one did not come up, and was started again
    assert len([line for line in log if line.startswith("failed start")]) == 1
    assert len([line for line in starts if "--num-cpus=8 --address=10.0.0.1:23456" in line]) == 2
    assert all("token=64 mode=token" in line for line in starts)
    places = ["--study-root", f"{tmp_path}/studies", "--storage-path", f"{tmp_path}/checkpoints"]
    words = ["search", "--space", "full", "--name", "slurm-123456", "--address", "10.0.0.1:23456", *places]
    assert driver(log) == words
    assert not any("requeue" in line for line in log) and not (tmp_path / "sctune-123456").exists()


def test_the_time_limit_puts_the_job_back(job: Callable[..., Job]) -> None:
    running = job("resume", "mine", HOLD="1")
    code, log = running.end(signal.SIGUSR1)
    # here nothing ends the script when it is put back, as Slurm does
    assert code == 3 and log[-1] == "scontrol requeue 123456"


@pytest.mark.parametrize(
    ("sent", "more", "code"),
    [
        (signal.SIGTERM, {}, 3),  # somebody's stop, or Slurm takes the nodes and puts the job back by itself
        (signal.SIGUSR1, {"STOPPED": "0"}, 0),  # it had just come to its end
        (signal.SIGUSR1, {"STOPPED": "1"}, 1),  # a bug would be one again
        (signal.SIGUSR1, {"SLURM_RESTART_COUNT": "2", "SCTUNE_MAX_REQUEUES": "2"}, 3),
    ],
)
def test_any_other_end_is_one(job: Callable[..., Job], sent: signal.Signals, more: dict[str, str], code: int) -> None:
    ended, log = job("resume", "mine", HOLD="1", **more).end(sent)
    assert ended == code and not any("requeue" in line for line in log)


@pytest.mark.parametrize("words", [["--name", "mine"], ["--name=mine"], []])
def test_a_job_that_was_put_back_goes_on_with_its_study(
    job: Callable[..., Job], tmp_path: Path, words: list[str]
) -> None:
    name = "mine" if words else "slurm-123456"
    asked = ["search", "--space", "full", *words, "--storage", "postgresql://db/studies", "--notify=./tell"]
    # it was put back before there was a study
    code, log = job(*asked, SLURM_RESTART_COUNT="1").end()
    assert driver(log)[0] == "search"
    (tmp_path / "log").unlink()
    (study := tmp_path / "studies" / name).mkdir(parents=True)
    (study / "study.json").touch()
    code, log = job(*asked, SLURM_RESTART_COUNT="1").end()
    expected = ["resume", name, "--storage", "postgresql://db/studies", "--notify", "./tell"]
    assert code == 4
    assert driver(log) == [*expected, "--address", "10.0.0.1:23456", "--study-root", f"{tmp_path}/studies"]
    (tmp_path / "log").unlink()
    # another job with a name that is taken is refused by sctune, not turned into something else
    code, log = job(*asked).end()
    assert driver(log)[0] == "search"


def test_slurm_script_names_what_is_missing(repository: Path, tmp_path: Path) -> None:
    script = ["bash", str(repository / "cluster" / "slurm.sbatch")]
    done = subprocess.run(script, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode != 0 and "SCTUNE_SHARED: set it to a folder that all nodes see" in done.stderr


def test_slurm_script_leaves_time_to_stop(repository: Path) -> None:
    lines = (repository / "cluster" / "slurm.sbatch").read_text().splitlines()
    options = dict(re.findall(r"#SBATCH --([a-z-]+)=(\S+)", "\n".join(lines)))
    assert re.fullmatch(r"B:USR1@\d+", options["signal"])
    # the driver's ten seconds, the end of Ray, and room
    assert int(options["signal"].split("@")[1]) >= 60 and options["time"] and int(options["nodes"]) > 1
    assert "#SBATCH --requeue" in lines


def kuberay_documents(repository: Path) -> tuple[Config, Config]:
    job, policy = yaml.safe_load_all((repository / "cluster" / "kuberay.yaml").read_text(encoding="utf-8"))
    return job, policy


def test_kuberay_job_runs_the_ray_that_is_installed_and_closes_it(repository: Path) -> None:
    import ray

    job, _ = kuberay_documents(repository)
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    for group in cluster["workerGroupSpecs"]:
        assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] >= 1


def test_kuberay_pods_have_one_image_and_closed_ports(repository: Path) -> None:
    job, policy = kuberay_documents(repository)
    cluster = job["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    label = policy["spec"]["podSelector"]["matchLabels"]
    # KubeRay's own label: the services beside them have a policy of their own
    assert policy["spec"]["podSelector"]["matchExpressions"] == [{"key": "ray.io/node-type", "operator": "Exists"}]
    for pod in [*pods, job["spec"]["submitterPodTemplate"]]:
        assert pod["metadata"]["labels"] == label
    containers = [pod["spec"]["containers"][0] for pod in pods]
    submitter = job["spec"]["submitterPodTemplate"]["spec"]["containers"][0]
    assert len({container["image"] for container in [*containers, submitter]}) == 1
    assert policy["spec"]["policyTypes"] == ["Ingress"] and "" not in policy["spec"]["ingress"]
    variables = {entry["name"] for entry in containers[0]["env"]}
    assert {f"RAY_health_check_{name}" for name in HEALTH} <= variables
