"""What a study was asked for: its manifest, one file of JSON, or one attribute in a shared database."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sctune.config import Task, TrialConfig
from sctune.errors import StudyError
from sctune.metrics.objective import Objective, find_objective
from sctune.search.space.definition import Space
from sctune.search.study.options import StudyOptions
from sctune.search.suggest.beliefs import Prior

FORMAT_VERSION = 1


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class SchedulerSpec(Frozen):
    name: str
    grace: int | None = None
    factor: int = 3
    stop_confidence: float | None = None


class SelectionSpec(Frozen):
    mode: str
    reason: str = ""


class DataSpec(Frozen):
    name: str
    digest: str
    counts: dict[str, int] = {}
    licence: str | None = None
    attribution: str | None = None


class CardNeed(Frozen):
    """What a class of configurations took of one kind of card where it was tried.

    method to batch_size: the class (`search.run.packing`). card, card_bytes: name and memory of the kind. peak_bytes:
    of a trial's tensors, None where the card is too small; context_bytes: what its process holds besides. step_seconds:
    of a step; epoch_seconds: of an epoch of one task, alone on the card.
    """

    method: str
    backbone: str
    image_size: int
    n_scales: int
    batch_size: int
    card: str
    card_bytes: int = Field(ge=1)
    peak_bytes: int | None = None
    context_bytes: int = 0
    step_seconds: float = 0.0
    epoch_seconds: float = 0.0


class ResourceSpec(Frozen):
    """Of a trial, as planned. packed: trials share GPUs by what each class of configurations needs, `needs`, and `gpus`
    is what a trial gets of whose class nothing is known.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    max_concurrent: int = 1
    asked_concurrent: int | None = None
    packed: bool = False
    needs: tuple[CardNeed, ...] = ()
    share: float = 0.0


class LittleGain(Frozen):
    """Why a launch ended before its trials were through: after so many, those left were expected to improve the best by
    gain, which is less than was asked for; in units of the objective.
    """

    after: int
    left: int
    gain: float
    asked: float


class Launch(Frozen):
    """One run of the driver; times are ISO 8601 in UTC; no end: it runs, or it was killed.

    seen: its last sign of life, some seconds old at most. host: where it ran. left_out: a line for each node that got
    no trials, or none any more. little_gain: it ended by that.
    """

    started: str
    ended: str | None = None
    reason: str | None = None
    seen: str | None = None
    host: str | None = None
    left_out: tuple[str, ...] = ()
    little_gain: LittleGain | None = None

    @property
    def seconds(self) -> float | None:
        """How long it took, up to its last sign of life where it has no end; None where there is none."""
        last = self.ended or self.seen
        if last is None:
            return None
        return (datetime.fromisoformat(last) - datetime.fromisoformat(self.started)).total_seconds()


class StudyManifest(StudyOptions, Frozen):
    """What was asked for; written once, and changed only by larger budgets, places that moved and the launches.

    config: the base TrialConfig tree, with the space's `set:` and the command line merged.
    storage_path: URI that all nodes see (checkpoints); storage_url: SQLAlchemy URL of the record, None: SQLite in
    the study's folder. No URL here holds a password. checkpoint_interval: seconds.
    replicates: parts of the tasks, one seed each, in which a trial is trained one after another; 1: on all at once.
    splits: task key -> digest of its lists of files. references: methods that train nothing and are run before the
    trials; a study of before has none. confirms: id of the study whose best trials this one trains anew. priors: whole,
    with what earlier studies told, which are not asked again. sure_trials: how many are run whatever they may gain,
    since a resume asked for them; min_gain: 0 or None: the study does not end by itself. owner, notes: None in studies
    of before, and where nothing was noted. resources.share: weight on a cluster, 0: the study does not share it.
    """

    format_version: Literal[1] = 1
    study_id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    name: str
    created: str
    space: dict[str, Any]
    profile: str
    config: dict[str, Any]
    tasks: tuple[Task, ...] = Field(min_length=1, strict=False)
    sampler: str
    scheduler: SchedulerSpec
    trials: int = Field(ge=1)
    replicates: int = Field(1, ge=1)
    sure_trials: int = 0
    selection: SelectionSpec
    splits: dict[str, str] = {}
    folds: int = 2
    data: DataSpec
    storage_path: str
    tracking_uri: str
    storage_url: str | None = None
    resources: ResourceSpec = ResourceSpec()
    versions: dict[str, str] = {}
    git_commit: str | None = None
    launches: tuple[Launch, ...] = ()
    references: tuple[str, ...] = ()
    confirms: str | None = None
    priors: tuple[Prior, ...] = ()

    @property
    def little_gain(self) -> LittleGain | None:
        """How the study ended by itself, as it stands now."""
        return self.launches[-1].little_gain if self.launches else None

    @property
    def tells_noise(self) -> bool:
        """Whether something of the study asks how well full runs are told apart."""
        return self.scheduler.stop_confidence is not None or bool(self.min_gain)

    def trial_config(self) -> TrialConfig:
        return TrialConfig.load(self.config)

    @property
    def replicate_epochs(self) -> int:
        """Epochs of a replicate of a trial that is not stopped."""
        return self.build_space().epochs

    @property
    def full_epochs(self) -> int:
        """Epochs of all its replicates."""
        return self.replicates * self.replicate_epochs

    def build_objective(self) -> Objective:
        """Raises ConfigError where it is another package's, which is not installed here."""
        return find_objective(self.objective)

    def build_space(self) -> Space:
        return Space.from_dict(self.space, self.trial_config())

    def config_of(self, params: Mapping[str, Any]) -> TrialConfig:
        """The complete configuration of a trial, from its parameters as results show them (with `variant`)."""
        return self.build_space().config(params)


def read_manifest(path: Path) -> StudyManifest:
    """From a file; raises StudyError in one line where there is none that this sctune can read."""
    try:
        return manifest_of(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as problem:
        raise StudyError(f"{path} cannot be read: {problem}") from None


def manifest_of(text: str, where: str) -> StudyManifest:
    """From JSON; where: what messages call it. Raises StudyError as `read_manifest` does."""
    try:
        version = json.loads(text).get("format_version")
        if version != FORMAT_VERSION:
            raise StudyError(f"{where} has format_version {version!r}, this sctune reads {FORMAT_VERSION}; update it")
        return StudyManifest.model_validate_json(text)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StudyError(f"{where} is damaged: {place}: {first['msg']}") from None
    except (ValueError, AttributeError, RecursionError) as problem:
        raise StudyError(f"{where} cannot be read: {problem}") from None
