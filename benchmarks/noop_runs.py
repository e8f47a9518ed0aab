"""Whole searches over no-op trials: sctune, bare Ray Tune, and Ray Tune with Ray's own Optuna and MLflow parts.

All arms run the same trials in 2 slots with reused actors, no early stopping, no default loggers and no
snapshots. Import after sctune's `prepare_environment`, since Ray reads its switches once.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from urllib.error import URLError
from urllib.request import urlopen

from noop_trials import EPOCHS, N_SCORES, NoopTrial, StudyNoopTrial
from ray import tune
from ray._private.dict import flatten_dict
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.execution.tune_controller import TuneController
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console

from sctune.data.split import Split
from sctune.paths import studies_folder
from sctune.report import OBJECTIVE
from sctune.search.cluster.connection import Resources
from sctune.search.cluster.resources import TrialResources
from sctune.search.plan.options import SearchOptions
from sctune.search.plan.plan import make_plan
from sctune.search.run import driver, launch
from sctune.search.run.controller import TrialController
from sctune.search.run.searcher import StudySearcher
from sctune.search.space.definition import Space
from sctune.search.study.result import StudyResult, study_result
from sctune.search.study.study import Study
from sctune.tracking.callback import TrackingCallback
from sctune.tracking.server import ui_command, ui_environment
from sctune.tracking.writer import Writer
from sctune.trial import trainable

Drive: TypeAlias = Callable[..., None]
"""In the place of `launch.tune_trials`, with its arguments."""

SLOTS = 2
DRAIN_S = 600.0
"""How long a search's end waits for MLflow; 0: not at all."""

SPACE = {"augment.threshold": (0.1, 0.9), "model.patch_count": (2, 6)}
"""The ranges of the shipped space `threshold_patch`, for the arms of Ray."""


@dataclass
class Clock:
    """What a search's controller did: one entry per report; seconds of time.perf_counter().

    workers: address and process id of who sent it. arrived, handled: when a report reached the controller, and when
    the controller was done with it. busy: CPU seconds of the controller's thread by then. memory: resident bytes of
    the driver, noted now and then. drain: what MLflow needed for the rest after the search (`undelivered` events).
    """

    workers: list[tuple[str, int]] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)
    handled: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    undelivered: int = 0
    drain: float = 0.0

    @property
    def searching(self) -> float:
        """Seconds from the first report to the end of the last trial."""
        return self.handled[-1] - self.arrived[0]

    @property
    def thread(self) -> float:
        """CPU seconds of the controller's thread in that time."""
        return self.busy[-1] - self.busy[0]

    def note(self) -> None:
        """A report has been handled."""
        self.handled.append(time.perf_counter())
        self.busy.append(time.thread_time())
        if len(self.handled) % 80 == 1:
            self.memory.append(resident_bytes())

    def check(self, trials: int) -> None:
        if len(self.handled) != trials * EPOCHS:
            raise SystemExit(f"{len(self.handled)} reports of {trials} trials with {EPOCHS} each; not measured")


_clocks: list[Clock] = []


def watch_controller(trial: type[NoopTrial] = StudyNoopTrial) -> None:
    """Note the time of every report in Ray's controller, whichever arm it serves, for the rest of this process.

    trial: what sctune's own arm trains.
    """
    process = TuneController._process_trial_result

    def timed(self: TuneController, trial: Any, result: dict[str, Any]) -> None:
        clock = _clocks[-1]
        clock.arrived.append(time.perf_counter())
        clock.workers.append((result["node_ip"], result["pid"]))
        process(self, trial, result)
        clock.note()

    TuneController._process_trial_result = timed
    # what the driver hands to Ray, and what follows the last trial: pictures and model are not the search's speed
    trainable.SaliencyCutTrainable = trial  # type: ignore[assignment, misc]
    launch.finish = _finish


def run_sctune(trials: int, tracking_uri: str | None, name: str, sampler: str = "random", slots: int = SLOTS) -> Clock:
    """A study from plan to result through `run_search`, tracked in MLflow; None: in a local store."""
    clock = _new_clock()
    options = _options(trials, tracking_uri, name, sampler, slots)
    driver.run_search(options, Console(file=io.StringIO()))
    record = Study.open(studies_folder(), name).record
    rows = record.load()
    record.close()
    states = {row.state.name for row in rows}
    if states != {"COMPLETE"} or len(rows) != trials or any(len(row.intermediate_values) != EPOCHS for row in rows):
        raise SystemExit(f"{name}: {len(rows)} trials ended as {sorted(states)}; not measured")
    clock.check(trials)
    return clock


def _options(
    trials: int, tracking_uri: str | None, name: str, sampler: str, slots: int = SLOTS, storage: str | None = None
) -> SearchOptions:
    return SearchOptions(
        name=name,
        profile="cpu",
        trials=trials,
        sampler=sampler,
        scheduler="none",
        overrides={"budget.epochs": EPOCHS, "data.selection_limit": N_SCORES // 2},
        max_concurrent=slots,
        storage=storage,
        tracking_uri=tracking_uri,
        # runs of their own, before the first trial
        references=False,
        # looked at before each trial, and never so little
        min_gain=1e-9,
    )


def run_direct(trials: int) -> Clock:
    """A study through a whole `Launch` with a loop in the place of Ray; tracked in a local MLflow store."""
    clock = _new_clock()
    launch.finish = _finish
    run_without_ray(_options(trials, None, "direct", "random"), _drive)
    clock.check(trials)
    return clock


def run_stream(
    trials: int, slots: int, sampler: str, drive: Drive, end: Any, storage: str | None, tracking_uri: str | None
) -> None:
    """A study as of `run_direct` with many slots; `drive` is in the place of Ray, `end` in that of `finish`.

    storage: URL of the record's database; None: SQLite beside the study.
    """
    launch.finish = end
    run_without_ray(_options(trials, tracking_uri, "stream", sampler, slots, storage), drive)


def run_without_ray(options: SearchOptions, drive: Drive) -> None:
    launch.largest_resources = lambda _left_out=(): TrialResources(1.0, 0.0)
    launch.tune_trials = drive
    plan = make_plan(options, has_gpu=False)
    study = Study.create(plan.study_root, plan.manifest)
    slots = options.max_concurrent or SLOTS
    resources = Resources(slots, 0.0, 1.0, 0.0, slots, 1)
    console = Console(file=io.StringIO())
    launch.RunningLaunch(study, plan.space, plan.splits, resources, None, console, time.monotonic()).run()


def _drive(
    study: Study,
    space: Space,
    splits: dict[str, Split],
    resources: Resources,
    controller: TrialController,
    published: object = None,
) -> None:
    """SLOTS trials at a time, in turns; every report reaches the searcher as Ray hands it over."""
    searcher = StudySearcher(controller)
    clock = _clocks[-1]
    for first in range(0, study.manifest.trials, SLOTS):
        trials = {}
        for slot in range(SLOTS):
            config = searcher.suggest(f"{first + slot}")
            if isinstance(config, dict):
                trials[f"{first + slot}"] = StudyNoopTrial(config)
        for epoch in range(1, EPOCHS + 1):
            for name, trial in trials.items():
                result = flatten_dict(trial.step())
                clock.arrived.append(time.perf_counter())
                tell = searcher.on_trial_result if epoch < EPOCHS else searcher.on_trial_complete
                tell(name, result)
                clock.note()


def run_bare(trials: int, folder: Path) -> Clock:
    """Ray Tune alone: random sampling, nothing logged. Trials are made one by one, as in the other arms."""
    space = {
        "augment.threshold": tune.uniform(*SPACE["augment.threshold"]),
        "model.patch_count": tune.randint(*(int(end) for end in SPACE["model.patch_count"])),
    }
    config = tune.TuneConfig(num_samples=trials, max_concurrent_trials=SLOTS, reuse_actors=True)
    return _run_ray(trials, folder, config, space)


def run_ray_parts(trials: int, folder: Path, tracking_uri: str) -> Clock:
    """Ray Tune with Ray's OptunaSearch (random) and Ray's MLflowLoggerCallback, as its documentation shows them."""
    import optuna

    distributions = {
        "augment.threshold": optuna.distributions.FloatDistribution(*SPACE["augment.threshold"]),
        "model.patch_count": optuna.distributions.IntDistribution(*(int(end) for end in SPACE["model.patch_count"])),
    }
    search = OptunaSearch(distributions, metric=OBJECTIVE, mode="max", sampler=optuna.samplers.RandomSampler(seed=0))
    config = tune.TuneConfig(search_alg=search, num_samples=trials, max_concurrent_trials=SLOTS, reuse_actors=True)
    callback = MLflowLoggerCallback(tracking_uri=tracking_uri, experiment_name=folder.name)
    return _run_ray(trials, folder, config, {}, [callback])


def _run_ray(
    trials: int,
    folder: Path,
    config: tune.TuneConfig,
    space: dict[str, Any],
    callbacks: list[tune.Callback] | None = None,
) -> Clock:
    clock = _new_clock()
    tuner = tune.Tuner(
        tune.with_resources(NoopTrial, {"cpu": 1}),
        param_space=space,
        tune_config=config,
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            callbacks=callbacks,
            verbose=0,
        ),
    )
    tuner.fit()
    shutil.rmtree(folder, ignore_errors=True)
    clock.check(trials)
    return clock


def _new_clock() -> Clock:
    _clocks.append(Clock())
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    return _clocks[-1]


def _finish(
    study: Study,
    splits: dict[str, Split],
    controller: TrialController,
    tracking: TrackingCallback,
    writer: Writer,
    seconds: float,
    hasty: bool = False,
) -> StudyResult:
    """The end of a launch without pictures and model: only the rest of the tracking, timed."""
    clock = _clocks[-1]
    tracking.on_study_end("FINISHED", {})
    clock.undelivered = writer.undelivered
    begun = time.perf_counter()
    left = writer.drain(DRAIN_S)
    clock.drain = time.perf_counter() - begun
    if left and DRAIN_S:
        raise SystemExit(f"{study.name}: {left} events did not reach MLflow within {DRAIN_S:.0f} s; not measured")
    return study_result(study, study.record.load(), None, seconds, tracking_uri="")


def resident_bytes() -> int:
    """Memory of this process, the driver."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """A real MLflow server with one worker on SQLite, on the loopback address; gives its URI."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store, uri = f"sqlite:///{folder / 'server.db'}", f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            ui_command(store, port), env=ui_environment(store), stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_for(f"{uri}/health", process)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            with urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (URLError, OSError):
            time.sleep(0.2)
    raise SystemExit("the MLflow server did not start")
