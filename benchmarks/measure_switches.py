"""What each switch of the method is worth on ELPV: AUROC difference over paired seeds, and time per epoch.

Every arm changes one switch of a fixed baseline (profile `cpu`), trains on the development pool (general setting,
10 anomalies) and is scored on its spare anomalies and held-out normals; the test pool is never opened. Resumable.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from measure_common import (
    RESULTS,
    LastEpochTrainer,
    Remembered,
    Row,
    append_row,
    common_parser,
    heading,
    load_average,
    paired,
    print_table,
    read_rows,
    rows_path,
    run_jobs,
    write_json,
)

from sctune.config import Task, TrialConfig, load_profile
from sctune.metrics.image_level import auroc
from sctune.report import OBJECTIVE

BASELINE = "baseline"
OWN: dict[str, Any] = {
    "augment.kernel": "aligned",
    "augment.refresh": "iteration",
    "augment.threshold_mode": "value",
    "augment.threshold": 0.4,
    "augment.paste_valid_only": True,
    "augment.rotation_fill": "zero",
    "model.patch_place": "grid2d",
    "model.patch_evaluation": "exact",
}
"""The baseline: sctune's own choices, written out, since the defaults follow from what was measured."""

DIAGONAL = "patch_place=diag"
RANDOM_SCORES = {"patch_evaluation=random": BASELINE, f"{DIAGONAL},patch_evaluation=random": DIAGONAL}
"""Arm with one random draw of patches for each score -> the trained arm whose detectors are scored again.

Patches anywhere have 75900 signed sets, so `exact` is a fixed list of 32 there; the diagonal has 30, all averaged over.
"""

ARMS: dict[str, dict[str, Any]] = {
    BASELINE: {},
    "kernel=official": {"augment.kernel": "official"},
    DIAGONAL: {"model.patch_place": "diag"},
    "refresh=epoch": {"augment.refresh": "epoch"},
    "threshold_mode=area": {"augment.threshold_mode": "area"},
    "paste_valid_only=false": {"augment.paste_valid_only": False},
    "rotation_fill=reflect": {"augment.rotation_fill": "reflect"},
}
"""Trained arms."""

DRAWS = 10
BATCH = 32
SLICE, TIMED = 5, 96
WARM_UP = 2


@dataclass(frozen=True)
class Job:
    arm: str
    seed: int


def configuration(arm: str) -> TrialConfig:
    random = {"model.patch_evaluation": "random"} if arm in RANDOM_SCORES else {}
    values = ARMS[RANDOM_SCORES.get(arm, arm)] | random
    fixed = {"data.selection": "extra", "data.n_anomalies": 10, "runtime.device": "cpu", "model.normal_head": "mlp"}
    return load_profile("cpu").override(fixed | OWN | values)


def trainer_for(arm: str, seed: int) -> LastEpochTrainer:
    return LastEpochTrainer(configuration(arm), Task(source="elpv", setting="general", seed=seed))


def train(job: Job) -> Row:
    """One training; value: AUROC on the selection images after the last epoch."""
    trainer = trainer_for(job.arm, job.seed)
    metrics = [report.metrics for report in trainer.fit()]
    row: Row = {
        "key": f"train:{job.arm}:{job.seed}",
        "arm": job.arm,
        "seed": job.seed,
        "value": metrics[-1][OBJECTIVE],
        "loss": metrics[-1]["loss"],
        "pasted_fraction": statistics.fmean(one["pasted_fraction"] for one in metrics),
        "seconds": sum(one["seconds"] for one in metrics),
        "images": [int((trainer.selection.labels == label).sum()) for label in (0, 1)],
        "load": load_average(),
    }
    for random, trained in RANDOM_SCORES.items():
        if trained == job.arm:
            row["random"] = random_scores(random, trainer)
    return row


def random_scores(arm: str, trainer: LastEpochTrainer) -> list[float]:
    """AUROC of the trained detector with one random patch draw per batch of images, for DRAWS seeds."""
    scored = trainer_for(arm, trainer.config.seed)
    scored.method.detector.load_state_dict(trainer.method.detector.state_dict())
    images, labels = trainer.selection.images, trainer.selection.labels
    scored.method.detector.backbone = Remembered(scored.method.detector.backbone, math.ceil(len(images) / BATCH))  # type: ignore[assignment]
    values = []
    with torch.random.fork_rng(devices=[]):
        for draw in range(DRAWS):
            torch.manual_seed(draw)
            values.append(auroc(labels, scored.method.detector.score_images(images, BATCH)))
    return values


def time_arm(arm: str, seed: int, slices: int) -> Row:
    """Epochs of the baseline (or of the arm that is scored again) and of the arm, in turns, in this process.

    An epoch's time is made up of start_epoch, a slice of SLICE steps and the scoring of TIMED images, scaled up. The
    frozen blocks of the scored images are run before, as a training does in its first epoch only.
    """
    torch.set_num_threads(1)
    sides = [trainer_for(RANDOM_SCORES.get(arm, BASELINE), seed), trainer_for(arm, seed)]
    images = [trainer.selection.images[:TIMED] for trainer in sides]
    for trainer, scored in zip(sides, images, strict=True):
        trainer.method.scorer()(scored)
        trainer.method.detector.train()
        trainer.method.step.start_epoch(0)
        for number in range(WARM_UP):
            trainer.method.step.run(number)
    taken: list[list[Row]] = [[], []]
    for turn in range(slices):
        for side, trainer in enumerate(sides):
            taken[side].append(_time_slice(trainer, images[side], WARM_UP + turn * SLICE))
    row: Row = {"key": f"time:{arm}", "arm": arm, "seed": seed, "slices": slices, "load": load_average()}
    for clock in ("wall", "cpu"):
        for part in ("epoch", "training", "scoring"):
            base, own = (statistics.median(one[f"{part}_{clock}"] for one in rows) for rows in taken)
            row[f"{part}_{clock}"] = {"baseline": base, "arm": own, "ratio": own / base}
    return row | {"value": row["epoch_cpu"]["ratio"]}


def _time_slice(trainer: LastEpochTrainer, images: np.ndarray, first: int) -> Row:
    marks = [_clocks()]
    trainer.method.step.start_epoch(first)
    marks.append(_clocks())
    for number in range(first, first + SLICE):
        trainer.method.step.run(number)
    marks.append(_clocks())
    trainer.method.scorer()(images)
    marks.append(_clocks())
    row: Row = {}
    for index, clock in enumerate(("wall", "cpu")):
        start, steps, scoring = np.diff([mark[index] for mark in marks])
        row[f"training_{clock}"] = start + steps * trainer.config.budget.iterations / SLICE
        row[f"scoring_{clock}"] = scoring * len(trainer.selection.images) / TIMED
        row[f"epoch_{clock}"] = row[f"training_{clock}"] + row[f"scoring_{clock}"]
    return row


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def summary(options: argparse.Namespace, rows: list[Row]) -> Row:
    trained = {(row["arm"], row["seed"]): row for row in rows if row["key"].startswith("train:")}
    timed = {row["arm"]: row for row in rows if row["key"].startswith("time:")}
    base = {seed: row for (arm, seed), row in trained.items() if arm == BASELINE and seed in options.seeds}
    arms: Row = {}
    for arm in [*ARMS, *RANDOM_SCORES]:
        source = RANDOM_SCORES.get(arm, arm)
        rows_of_arm = {seed: trained[source, seed] for seed in base if (source, seed) in trained}
        if arm in RANDOM_SCORES:
            rows_of_arm = {seed: row for seed, row in rows_of_arm.items() if "random" in row}
        if not rows_of_arm:
            continue
        exact = {seed: row["value"] for seed, row in rows_of_arm.items()}
        if arm in RANDOM_SCORES:
            random = {seed: statistics.fmean(row["random"]) for seed, row in rows_of_arm.items()}
            spread = statistics.fmean(statistics.stdev(row["random"]) for row in rows_of_arm.values())
            arms[arm] = paired(random, exact, False) | {"against": source, "draws": DRAWS, "sd_over_draws": spread}
        else:
            arms[arm] = paired(exact, {seed: base[seed]["value"] for seed in exact}, arm == BASELINE)
        arms[arm]["pasted_fraction"] = statistics.fmean(row["pasted_fraction"] for row in rows_of_arm.values())
        if arm in timed:
            arms[arm]["time"] = {name: timed[arm][name] for name in timed[arm] if name not in ("key", "arm", "value")}
    return heading(options, rows) | {
        "baseline": OWN,
        "setting": "general, 10 anomalies, data.selection=extra (development pool)",
        "images": next(iter(base.values()))["images"] if base else None,
        "seeds": sorted(base),
        "arms": arms,
    }


def show(content: Row) -> None:
    """The summary as a Markdown table."""
    rows = []
    for arm, own in content["arms"].items():
        cells = [arm, f"{own['auroc']:.4f}", *["-"] * 4, f"{own['pasted_fraction']:.2f}", *["-"] * 2]
        if "difference" in own:
            low, high = own["interval"]
            cells[2:6] = [
                f"{own['difference']:+.4f}",
                f"{low:+.4f} to {high:+.4f}",
                f"{own['p_value']:.3f}",
                f"{own['higher']} of {own['seeds']}",
            ]
        if "time" in own:
            cells[7:] = [f"{own['time'][f'epoch_{clock}']['ratio']:.3f}" for clock in ("cpu", "wall")]
        rows.append(cells)
    names = [
        "arm",
        "AUROC",
        "difference",
        "95 % interval",
        "p",
        "seeds above",
        "pasted share",
        "time (CPU)",
        "time (wall)",
    ]
    print_table(names, rows)


def main() -> None:
    parser = common_parser(__doc__.splitlines()[0], RESULTS / "switches.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(101, 111)))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="arms to train")
    parser.add_argument("--slices", type=int, default=6, help="turns of the timing")
    parser.add_argument("--only", choices=("train", "time", "summary"), help="one part; the summary is always written")
    options = parser.parse_args()
    path = rows_path(options)
    done = {row["key"] for row in read_rows(path)}
    if options.only in (None, "train"):
        # by seed, so that a run that ends early leaves whole pairs
        jobs = [Job(arm, seed) for seed in options.seeds for arm in ARMS if arm in options.arms]
        failed = run_jobs(
            train, [job for job in jobs if f"train:{job.arm}:{job.seed}" not in done], options.workers, path
        )
        if failed:
            raise SystemExit(1)
    if options.only in (None, "time"):
        for arm in [*list(ARMS)[1:], *RANDOM_SCORES]:
            if f"time:{arm}" not in done:
                append_row(path, time_arm(arm, options.seeds[0], options.slices))
                print(f"timed {arm}", flush=True)
    content = summary(options, read_rows(path))
    write_json(options.out, content)
    show(content)


if __name__ == "__main__":
    main()
