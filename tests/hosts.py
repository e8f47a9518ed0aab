"""Machines made of namespaces: each has its own network and its own files where the test says so.

They share nothing but Python, the packages and the kernel. Services that listen on this machine's loopback address are
reached from a host at the same address and port, through a tunnel as by ssh.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.processes import end_group

HEALTH = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "5",
}
"""Short settings, of a cluster whose machines come and go: 15 s instead of 65 for one that does not answer."""

RAY = Path(sys.executable).with_name("ray")
HIDDEN = 'mount -t tmpfs tmpfs "$1" && shift && exec "$@"'
"""$1: hidden; the rest is what is run."""

NETWORK = "10.77.0"
STARTED_S = 120.0


def namespaces_missing() -> str | None:
    """Why this machine cannot hide folders from a process; None where it can."""
    if not shutil.which("unshare"):
        return "needs the program unshare"
    tried = subprocess.run(["unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /mnt"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "needs to be root, with the right to mount (CAP_SYS_ADMIN)"


def networks_missing() -> str | None:
    """Why this machine cannot make hosts with networks of their own; None where it can."""
    if (reason := namespaces_missing()) is not None:
        return reason
    if not shutil.which("ip", path=_searched()):
        return "needs the program ip; apt-get install iproute2"
    tried = subprocess.run(
        ["unshare", "-n", "ip", "link", "add", "try", "type", "bridge"], capture_output=True, check=False
    )
    return None if tried.returncode == 0 else "needs the right to make networks (CAP_NET_ADMIN)"


def without(*folders: Path) -> list[str]:
    """The beginning of a command that runs in a mount namespace in which these folders are empty."""
    words = ["unshare", "-m", "--propagation", "private"]
    for folder in folders:
        words += ["sh", "-c", HIDDEN, "sh", str(folder)]
    return words


def end_namespace(namespace: str) -> None:
    """Kill everything in a mount namespace at once, as when a machine's power fails."""
    for _ in range(100):
        pids = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / "ns" / "mnt") == namespace:
                    pids.append(int(entry.name))
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not pids:
            return
        time.sleep(0.05)


class Network:
    """A switch and the hosts at it. services: ports of this machine's loopback address that each host reaches."""

    def __init__(self, services: Sequence[int]) -> None:
        self.services = tuple(services)
        self.hosts: list[Host] = []
        self._switch = _holder("unshare", "-n")
        _ip(self._switch.pid, "link add name switch type bridge")
        _ip(self._switch.pid, "link set switch up")

    def host(self, env: Mapping[str, str], *hidden: Path) -> Host:
        """A new host; hidden: folders that are empty there."""
        host = Host(len(self.hosts) + 1, self._switch.pid, self.services, env, hidden)
        self.hosts.append(host)
        return host

    def end(self) -> None:
        for host in self.hosts:
            host.kill()
        end_group(self._switch.pid)
        self._switch.wait()


class Host:
    """A machine at the switch; address: its IPv4 address."""

    def __init__(
        self, number: int, switch: int, services: Sequence[int], env: Mapping[str, str], hidden: Sequence[Path]
    ) -> None:
        self.address, self._link, self._switch = f"{NETWORK}.{number}", f"host{number}", switch
        self.env = {**env, "RAY_TMPDIR": "/tmp"}
        self.temporary = Path(tempfile.mkdtemp(prefix="sct-", dir="/tmp"))
        # Ray's own folder and its shared memory are of one machine
        self._holder = _holder("unshare", "-n", *without(Path("/dev/shm"), *hidden))
        self.namespace = os.readlink(f"/proc/{self._holder.pid}/ns/mnt")
        _ip(switch, f"link add {self._link} type veth peer name eth0 netns {self._holder.pid}")
        _ip(switch, f"link set {self._link} master switch up")
        for words in ("link set lo up", f"address add {self.address}/24 dev eth0", "link set eth0 up"):
            _ip(self._holder.pid, words)
        self._tunnel = self._dig(services)
        self.ray: subprocess.Popen[bytes] | None = None

    def _dig(self, services: Sequence[int]) -> subprocess.Popen[bytes]:
        """Ports of the host's loopback address that lead to the same ones of this machine."""
        forward = str(Path(__file__).with_name("tunnel.py"))
        words = ["nsenter", "-t", str(self._holder.pid), "-n", sys.executable, forward, str(os.getpid())]
        return subprocess.Popen([*words, *map(str, services)], start_new_session=True)

    def command(self, *words: object) -> list[str]:
        """Words that run something on this host, in its folder of its own."""
        inside = ["nsenter", "-t", str(self._holder.pid), "-n", "-m", "env", "-C", "/", *map(str, words)]
        return inside

    def start_ray(self, *words: str) -> None:
        """`ray start` with these words, and wait until it has started."""
        log = self.temporary / "ray.log"
        command = self.command(RAY, "start", "--block", f"--node-ip-address={self.address}", *words)
        with log.open("wb") as out:
            self.ray = subprocess.Popen(command, env=self.env, stdout=out, stderr=out, start_new_session=True)
        end = time.monotonic() + STARTED_S
        # the last thing that it says, when it has started
        while "--block" not in log.read_text():
            assert time.monotonic() < end and self.ray.poll() is None, log.read_text()
            time.sleep(0.2)

    def files(self, folder: Path) -> Path:
        """Where this machine sees a folder of the host."""
        return Path(f"/proc/{self._holder.pid}/root{folder}")

    def cut(self) -> None:
        """Unplug its cable; what runs there goes on."""
        _ip(self._switch, f"link set {self._link} down")
        self._tunnel.send_signal(signal.SIGSTOP)

    def mend(self) -> None:
        self._tunnel.send_signal(signal.SIGCONT)
        _ip(self._switch, f"link set {self._link} up")

    def kill(self) -> None:
        """Its power fails."""
        end_namespace(self.namespace)
        end_group(self._tunnel.pid)
        for process in (self._holder, self._tunnel, self.ray):
            if process is not None:
                process.wait(10)
        shutil.rmtree(self.temporary, ignore_errors=True)


def _holder(*words: str) -> subprocess.Popen[bytes]:
    """A process that keeps namespaces alive; they are made when it has printed its line."""
    process = subprocess.Popen(
        [*words, "sh", "-c", "echo made; exec sleep infinity"], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == b"made\n"
    return process


def _ip(pid: int, words: str) -> None:
    """`ip` in the network of a process."""
    command = ["nsenter", "-t", str(pid), "-n", "ip", *words.split()]
    subprocess.run(command, env={**os.environ, "PATH": _searched()}, check=True, capture_output=True)


def _searched() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
