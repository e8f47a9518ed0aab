"""A Slurm of Debian's packages on this machine: its daemons without systemd, in a folder of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "scontrol", "srun")
PACKAGES = "munge slurmctld slurmd slurm-client slurm-wlm-basic-plugins"


def missing() -> str | None:
    """Why no Slurm can be started here; None where it can."""
    if os.geteuid() != 0:
        return "a Slurm of our own needs root"
    lacking = [name for name in PROGRAMS if shutil.which(name, path=SEARCHED) is None]
    return f"no {', '.join(lacking)}; apt-get install {PACKAGES}" if lacking else None


SEARCHED = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

CONFIG = """
ClusterName=sctune
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SwitchType=switch/none
KillWait=30
MinJobAge=3600
{nodes}
PartitionName=all Nodes=n[0-{last}] Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """`nodes` nodes, which are all this machine; up when it is made, ended by `stop`.

    folder: short and of root's own; cpus: of each node.
    """

    def __init__(self, folder: Path, nodes: int, cpus: int) -> None:
        self.folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        host = socket.gethostname().partition(".")[0]
        ports = free_ports(nodes + 1)
        rows = [
            f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} State=UNKNOWN"
            for number, port in enumerate(ports[1:])
        ]
        text = CONFIG.format(
            host=f"{host}(127.0.0.1)", controller=ports[0], folder=folder, nodes="\n".join(rows), last=nodes - 1
        )
        (folder / "slurm.conf").write_text(text)
        (folder / "state").mkdir()
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": SEARCHED}
        try:
            self._start_munge()
            self._start("slurmctld", "-D", "-f", str(folder / "slurm.conf"))
            for number in range(nodes):
                (folder / f"spool-n{number}").mkdir()
                self._start("slurmd", "-D", "-N", f"n{number}", "-f", str(folder / "slurm.conf"))
            self._wait_for(nodes)
        except BaseException:
            self.stop()
            raise

    def run(self, *words: str, check: bool = True, **more: Any) -> str:
        """One of Slurm's commands; its output."""
        done = subprocess.run(
            words, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False, **more
        )
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job, by its own words (JobState, Restarts, ExitCode, ...)."""
        text = self.run("scontrol", "show", "job", "--oneliner", number)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def stop(self) -> None:
        for daemon in reversed(self._daemons):
            # each was started as the leader of a group
            for _ in range(50):
                try:
                    os.killpg(daemon.pid, signal.SIGKILL)
                except ProcessLookupError:
                    break
                time.sleep(0.1)
            daemon.wait()

    def _start_munge(self) -> None:
        """A key and a socket of our own; the user of Debian's package is not needed."""
        folder = self.folder
        self.run("mungekey", "--create", f"--keyfile={folder}/munge.key")
        places = ("key-file", "socket", "pid-file", "log-file", "seed-file")
        ends = ("munge.key", "munge.socket", "munge.pid", "munge.log", "munge.seed")
        words = [f"--{name}={folder}/{end}" for name, end in zip(places, ends, strict=True)]
        self._start("munged", "--foreground", "--force", *words)
        until(lambda: (folder / "munge.socket").exists(), 20, "munged")

    def _start(self, *words: str) -> None:
        with (self.folder / f"{words[0]}.out").open("ab") as log:
            environment = {**os.environ, **self.environment}
            self._daemons.append(
                subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
            )

    def _wait_for(self, nodes: int) -> None:
        def idle() -> bool:
            return self.run("sinfo", "--noheader", "--Node", "--format=%T", check=False).split() == ["idle"] * nodes

        until(idle, 60, f"a node: {self.run('sinfo', check=False)}")


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    held = [socket.socket() for _ in range(count)]
    try:
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in held]
    finally:
        for each in held:
            each.close()


def until(condition: Any, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.3)
