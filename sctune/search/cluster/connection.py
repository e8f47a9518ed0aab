"""Connecting to Ray: always with a token, checked nodes, and what they can hold."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import socket
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sctune.errors import ClusterError
from sctune.paths import home, use_own_folders
from sctune.search.cluster.resources import TrialResources
from sctune.trial.ray_private import ask_head, draining_nodes, localhost_kept, passed_variables
from sctune.urls import secrets_hidden

RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # our record and tracking take the place of Tune's loggers and snapshots, which cost half of the throughput
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    # the driver's own handlers stop a launch; Tune's leaves the controller untold
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # the controller starts lost trials again, drained nodes' too, with an attempt number of its own
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


LOOPBACK = "127.0.0.1"

MAX_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
"""What Ray puts behind the folder for temporary files; the last number is that of the process."""

CONNECT_S = 10.0
"""Seconds that a cluster may take to answer at all."""


@dataclass(frozen=True)
class Resources:
    """What the cluster has, what a trial takes, and how many run at a time.

    left_out: id -> one line about a node that gets no trials, and counts for nothing here. packed: trials share GPUs by
    what each needs, and `gpus` is what one gets of which nothing is known; cards: node -> kind and bytes of its cards,
    where they were asked; per_card: trials on a GPU for which the CPUs of some node are enough.
    asked: `--max-concurrent`.
    """

    cluster_cpus: float
    cluster_gpus: float
    cpus: float
    gpus: float
    concurrent: int
    nodes: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    packed: bool = False
    cards: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    per_card: int = 1
    asked: int | None = None


def prepare_environment() -> None:
    """Set Ray's switches; must run before ray is imported, which reads them once."""
    os.environ.update(RAY_ENVIRONMENT)
    use_own_folders()


def ensure_token(path: Path) -> None:
    """A token file that only its owner can read; made where it is missing."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return
        with os.fdopen(handle, "w") as stream:
            stream.write(secrets.token_hex(32))
    elif path.stat().st_mode & 0o077 and path.stat().st_uid == os.getuid():
        path.chmod(0o600)


def use_token() -> None:
    """See that this user has a token, unless the environment gives one; raises ClusterError where it cannot be kept.

    Where HOME takes no file it lies in SCTUNE_HOME, which Ray and its workers are told.
    """
    if "RAY_AUTH_TOKEN" in os.environ:
        return
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    usual = Path(given) if given else Path("~/.ray/auth_token").expanduser()
    try:
        ensure_token(usual)
        return
    except OSError as problem:
        if given:
            raise ClusterError(
                f"RAY_AUTH_TOKEN_PATH {given}: {problem.strerror}; name a file in a folder of yours"
            ) from None
    own = home() / "ray_auth_token"
    try:
        ensure_token(own)
    except OSError as problem:
        raise ClusterError(
            f"Ray's token can be kept neither in {usual} nor in {own}: {problem.strerror}; set SCTUNE_HOME to a folder "
            "that can be written to"
        ) from None
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(own)


def check_temporary_folder() -> None:
    """Raises ClusterError where the folder for temporary files has too long a path for the sockets of a local Ray."""
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    if variable is None:
        return
    folder = os.environ[variable]
    room = MAX_SOCKET_BYTES - len(_SOCKET)
    if len(os.fsencode(folder)) > room:
        raise ClusterError(
            f"{variable} {folder}: its path has {len(os.fsencode(folder))} bytes, and Ray's sockets need one of {room} "
            f"at most (the system's limit is {MAX_SOCKET_BYTES} for a socket); set RAY_TMPDIR to a shorter one, for "
            "example RAY_TMPDIR=/tmp"
        )


def connect(address: str | None) -> bool:
    """Connect to Ray, or start a local one; returns whether this call did. Raises ClusterError."""
    if address is None:
        check_temporary_folder()
    use_token()
    import ray

    keep_keys_out_of_logs()
    if ray.is_initialized():
        return False
    if address is not None:
        check_answers(address)
    try:
        with secrets_hidden(), _loopback(address is None) as more:
            ray.init(
                address=address or "local",
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level="ERROR",
                **more,
            )
    except Exception as problem:  # a start that takes too long is a bare Exception of Ray's
        reason = " ".join(str(problem).split())[:200].rstrip(".") or type(problem).__name__
        if address is None:
            raise ClusterError(
                f"cannot start Ray on this machine: {reason}; run the same command again when the machine is less "
                "busy, after `ray stop` if an earlier Ray still runs, and see that memory and temporary disk are free"
            ) from None
        raise ClusterError(
            f"cannot connect to Ray at {address}: {reason}; start it with `ray start --head`, or leave out --address"
        ) from None
    return True


def keep_keys_out_of_logs() -> None:
    """Tune hands the driver's AWS keys to its actors as settings, which Ray writes to a log in plain text.

    Processes on this machine inherit them anyway; other nodes have their own profile or role.
    """
    names = passed_variables()
    for name in [name for name in names if name.startswith("AWS_")]:
        names.discard(name)


@contextmanager
def _loopback(local: bool) -> Iterator[dict[str, str]]:
    """Arguments of ray.init with which a Ray of our own listens on this machine only.

    Ray replaces 127.0.0.1 by the machine's address; there is no switch for that. Where the private function is gone
    the ports stay open to others, and `exposure` says so.
    """
    if not local:
        yield {}
        return
    with localhost_kept() as kept:
        yield {"_node_ip_address": LOOPBACK} if kept else {}


def exposure(address: str | None) -> list[str]:
    """A warning where Ray's ports can be reached from other machines; call it when connected."""
    import ray

    if address is None:
        open_to = sorted({host for host in listening_addresses() if not is_loopback(host)})
    else:
        open_to = sorted({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]} - {LOOPBACK})
    if not open_to:
        return []
    return [
        f"Ray listens on {', '.join(open_to[:3])}{' ...' if len(open_to) > 3 else ''}, which other machines may reach. "
        "Its token is on but nothing is encrypted: keep the ports behind a firewall or in a private network"
    ]


def listening_addresses() -> set[str]:
    """Addresses at which this process and those it started accept TCP connections."""
    import psutil

    found = set()
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        try:
            sockets = process.net_connections(kind="tcp")
        except psutil.Error:  # it ended meanwhile
            continue
        found |= {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
    return found


def is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host.partition("%")[0])
    inner = getattr(address, "ipv4_mapped", None)
    return bool((inner or address).is_loopback)


def check_answers(address: str) -> None:
    """Raises ClusterError when nothing listens at host:port, or another token is asked for.

    Ray itself would try for minutes, or half of one.
    """
    match = re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+?)\]?:(\d+)", address)
    if match is None:
        return
    try:
        socket.create_connection((match[1], int(match[2])), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as problem:
        raise ClusterError(
            f"cannot connect to Ray at {address}: {problem}; start it with `ray start --head`, or leave out --address"
        ) from None
    if not address.startswith("ray://"):
        _check_token(f"{match[1]}:{match[2]}", address)


def _check_token(server: str, address: str) -> None:
    from ray.exceptions import AuthenticationError

    try:
        ask_head(server, CONNECT_S)
    except AuthenticationError:
        raise ClusterError(
            f"Ray at {address} does not take this token; copy the head's ~/.ray/auth_token here (mode 0600), or set "
            "RAY_AUTH_TOKEN to the one that it was started with"
        ) from None
    except Exception:  # whatever else is wrong, ray.init says it; this is a private way to ask early
        return


def plan_resources(
    cpus: float,
    gpus: float | None,
    max_concurrent: int | None,
    growing: bool = False,
    left_out: Mapping[str, str] | None = None,
) -> Resources:
    """Share of a trial and number at a time; by default a whole GPU each where there is one, all of them used.

    growing: the cluster may add nodes, so that `max_concurrent` trials may be planned where none fits yet.
    Raises ClusterError where not even one trial fits.
    """
    left_out = left_out or {}
    nodes = _resources_of_nodes(left_out)
    have_cpus, have_gpus = (sum(float(node.get(kind, 0)) for node in nodes) for kind in ("CPU", "GPU"))
    share = float(have_gpus > 0) if gpus is None else gpus
    if share > 1 and share != int(share):
        raise ClusterError(f"--gpus-per-trial {share:g}: above 1 only whole GPUs can be given")
    room = sum(fits(node, cpus, share) for node in nodes)
    if room == 0 and not (growing and max_concurrent):
        way_out = "; name --max-concurrent and --gpus-per-trial if it will grow" if growing else ""
        raise ClusterError(
            f"a trial asks for {cpus:g} CPUs and {share:g} GPUs, and no node has them free (in all {have_cpus:g} CPUs "
            f"and {have_gpus:g} GPUs); use smaller --cpus-per-trial or --gpus-per-trial{way_out}"
        )
    at_a_time = max_concurrent if growing and max_concurrent else min(room, max_concurrent or room)
    per_card = max((_per_card(node, cpus) for node in nodes), default=1)
    return Resources(
        have_cpus, have_gpus, cpus, share, at_a_time, len(nodes), left_out, per_card=per_card, asked=max_concurrent
    )


def room_for(cpus: float, gpus: float, left_out: Collection[str] = ()) -> int:
    """Trials of this share that all nodes together hold at a time."""
    return sum(fits(node, cpus, gpus) for node in _resources_of_nodes(left_out))


def _per_card(node: Mapping[str, float], cpus: float) -> int:
    """Trials for each GPU of a node by its CPUs alone."""
    have = int(node.get("GPU", 0))
    return max(1, int(node.get("CPU", 0) / cpus + 1e-9) // have) if have else 1


def fits(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Trials that a node holds at a time; fractions of one GPU are packed, never spread over two."""
    by_cpu = int(node.get("CPU", 0) / cpus + 1e-9)
    if gpus == 0:
        return by_cpu
    have = int(node.get("GPU", 0))
    return min(by_cpu, have * int(1 / gpus + 1e-9) if gpus <= 1 else have // int(gpus))


def nodes_alive() -> set[str]:
    """Ids of the nodes that the cluster has now."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def nodes_for(cpus: float, gpus: float) -> set[str]:
    """Ids of the nodes that hold a trial of this share, when nothing else runs there."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"] and fits(node["Resources"], cpus, gpus)}


def usable_nodes(left_out: Collection[str] = ()) -> list[Mapping[str, float]]:
    """Resources of the nodes that can take trials now, {"CPU": .., "GPU": ..}; left_out: ids of nodes that may not."""
    return _resources_of_nodes({*left_out, *draining_nodes()})


def _resources_of_nodes(left_out: Collection[str]) -> list[Mapping[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in left_out]


def largest_resources(left_out: Collection[str] = ()) -> TrialResources:
    """The most CPU cores and GPUs that any one node has; left_out: ids of nodes that do not count."""
    nodes = _resources_of_nodes(left_out)
    return TrialResources(*(max((float(node.get(kind, 0)) for node in nodes), default=0.0) for kind in ("CPU", "GPU")))
