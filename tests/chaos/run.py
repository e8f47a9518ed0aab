"""Kills small searches at moments drawn over their whole life, resumes them, and counts what was lost.

    python tests/chaos/run.py --runs 40 --seed 0

Half of the studies use sampler `random` without a scheduler: resumed, their curves must be those of an undisturbed
search by value. The other half use TPE and ASHA: numbers of trials and states must be right. In all of them record and
MLflow must agree (`sctune status --check`). Prints a line per run and a table; exit code 1 when anything was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.conftest import make_folder  # noqa: E402
from tests.processes import end_group  # noqa: E402

POINTS = (
    "before the first report", "mid-epoch", "checkpoint half-written", "asked, not recorded", "record half-written",
    "reported, not told", "told, not queued", "queued, not in MLflow", "any moment", "final drain",
)  # fmt: skip
# the final drain has no running trial: seldom enough that four of five runs hit one
WEIGHTS = (4, 5, 4, 3, 3, 3, 3, 3, 5, 2)
SIGNALS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
TRIALS, EPOCHS, SLOTS = 4, 4, 2
KINDS = {"random": ("random", "none"), "tpe": ("tpe", "asha")}
LEAVES_S = 10.0
"""A stopped driver leaves within this time on a free machine; longer is reported, not a failure."""


@dataclass(frozen=True)
class Outcome:
    """One run. hit: a trial was running when the signal came. lost, doubled: trials or points; repeated: epochs.

    seconds: from the signal to the driver's end.
    """

    name: str
    kind: str
    fault: str
    point: str
    happened: bool
    hit: bool
    lost: int
    doubled: int
    repeated: int
    seconds: float
    problems: tuple[str, ...]


class Studies:
    """Runs the command in a home of its own; one undisturbed study per kind to compare with."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = make_folder(root / "data")
        self.env = {**os.environ, "SCTUNE_HOME": str(root / "home"), "OMP_NUM_THREADS": "1"}
        (root / "home").mkdir()
        self.undisturbed: dict[str, dict[int, dict[int, float]]] = {}

    def search(self, name: str, kind: str, slots: int = SLOTS) -> list[str]:
        sampler, scheduler = KINDS[kind]
        return [
            "search", "--profile", "smoke", "--data", str(self.data), "--selection", "extra", "--name", name,
            "--sampler", sampler, "--scheduler", scheduler, "--trials", str(TRIALS), "--max-concurrent", str(slots),
            "--checkpoint-interval", "0", "--set", "budget.iterations=6", "--set", f"budget.epochs={EPOCHS}",
        ]  # fmt: skip

    def start(self, words: Sequence[str], name: str, plan: dict[str, Any]) -> subprocess.Popen[str]:
        extra = {"SCTUNE_CHAOS": json.dumps(plan), "SCTUNE_CHAOS_LOG": str(self.root / f"{name}.epochs")}
        extra["SCTUNE_CHAOS_SENT"] = str(self.root / f"{name}.sent")
        return subprocess.Popen(
            [sys.executable, str(HERE / "driver.py"), *words],
            env={**self.env, **extra},
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=(self.root / f"{name}.stderr").open("a"),
            start_new_session=True,
            cwd=self.root,
        )

    def record(self, name: str) -> list[Any]:
        from sctune.search.study.study import Study

        try:
            study = Study.open(self.root / "home" / "studies", name)
        except Exception:  # killed before there was one
            return []
        try:
            return list(study.record.load())
        finally:
            study.record.close()

    def curves(self, name: str) -> dict[int, dict[int, float]]:
        return {trial.number: dict(trial.intermediate_values) for trial in self.record(name)}

    def epochs(self, name: str) -> Counter[tuple[str, str]]:
        """(trial, epoch) -> times it was trained."""
        path = self.root / f"{name}.epochs"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return Counter((words[1], words[2]) for words in lines if words[0] == "epoch")

    def baseline(self, kind: str) -> None:
        name = f"undisturbed-{kind}"
        # `random` draws by the trial's number, TPE from those that ended before
        slots = 1 if kind == "random" else SLOTS
        process = self.start(self.search(name, kind, slots), name, {"point": "none", "count": 0, "signal": 0})
        if process.wait(300) != 0:
            raise SystemExit(f"the undisturbed search failed:\n{(self.root / f'{name}.stderr').read_text()}")
        end_group(process.pid)
        self.undisturbed[kind] = self.curves(name)


def disturb(studies: Studies, name: str, kind: str, fault: str, point: str, draw: random.Random) -> Outcome:
    """One search, ended at `point` and resumed."""
    number = SIGNALS[fault]
    plan = {"point": point, "count": draw_count(point, draw), "signal": int(number)}
    process = studies.start(studies.search(name, kind), name, plan)
    if point == "any moment":
        while process.poll() is None and not studies.record(name):
            time.sleep(0.2)
        time.sleep(draw.uniform(0.0, 8.0))
        if process.poll() is None:
            (studies.root / f"{name}.sent").write_text(str(time.time()))
            process.send_signal(number)
    code = process.wait(300)
    sent = studies.root / f"{name}.sent"
    left = time.time() - float(sent.read_text()) if sent.exists() else 0.0
    end_group(process.pid)
    before = studies.record(name)
    hit = any(not trial.state.is_finished() for trial in before)
    happened = code == (-int(number) if number == signal.SIGKILL else 3)
    words = (
        ["resume", name]
        if before or (studies.root / "home" / "studies" / name).exists()
        else studies.search(name, kind)
    )
    again = studies.start(words, name, {"point": "none", "count": 0, "signal": 0})
    resumed = again.wait(300)
    end_group(again.pid)
    problems = [] if resumed == 0 else [f"resume ended with {resumed}: {tail(studies.root / f'{name}.stderr')}"]
    return judge(studies, Outcome(name, kind, fault, point, happened, hit, 0, 0, 0, left, tuple(problems)))


def draw_count(point: str, draw: random.Random) -> int:
    """Which time the point is reached; early enough that it is."""
    if point == "before the first report":
        return draw.choice([1, 2])
    if point == "final drain":
        return 1
    if point == "record half-written":
        # several of these in each transaction
        return draw.randint(3, 20)
    if point in ("mid-epoch", "checkpoint half-written"):
        return draw.randint(2, 3 * SLOTS)
    if point == "asked, not recorded":
        # the first ones are asked for before anything runs
        return draw.randint(SLOTS + 1, TRIALS)
    if point == "queued, not in MLflow":
        # the first request is the study's own
        return draw.randint(2, 3)
    return draw.randint(1, 3)


def judge(studies: Studies, outcome: Outcome) -> Outcome:
    """Compare with the undisturbed search, and record with MLflow."""
    problems = list(outcome.problems)
    trials = studies.record(outcome.name)
    numbers = [trial.number for trial in trials]
    lost = TRIALS - len(set(numbers))
    doubled = len(numbers) - len(set(numbers))
    states = {trial.state.name for trial in trials}
    allowed = {"COMPLETE"} if outcome.kind == "random" else {"COMPLETE", "PRUNED"}
    if not states <= allowed:
        problems.append(f"states {sorted(states)}")
    for trial in trials:
        epochs = sorted(trial.intermediate_values)
        if epochs != list(range(1, len(epochs) + 1)) or (trial.state.name == "COMPLETE" and len(epochs) != EPOCHS):
            lost += 1
            problems.append(f"trial {trial.number} has epochs {epochs}")
    if outcome.kind == "random" and studies.curves(outcome.name) != studies.undisturbed["random"]:
        problems.append("curves differ from the undisturbed search")
    trained = studies.epochs(outcome.name)
    repeated = sum(count - 1 for count in trained.values())
    worst = max(trained.values(), default=0)
    if worst > 2:
        problems.append(f"an epoch was trained {worst} times")
    check = subprocess.run(
        [str(Path(sys.executable).with_name("sctune")), "status", outcome.name, "--check"],
        env=studies.env, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    if check.returncode != 0:
        doubled += check.stdout.count("twice")
        problems.append(f"status --check: {' / '.join((check.stdout + check.stderr).splitlines()[-3:])}")
    return Outcome(
        outcome.name, outcome.kind, outcome.fault, outcome.point, outcome.happened, outcome.hit,
        lost, doubled, repeated, outcome.seconds, tuple(problems),
    )  # fmt: skip


def tail(path: Path) -> str:
    lines = path.read_text().splitlines()
    return " / ".join(lines[-3:])


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a line per fault and point."""
    head = [
        "fault",
        "where it hit",
        "runs",
        "hit a running trial",
        "lost",
        "doubled",
        "repeated epochs (most in a run)",
        "seconds to leave (most)",
    ]
    rows = [head, ["---"] * len(head)]
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.fault, outcome.point), []).append(outcome)
    for (fault, point), group in sorted(groups.items()):
        sums = [len(group), sum(o.hit for o in group), sum(o.lost for o in group), sum(o.doubled for o in group)]
        repeated = f"{sum(o.repeated for o in group)} ({max(o.repeated for o in group)})"
        rows.append([fault, point, *map(str, sums), repeated, f"{max(o.seconds for o in group):.1f}"])
    totals = [
        len(outcomes),
        *(sum(getattr(o, name) for o in outcomes) for name in ("hit", "lost", "doubled", "repeated")),
    ]
    rows.append(["all", "", *map(str, totals), f"{max(o.seconds for o in outcomes):.1f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--point", choices=POINTS, help="only this one")
    parser.add_argument("--kind", choices=KINDS, help="only this one; tpe needs no undisturbed search")
    parser.add_argument("--keep", type=Path, help="folder for the studies, kept afterwards")
    arguments = parser.parse_args()
    root = arguments.keep or Path(tempfile.mkdtemp(prefix="chaos."))
    root.mkdir(parents=True, exist_ok=True)
    draw = random.Random(arguments.seed)
    print(
        f"seed {arguments.seed}, {arguments.runs} runs of {TRIALS} trials x {EPOCHS} epochs, {SLOTS} at a time",
        flush=True,
    )
    studies = Studies(root)
    if arguments.kind != "tpe":
        studies.baseline("random")
    outcomes = []
    for number in range(arguments.runs):
        kind = arguments.kind or ("random" if number % 2 == 0 else "tpe")
        fault = draw.choice(list(SIGNALS))
        point = arguments.point or draw.choices(POINTS, WEIGHTS)[0]
        began = time.monotonic()
        outcome = disturb(studies, f"run{number:03d}", kind, fault, point, draw)
        outcomes.append(outcome)
        said = "; ".join(outcome.problems) or "well"
        happened = "" if outcome.happened else ", not ended by it"
        print(
            f"run {number:3d} {kind:6s} {fault:8s} {point:30s} hit {'yes' if outcome.hit else 'no ':3s}{happened} "
            f"repeated {outcome.repeated}  left after {outcome.seconds:.1f} s  {time.monotonic() - began:.0f} s  "
            f"{said}",
            flush=True,
        )
    print(table(outcomes))
    hits = sum(outcome.hit for outcome in outcomes)
    print(f"{hits} of {len(outcomes)} hit a running trial ({hits / max(1, len(outcomes)):.0%})")
    if arguments.keep is None:
        shutil.rmtree(root, ignore_errors=True)
    sys.exit(any(outcome.problems for outcome in outcomes))


if __name__ == "__main__":
    main()
