"""What a configuration takes on a task, tried in a process of its own, whose memory is that of a trial."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sctune.config import Task, TrialConfig
from sctune.data.split import Split
from sctune.errors import SctuneError
from sctune.methods.room import HOST, ON_GPU
from sctune.metrics.objective import find_objective
from sctune.search.plan import costs
from sctune.search.space.definition import Values

if TYPE_CHECKING:
    from sctune.train.trainer import Trainer


class Probe(NamedTuple):
    """A point, tried on a task. Seconds of a step, of a scoring, and of scoring as the registered model does.

    step_seconds, scoring_seconds: means over the tasks of a trial, of which only some may find room for what they keep.
    final_seconds: of all selection and calibration images, which the end of a search scores once. weights_bytes: of
    the model; checkpoint_bytes: with what training needs besides. steps: of an epoch, None for budget.iterations.
    memory_bytes: the most that the process of a trial holds, with all its libraries; gpu_bytes: of its tensors on a
    GPU, 0 without.
    """

    step_seconds: float
    scoring_seconds: float
    final_seconds: float
    weights_bytes: int
    checkpoint_bytes: int
    steps: int | None = None
    memory_bytes: int = 0
    gpu_bytes: int = 0


@dataclass(frozen=True)
class Trial:
    """What is tried. objective: its name; threads: of a trial; tasks: that it trains on, of which one is tried."""

    config: TrialConfig
    task: Task
    split: Split
    objective: str
    threads: int
    tasks: int = 1


@dataclass(frozen=True)
class Timed:
    """A method at the point of it whose epochs take longest. steps: of an epoch; epochs: of a replicate; tasks: that
    one trains on; replicates: of a trial.
    """

    method: str
    point: Values
    probe: Probe
    epochs: int
    steps: int
    tasks: int
    replicates: int = 1

    @property
    def epoch_seconds(self) -> float:
        """Of all tasks, with scoring."""
        return (self.steps * self.probe.step_seconds + self.probe.scoring_seconds) * self.tasks

    @property
    def trial_seconds(self) -> float:
        """Of one replicate."""
        return costs.TRIAL_S + self.epochs * self.epoch_seconds

    @property
    def checkpoint_bytes(self) -> int:
        return self.probe.checkpoint_bytes * self.tasks * self.replicates

    def to_dict(self) -> dict[str, Any]:
        return {
            "timed": self.point,
            "step_seconds": self.probe.step_seconds,
            "epoch_seconds": self.epoch_seconds,
            "trial_seconds": self.trial_seconds,
            "memory_bytes": self.probe.memory_bytes,
            "gpu_bytes": self.probe.gpu_bytes,
            "checkpoint_bytes": self.checkpoint_bytes,
        }


def timed_at(config: TrialConfig, point: Values, probe: Probe, tasks: int, replicates: int = 1) -> Timed:
    """What a probe of a configuration says of its method; tasks: of a replicate."""
    steps = config.budget.iterations if probe.steps is None else probe.steps
    return Timed(config.method.name, point, probe, config.epochs, steps, tasks, replicates)


def probe_apart(trial: Trial) -> Probe:
    """A probe in a process of its own; raises SctuneError for what the trial raises, and where its process dies."""
    command = [sys.executable, "-m", "sctune.search.run.probe"]
    done = subprocess.run(command, input=pickle.dumps(trial), capture_output=True, check=False)
    if done.returncode == 0:
        told: Probe | SctuneError = pickle.loads(done.stdout)
        if isinstance(told, SctuneError):
            raise told
        return told
    if done.returncode < 0:
        raise SctuneError(
            f"its process was ended by signal {-done.returncode}; signal 9 comes from a system that ran out of memory"
        )
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    raise SctuneError(f"its process failed: {lines[-1] if lines else f'exit code {done.returncode}'}")


def probe(trial: Trial) -> Probe:
    """A probe in this process: a step, two scorings, and one as the registered model does.

    A step and two scorings more, without any room, where not all tasks of the trial will find some. Features of a
    density are found again then, as by tasks of one data set.
    """
    import torch

    torch.set_num_threads(trial.threads)
    trainer, step, steps, scoring = timed(trial)
    images = trainer.selection.images
    started = time.perf_counter()
    trainer.method.score(images)
    final = (time.perf_counter() - started) * (1 + len(trial.split.calibration) / len(images))
    weights = sum(value.nbytes for value in trainer.method.model_state().values())
    size = sum(value.nbytes for value in trainer.state()[0].values())
    host, on_gpu = beside(trainer, size, trial.tasks - 1)
    gpu = torch.cuda.max_memory_allocated(trainer.device) + on_gpu if trainer.device.type == "cuda" else 0
    memory = peak_bytes() + host
    # on a GPU too what is kept may lie in the machine's memory
    share = max(room.share_without(trial.tasks) for room in (HOST, ON_GPU))
    if share > 0:
        del trainer, images
        with HOST.shut(), ON_GPU.shut():
            _, step_anew, _, scoring_anew = timed(trial)
        step, scoring = step + share * (step_anew - step), scoring + share * (scoring_anew - scoring)
    return Probe(step, scoring, final, weights, size, steps, memory, gpu)


def timed(trial: Trial, cache: Path | None = None) -> tuple[Trainer, float, int, float]:
    """A trainer of the trial's task, seconds of a step of it, steps of an epoch, and seconds of a scoring.

    cache: folder of the decoded images, where it is not the usual one.
    """
    from sctune.train.trainer import Trainer

    objective = find_objective(trial.objective)
    trainer = Trainer(trial.config, trial.task, cache=cache, split=trial.split, objective=objective)
    step, steps = trainer.time_step()
    # the first scoring fills what is kept for later epochs
    trainer.selection.evaluate(trainer.method.scorer())
    started = time.perf_counter()
    trainer.selection.evaluate(trainer.method.scorer())
    return trainer, step, steps, time.perf_counter() - started


def beside(trainer: Trainer, state_bytes: int, others: int) -> tuple[int, int]:
    """Bytes of so many other tasks of a trial, in the machine's memory and on its GPU.

    Each has a state and selection images, one at a time makes a step, and what they keep of images has a room together.
    """
    selection = trainer.selection
    images = selection.images.nbytes + sum(made.nbytes for made in selection.proxy.values())
    host, on_gpu = images * others + HOST.for_more(others), ON_GPU.for_more(others)
    states = state_bytes * others
    return (host, on_gpu + states) if trainer.device.type == "cuda" else (host + states, on_gpu)


def peak_bytes() -> int:
    """The most memory that this process has held since its program was started."""
    status = Path("/proc/self/status")
    if status.is_file():
        # the kernel's ru_maxrss holds on to what the process was forked from
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if line is not None:
            return int(line.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _main() -> None:
    # by the name that its reader knows: here this file is __main__
    from sctune.search.run import probe as module

    with os.fdopen(os.dup(1), "wb") as answer:
        # what libraries print must not come between
        os.dup2(2, 1)
        trial = pickle.load(sys.stdin.buffer)
        told: Any
        try:
            told = module.probe(trial)
        except SctuneError as problem:
            told = problem
        answer.write(pickle.dumps(told))


if __name__ == "__main__":
    _main()
