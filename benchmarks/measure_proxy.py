"""Does the proxy objective rank configurations as real anomalies do? Kendall's tau on ELPV's development pool.

Random configurations of the space `full` over the profile `cpu` are trained with data.selection=proxy; after the last
epoch the spare real anomalies of the development pool are scored beside the same held-out normals. Resumable.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from measure_common import (
    RESULTS,
    LastEpochTrainer,
    Row,
    common_parser,
    heading,
    load_average,
    print_table,
    read_rows,
    rows_path,
    run_jobs,
    write_json,
)
from scipy.stats import kendalltau

from sctune.augment.proxy import MAKERS
from sctune.config import Task, TrialConfig, load_profile
from sctune.data.decode import Decoding
from sctune.data.images import ImageCache
from sctune.data.split import make_split, selection_subset
from sctune.metrics.image_level import auroc
from sctune.paths import cache_folder
from sctune.report import OBJECTIVE
from sctune.search.space.definition import load_space

SETTINGS = {"anomaly-free": ("anomaly-free", 10), "general-1": ("general", 1)}
"""Name -> setting and anomalies; the second is also the general split whose spare anomalies are scored."""

RESAMPLES = 5000


@dataclass(frozen=True)
class Job:
    name: str
    number: int
    params: dict[str, Any]
    seed: int


def base_config(name: str) -> TrialConfig:
    setting, count = SETTINGS[name]
    fixed = {
        "data.setting": setting,
        "data.n_anomalies": count,
        "data.selection": "proxy",
        "runtime.device": "cpu",
        "model.normal_head": "mlp",
        "augment.kernel": "official",
    }
    return load_profile("cpu").override(fixed)


def draw_configurations(count: int, draw_seed: int) -> list[dict[str, Any]]:
    """The same random points of the space `full` for both settings."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = load_space("full", base_config("anomaly-free"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=draw_seed))
    return [space.suggest(study.ask()) for _ in range(count)]


def measure(job: Job) -> Row:
    """Train one configuration; value: AUROC on real anomalies, proxy: the objective a search would see."""
    config = load_space("full", base_config(job.name)).config(job.params)
    trainer = LastEpochTrainer(config, Task(source="elpv", setting=config.data.setting, seed=job.seed))
    reports = [report.metrics for report in trainer.fit()]
    metrics = reports[-1]
    images = real_anomalies(trainer, job)
    normal = trainer.method.detector.score_images(trainer.selection.images)
    real = trainer.method.detector.score_images(images)
    labels = np.r_[np.zeros(len(normal), int), np.ones(len(real), int)]
    return {
        "key": f"{job.name}:{job.number}:{job.seed}",
        "setting": job.name,
        "number": job.number,
        "seed": job.seed,
        "params": job.params,
        "value": auroc(labels, np.r_[normal, real]),
        "proxy": metrics[OBJECTIVE],
        "makers": {maker: metrics[f"selection_auroc_{maker}"] for maker in MAKERS},
        "images": [len(normal), len(real)],
        "seconds": sum(one["seconds"] for one in reports),
        "load": load_average(),
    }


def real_anomalies(trainer: LastEpochTrainer, job: Job) -> np.ndarray:
    """Spare real anomalies uint8 [N, S, S, 3] of the general split with this partition seed; none was trained on."""
    data = trainer.config.data
    split = make_split(
        "elpv", "general", SETTINGS[job.name][1], None, job.seed, "extra", partition_seed=data.partition_seed
    )
    chosen = selection_subset(split, data.selection_limit, data.partition_seed)
    spare = [file.path for file in chosen if file.label == 1]
    normals = {file.path for file in chosen if file.label == 0}
    assert not trainer.selection.labels.any() and normals == set(trainer.selection.paths), "other normals are scored"
    assert not {file.path for file in trainer.split.train} & set(spare), "a scored anomaly was trained on"
    assert not {file.path for file in split.test} & set(spare), "a scored anomaly is in the test pool"
    cached = ImageCache(cache_folder()).array(split.root, spare, Decoding.of(data), data.skip_corrupt)
    return cached.array[[cached.index[path] for path in spare]]


def agreement(proxy: Sequence[float], real: Sequence[float]) -> Row:
    """Kendall's tau b, its p value, and the 95 % percentile interval of a bootstrap over configurations."""
    x, y = np.asarray(proxy), np.asarray(real)
    random = np.random.default_rng(0)
    draws = (random.integers(len(x), size=len(x)) for _ in range(RESAMPLES))
    taus = np.array([kendalltau(x[rows], y[rows]).statistic for rows in draws])
    known = taus[np.isfinite(taus)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    tau = kendalltau(x, y)
    return {
        "kendall_tau": finite(tau.statistic),
        "interval": [finite(low), finite(high)],
        "p_value": finite(tau.pvalue),
    }


def finite(value: float) -> float | None:
    """Rounded; None (null in JSON, which has no NaN) where all values are equal and tau is not defined."""
    return round(float(value), 4) if np.isfinite(value) else None


def averaged(rows: Sequence[Row]) -> list[Row]:
    """One row a configuration: the mean over its training seeds, as a study's value is."""
    numbers = sorted({row["number"] for row in rows})
    return [_mean([row for row in rows if row["number"] == number]) for number in numbers]


def _mean(rows: Sequence[Row]) -> Row:
    makers = {maker: statistics.fmean(row["makers"][maker] for row in rows) for maker in MAKERS}
    return {name: statistics.fmean(row[name] for row in rows) for name in ("value", "proxy")} | {"makers": makers}


def summary(options: argparse.Namespace, rows: list[Row]) -> Row:
    settings: Row = {}
    for name in SETTINGS:
        chosen = [row for row in rows if row["setting"] == name and row["seed"] in options.seeds]
        own = averaged(chosen)
        if len(own) < 3:
            continue
        real = [row["value"] for row in own]
        proxy = [row["proxy"] for row in own]
        settings[name] = {
            "configurations": len(own),
            **agreement(proxy, real),
            "makers": {maker: agreement([row["makers"][maker] for row in own], real) for maker in MAKERS},
            "real_auroc": {
                "of_best_proxy": round(real[int(np.argmax(proxy))], 4),
                "best": round(max(real), 4),
                "median": round(statistics.median(real), 4),
                "worst": round(min(real), 4),
            },
            "images": chosen[0]["images"],
        }
    return heading(options, rows) | {
        "space": "full",
        "draw_seed": options.draw_seed,
        "seeds": options.seeds,
        "settings": settings,
    }


def show(content: Row) -> None:
    """The summary as a Markdown table."""
    rows = []
    for name, own in content["settings"].items():
        for part, tau in [("mean of the makers", own), *own["makers"].items()]:
            low, high = tau["interval"]
            interval = "-" if low is None else f"{low:.2f} to {high:.2f}"
            cells = [shown(tau["kendall_tau"], 2), interval, shown(tau["p_value"], 3)]
            rows.append([name, part, str(own["configurations"]), *cells])
    print_table(["setting", "proxy", "configurations", "Kendall's tau", "95 % interval", "p"], rows)


def shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def main() -> None:
    parser = common_parser(__doc__.splitlines()[0], RESULTS / "proxy.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="training seeds; a search has one")
    parser.add_argument("--configurations", type=int, default=24)
    parser.add_argument("--draw-seed", type=int, default=0, help="draws the configurations")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--summary", action="store_true", help="train nothing, write the summary")
    options = parser.parse_args()
    path = rows_path(options)
    done = {row["key"] for row in read_rows(path)}
    points = draw_configurations(options.configurations, options.draw_seed)
    jobs = [
        Job(name, number, params, seed)
        for name in options.settings
        for seed in options.seeds
        for number, params in enumerate(points)
    ]
    if not options.summary:
        waiting = [job for job in jobs if f"{job.name}:{job.number}:{job.seed}" not in done]
        failed = run_jobs(measure, waiting, options.workers, path)
        if failed:
            raise SystemExit(1)
    content = summary(options, read_rows(path))
    write_json(options.out, content)
    show(content)


if __name__ == "__main__":
    main()
