"""The study that trains the candidates again: a grid over them, on seeds that the search has never seen."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from sctune.config import Task, TrialConfig
from sctune.confirm.candidates import Candidate, variant_space
from sctune.data.split import Split, split_for
from sctune.errors import DataError, StudyError
from sctune.search.plan.plan import Plan, git_commit
from sctune.search.study.content import content_digest
from sctune.search.study.database import check_free
from sctune.search.study.manifest import SchedulerSpec, StudyManifest
from sctune.search.study.splits import checked_splits
from sctune.search.study.study import Study, list_studies, valid_name
from sctune.tracking.server import check_tracking
from sctune.trial.building import package_versions
from sctune.trial.storage import sibling

FIRST_SEED = 1001


def fresh_seeds(used: Iterable[int], count: int) -> tuple[int, ...]:
    """The first `count` numbers from 1001 on that are not among the used ones."""
    taken = set(used)
    return tuple(itertools.islice((number for number in itertools.count(FIRST_SEED) if number not in taken), count))


def confirm_name(study: str, number: int) -> str:
    """Name of a study's confirmation; number: 1 for the first."""
    suffix = "-confirm" if number == 1 else f"-confirm-{number}"
    if len(study) + len(suffix) > 80:
        # two long names that differ at their ends must not meet
        suffix = f"-{hashlib.sha256(study.encode()).hexdigest()[:6]}{suffix}"
    return valid_name(f"{study[: 80 - len(suffix)]}{suffix}")


def confirm_plan(study: Study, name: str, chosen: Sequence[Candidate], seeds: Sequence[int]) -> Plan:
    """A plan for the driver, with all checks; raises SctuneError with one line.

    The images must be those that the study began with; the pools are the study's own, and every new split is drawn
    inside its development pool.
    """
    manifest = study.manifest
    root = study.folder.parent
    if name in list_studies(root) or (root / name).exists():
        raise StudyError(f"study {name!r} exists in {root}; remove it with `sctune delete {name}`")
    if manifest.storage_url is not None:
        check_free(study.storage or manifest.storage_url, name)
    check_tracking(manifest.tracking_uri)
    before = checked_splits(manifest, study.folder)
    space = variant_space(manifest, chosen)
    splits: dict[str, Split] = {}
    tasks: list[Task] = []
    notes: list[str] = []
    for task in _seedless(manifest.tasks):
        for seed in seeds:
            for part, split in _seeded(task, seed, space.base, manifest.folds):
                _check_test(part, split)
                notes += _check_pools(part, split, before, manifest.tasks)
                tasks.append(part)
                splits[part.key] = split
    changes = {
        "study_id": StudyManifest.model_fields["study_id"].get_default(call_default_factory=True),
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "space": space.to_dict(),
        "config": space.base.model_dump(),
        "tasks": tuple(tasks),
        "sampler": "grid",
        "priors": (),
        "scheduler": SchedulerSpec(name="none"),
        "trials": len(chosen),
        "data": manifest.data.model_copy(update={"digest": content_digest(splits)}),
        "splits": {key: split.digest for key, split in splits.items()},
        "storage_path": sibling(manifest.storage_path, name),
        "look_behind": None,
        "replicates": 1,
        "audit": 0.0,
        "min_gain": 0.0,
        "sure_trials": 0,
        "keep_best": len(chosen),
        "time_budget_s": None,
        "versions": package_versions(),
        "git_commit": git_commit(),
        "launches": (),
        # candidates themselves
        "references": (),
        "confirms": manifest.study_id,
    }
    made = manifest.model_copy(update=changes)
    lines = tuple(dict.fromkeys([*notes, *(line for split in splits.values() for line in split.warnings)]))
    return Plan(made, space, splits, root, (), lines)


def _seedless(tasks: Iterable[Task]) -> list[Task]:
    """The tasks, one for all their seeds and folds."""
    return list({_subject(task): task for task in tasks}.values())


def _subject(task: Task) -> tuple[str, str | None, str, str | None]:
    return task.source, task.category, task.setting, task.known_class


def _seeded(task: Task, seed: int, config: TrialConfig, folds: int) -> Iterator[tuple[Task, Split]]:
    """A task on another seed, with its split; in mode `seen` one for each fold that this seed's anomalies give."""
    whole = task.model_copy(update={"seed": seed, "fold": None, "folds": folds if task.folds else None})
    split = split_for(config.for_task(whole), whole)
    if not split.folds:
        plain = whole.model_copy(update={"folds": None})
        yield plain, split_for(config.for_task(plain), plain)
    for fold in range(split.folds):
        part = whole.model_copy(update={"fold": fold, "folds": split.folds})
        yield part, split_for(config.for_task(part), part)


def _check_test(task: Task, split: Split) -> None:
    """Before anything is trained: without both classes a test says nothing."""
    if {file.label for file in split.test} != {0, 1}:
        lacking = "anomalous" if not any(file.label for file in split.test) else "normal"
        raise StudyError(
            f"task {task.key} has no {lacking} test image, so that nothing can be confirmed; add some, or serve the "
            "search's own model (models:/STUDY@candidate), whose numbers are those of the search"
        )


def _check_pools(task: Task, split: Split, before: dict[str, Split], tasks: Sequence[Task]) -> list[str]:
    """A new seed must never read a test image of the search's same task, nor test on one that it has read.

    Gives a note where other tasks of the study have read them, as classes of the hard setting do.
    """
    root = str(split.root)
    same = [before[other.key] for other in tasks if _subject(other) == _subject(task)]
    tests = {(str(old.root), file.path) for old in same for file in old.test}
    read = {(str(old.root), file.path) for old in same for file in old.development}
    mixed = [file.path for file in split.development if (root, file.path) in tests]
    mixed += [file.path for file in split.test if (root, file.path) in read]
    if mixed:
        raise DataError(f"task {task.key}: {mixed[0]} would change between development and test pool")
    others = {(str(old.root), file.path) for old in before.values() for file in old.development}
    shared = sum((root, file.path) in others for file in split.test)
    if not shared:
        return []
    return [
        f"{shared} test images of {task.category or ''}{task.known_class or ''} are development images of the study's "
        "other tasks, by which the configuration was chosen too: its test numbers are somewhat too good"
    ]
