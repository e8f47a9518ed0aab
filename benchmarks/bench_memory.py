"""A training on the CPU that keeps what it frees against one under glibc's own rules: seconds, page faults, memory.

Each round trains the same configurations in two fresh processes, one after the other, and both must give the same
scores to the last bit. `steps`: one configuration of profile cpu, as a trial trains. `sequence`: ten sizes in one
process, as in a worker that is used again. Run alone: `python benchmarks/bench_memory.py`.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import torch

from sctune.config import TrialConfig, load_profile
from sctune.train.memory import give_memory_back
from sctune.train.trainer import Trainer

ARMS = ("glibc", "kept")
SIZES = {"steps": (160, 160), "sequence": (128, 224, 144, 192, 160, 208, 144, 176, 224, 128)}
STEPS = {"steps": 10, "sequence": 2}
PROCESS = resource.RUSAGE_SELF


def config_of(size: int, steps: int) -> TrialConfig:
    return load_profile("cpu").override(
        {
            "data.source": "elpv",
            "data.image_size": size,
            "data.selection_limit": 20,
            "runtime.device": "cpu",
            "model.normal_head": "mlp",
            "budget.epochs": 1,
            "budget.iterations": steps,
            "seed": 101,
        }
    )


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def train(arm: str, work: str, cache: Path) -> dict[str, float | str]:
    """Epochs of one process, the first apart as a warm-up; what they took, MB of memory, digest of all scores."""
    torch.set_num_threads(1)
    if arm == "glibc":
        patch("sctune.train.trainer.keep_freed_memory").start()
    digest, before, wall = hashlib.sha256(), resource.getrusage(PROCESS), time.perf_counter()
    for number, size in enumerate(SIZES[work]):
        one = Trainer(config_of(size, STEPS[work]), cache=cache)
        if number == 1:
            before, wall = resource.getrusage(PROCESS), time.perf_counter()
        digest.update(repr(one.run_epoch().scores).encode())
        del one
        gc.collect()
        if arm == "kept":
            give_memory_back()
    after, wall = resource.getrusage(PROCESS), time.perf_counter() - wall
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "cpu_s": seconds,
        "wall_s": wall,
        "faults": after.ru_minflt - before.ru_minflt,
        "peak_mb": after.ru_maxrss / 1024,
        "end_mb": resident(),
        "scores": digest.hexdigest(),
    }


def compare(work: str, rounds: int, cache: Path) -> None:
    """Interleaved rounds; prints medians of both arms and the ratio of processor time."""
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    scores = set()
    for size in set(SIZES[work]):
        Trainer(config_of(size, 1), cache=cache)  # decodes the images, once for all
    for _ in range(rounds):
        for arm in ARMS:
            command = [sys.executable, __file__, "--arm", arm, "--work", work, "--cache", str(cache)]
            row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            scores.add(row.pop("scores"))
            found[arm].append(row)
    if len(scores) != 1:
        raise SystemExit(f"{work}: the two sides give different scores")
    each = [old["cpu_s"] / new["cpu_s"] for old, new in zip(found["glibc"], found["kept"], strict=True)]
    for arm, rows in found.items():
        middle = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        print(
            f"{work} {arm}: {middle['cpu_s']:.1f} s of processor time, {middle['wall_s']:.1f} s by the clock, "
            f"{middle['faults']:,.0f} page faults, peak {middle['peak_mb']:.0f} MB, "
            f"at the end {middle['end_mb']:.0f} MB"
        )
    print(
        f"{work}: ratio {statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f} in {rounds} rounds), scores "
        f"equal, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", choices=tuple(SIZES), action="append", help="default: both")
    parser.add_argument("--arm", choices=ARMS, help="one process of a round: prints its figures as JSON")
    parser.add_argument("--cache", type=Path, help="of that process: folder of decoded images")
    args = parser.parse_args()
    works = args.work or list(SIZES)
    if args.arm is not None:
        print(json.dumps(train(args.arm, works[0], args.cache)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for work in works:
            compare(work, args.rounds, Path(folder))


if __name__ == "__main__":
    main()
