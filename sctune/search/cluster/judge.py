"""What is good and bad about what a node answered; pure, from plain data to findings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sctune.search.cluster.asking import Answer, Clock
from sctune.search.cluster.connection import fits, is_loopback
from sctune.search.cluster.facts import NodeFacts
from sctune.search.cluster.findings import (
    ANSWER,
    CLOCK,
    DATA,
    DISK,
    GPUS,
    MEMORY,
    PORTS,
    STORAGE,
    TOKEN,
    VERSIONS,
    WEIGHTS,
    Effect,
    Finding,
    Node,
    NodeReport,
    failed,
    of_error,
    ok,
    skipped,
    warning,
)
from sctune.search.cluster.wanted import Wanted, beside

CLOCK_FAILED_S = 300.0
"""Kerberos, which network folders may use, refuses clocks that are further off (RFC 4120); S3 does from 900 s on."""
CLOCK_WARNING_S = 2.0
"""Files that changed less than this ago are read again, by the node's clock; logs of several nodes get out of order."""

TRIAL_BYTES = 2**30
"""Memory of a trial's process before its first image: Python, torch and the libraries take .9 GB."""
GPU_BYTES = 2**30
"""Free memory of a GPU below which not even a context and a small network fit."""
GPU_BUSY = 0.1
"""Share of a GPU's memory that something else may have taken before it is mentioned."""
TEMPORARY_BYTES = 2**30
"""Room for Ray's logs and for objects that it spills."""
SHARED_BYTES = 2**28
"""Size of /dev/shm below which Ray keeps its objects on disk; containers have 64 MB where nobody asks for more."""

TOKEN_ADVICE = (
    "start every node of Ray with RAY_AUTH_MODE=token and one token, or anybody who reaches it runs code there"
)


def judge(wanted: Wanted, answers: Sequence[Answer]) -> list[NodeReport]:
    """A report of each node, in the order of the answers."""
    nodes = [one.node for one in answers if one.node.trains]
    share = float(any(node.gpus > 0 for node in nodes)) if wanted.gpus is None else wanted.gpus
    fit = any(node.gpus >= share for node in nodes)
    return [NodeReport(one.node, tuple(_findings(wanted, one, share, fit))) for one in answers]


def _findings(wanted: Wanted, answer: Answer, share: float, gpus_somewhere: bool) -> list[Finding]:
    """share: GPUs of a trial; gpus_somewhere: whether some node has so many."""
    node, facts = answer.node, answer.facts
    if facts is None:
        advice = "look at the node and its Ray logs; start Ray there anew when it is mended"
        return [failed(ANSWER, f"cannot run sctune: {answer.problem}", advice, Effect.LEAVE_OUT)]
    parts: dict[str, Callable[[], Finding]] = {
        VERSIONS: lambda: _versions(wanted, facts),
        CLOCK: lambda: _clock(answer.clock),
        DATA: lambda: _data(wanted, facts),
        WEIGHTS: lambda: _weights(wanted, facts),
        STORAGE: lambda: _storage(wanted, answer, facts),
        GPUS: lambda: _gpus(share, node, facts, gpus_somewhere),
        MEMORY: lambda: _memory(wanted.cpus, share, node, facts),
        DISK: lambda: _disk(facts),
        TOKEN: lambda: _token(facts),
        PORTS: lambda: _ports(facts),
    }
    return [ok(ANSWER), *(_unless_broken(facts, check, part) for check, part in parts.items())]


def _unless_broken(facts: NodeFacts, check: str, part: Callable[[], Finding]) -> Finding:
    """The part's own finding, or that the node could not tell about it."""
    problem = facts.problems.get(PORTS if check == TOKEN else check)
    if problem is None:
        return part()
    effect = {VERSIONS: Effect.REFUSE, STORAGE: Effect.REFUSE}.get(check, Effect.TELL)
    if check in (DATA, WEIGHTS, GPUS):
        effect = Effect.LEAVE_OUT
    advice = {
        DATA: "look at the mount of the images there",
        STORAGE: "give --storage-path a folder or s3:// URI that all nodes share, and let them read and write there",
    }
    return failed(check, problem, advice.get(check, "look at this by hand on the node"), effect)


def _versions(wanted: Wanted, facts: NodeFacts) -> Finding:
    here = facts.versions
    wrong = [
        f"{name} {here.get(name)} (driver {own})" for name, own in wanted.versions.items() if here.get(name) != own
    ]
    if wrong:
        return failed(VERSIONS, f"has {', '.join(wrong)}", "install the same", Effect.REFUSE)
    return ok(VERSIONS, ", ".join(f"{name} {here[name]}" for name in ("sctune", "ray", "torch") if name in here))


def _clock(clock: Clock | None) -> Finding:
    if clock is None:
        return skipped(CLOCK, "not measured")
    measured = f"{_seconds(clock.offset)} ± {_seconds(clock.bound, sign=False)}"
    # what the round trip cannot explain
    surely = abs(clock.offset) - clock.bound
    if surely < CLOCK_WARNING_S:
        return ok(CLOCK, measured)
    detail = f"its clock is {measured} off the driver's"
    advice = "let both follow one time server (NTP)"
    if surely < CLOCK_FAILED_S:
        return warning(CLOCK, detail, advice)
    return failed(CLOCK, f"{detail}, and network folders and S3 may refuse it", advice, Effect.LEAVE_OUT)


def _seconds(value: float, sign: bool = True) -> str:
    text = f"{value * 1000:+.1f} ms" if abs(value) < 1 else f"{value:+.1f} s"
    return text if sign else text.lstrip("+")


def _data(wanted: Wanted, facts: NodeFacts) -> Finding:
    if facts.lacks is not None:
        return of_error(DATA, facts.lacks, Effect.LEAVE_OUT, "mount the images there")
    if facts.digests is None:
        return skipped(DATA)
    told = list(zip(wanted.data, facts.digests, strict=True))
    changed = [one.root for one, digest in told if digest is not None and one.digest != digest]
    if changed:
        detail = f"the images in {changed[0]} hold something else than the driver's"
        return failed(DATA, detail, "give every node the same files", Effect.LEAVE_OUT)
    counted = f"{sum(len(one.paths) for one in wanted.data)} images"
    return ok(DATA, f"{counted}, from the driver" if None in facts.digests else counted)


def _weights(wanted: Wanted, facts: NodeFacts) -> Finding:
    if not facts.weights:
        return skipped(WEIGHTS)
    for name, sha256 in facts.weights.items():
        own = wanted.weights[name]
        if sha256 is None and own.file is not None and not wanted.published:
            return failed(WEIGHTS, f"there is no file {own.file}", "copy the same file to every node", Effect.LEAVE_OUT)
        if sha256 is not None and sha256 != own.sha256:
            detail = f"weights of {name} differ from the driver's"
            return failed(WEIGHTS, detail, "copy the same file to every node", Effect.LEAVE_OUT)
    missing = [name for name, sha256 in facts.weights.items() if sha256 is None]
    if missing and wanted.published:
        return ok(WEIGHTS, f"{', '.join(missing)} from the driver")
    if missing:
        advice = "a trial there downloads them first; without a network, copy the driver's file"
        return warning(WEIGHTS, f"weights of {', '.join(missing)} are not here yet", advice)
    return ok(WEIGHTS, ", ".join(facts.weights))


def _storage(wanted: Wanted, answer: Answer, facts: NodeFacts) -> Finding:
    if not wanted.storage:
        return skipped(STORAGE)
    place, shared = beside(wanted.storage), "give --storage-path a folder or s3:// URI that all nodes share"
    if not facts.storage_read:
        return failed(STORAGE, f"does not see {place}", shared, Effect.REFUSE)
    if facts.storage_problem is not None:
        advice = "let the user that runs Ray there write to it"
        return failed(STORAGE, f"reads {place} but cannot write to it ({facts.storage_problem})", advice, Effect.REFUSE)
    if not answer.returned:
        return failed(STORAGE, f"writes to {place} what the driver does not see there", shared, Effect.REFUSE)
    return ok(STORAGE, "read and written")


def _gpus(share: float, node: Node, facts: NodeFacts, somewhere: bool) -> Finding:
    if not node.trains or share == 0:
        return skipped(GPUS)
    if node.gpus < share:
        detail = f"has {node.gpus:g} GPUs, and a trial takes {share:g}"
        if somewhere:
            return skipped(GPUS, f"{detail}: it gets no trials")
        return failed(GPUS, detail, "start Ray there with --num-gpus, or search with --gpus-per-trial 0")
    if facts.gpus is None:
        return skipped(GPUS)
    if len(facts.gpus) < node.gpus:
        detail = f"Ray counts on {node.gpus:g} GPUs, and torch sees {len(facts.gpus)}"
        advice = "look at nvidia-smi and at torch.cuda.is_available() there, or start Ray without --num-gpus"
        return failed(GPUS, detail, advice, Effect.LEAVE_OUT)
    least = min(facts.gpus, key=lambda one: one.free)
    told = ", ".join(f"{one.name} {_size(one.free)} of {_size(one.total)} free" for one in facts.gpus)
    if least.free < GPU_BYTES:
        advice = "end what else runs on that GPU (nvidia-smi names it)"
        return failed(GPUS, f"{_size(least.free)} of {_size(least.total)} of a GPU are free", advice)
    if least.free < (1 - GPU_BUSY) * least.total:
        return warning(GPUS, told, "something else uses a GPU; trials may run out of its memory")
    return ok(GPUS, told)


def _memory(cpus: float, share: float, node: Node, facts: NodeFacts) -> Finding:
    if facts.memory_free is None or not node.trains:
        return skipped(MEMORY)
    has = {"CPU": node.cpus, "GPU": node.gpus}
    slots = max(1, fits(has, cpus, share))
    told = f"{_size(facts.memory_free)} of {_size(facts.memory_total or 0)} free"
    if facts.memory_free < TRIAL_BYTES:
        return failed(MEMORY, told, f"a trial needs {_size(TRIAL_BYTES)} before its first image; end what else runs")
    if facts.memory_free < slots * TRIAL_BYTES:
        return warning(
            MEMORY, f"{told} for {slots} trials", "use a smaller --max-concurrent, or larger --cpus-per-trial"
        )
    return ok(MEMORY, told)


def _disk(facts: NodeFacts) -> Finding:
    if facts.temporary_free is None:
        return skipped(DISK)
    told = f"{_size(facts.temporary_free)} free in {facts.temporary}"
    if facts.temporary_free < TEMPORARY_BYTES:
        return failed(DISK, told, "Ray keeps logs and objects there; free some, or start Ray with --temp-dir elsewhere")
    if facts.cache_free is not None:
        told += f", {_size(facts.cache_free)} for the image cache"
    if facts.shared_memory is not None and facts.shared_memory < SHARED_BYTES:
        detail = f"/dev/shm has {_size(facts.shared_memory)}, so Ray keeps its objects on disk"
        return warning(DISK, detail, "start the container with --shm-size=2g or more")
    return ok(DISK, told)


def _token(facts: NodeFacts) -> Finding:
    if facts.token is None:
        return skipped(TOKEN)
    return ok(TOKEN, "on") if facts.token else failed(TOKEN, "Ray runs without a token", TOKEN_ADVICE, Effect.REFUSE)


def _ports(facts: NodeFacts) -> Finding:
    """Ports that other machines may reach; Ray needs most of them."""
    reachable = [one for one in facts.listeners if not is_loopback(one.host)]
    # its other ports are of metrics
    port = (facts.page or "").rpartition(":")[2]
    pages = [one for one in reachable if one.process == "dashboard" and str(one.port) == port]
    if pages:
        detail = f"the dashboard listens at {pages[0].host}:{pages[0].port}"
        advice = "start the head without --dashboard-host, and reach it through ssh -L"
        if not facts.token:
            return failed(PORTS, f"{detail}, without a token", advice)
        return warning(PORTS, f"{detail}, unencrypted", advice)
    if not reachable:
        return ok(PORTS, "none open to other machines")
    return ok(PORTS, f"{len(reachable)} open to other machines")


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB"
