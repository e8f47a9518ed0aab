"""The study that trains the candidates again: a grid over them, on seeds that the search has never seen."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from sctune.config import Task
from sctune.confirm.candidates import Candidate, variant_space
from sctune.data.split import Split, split_for
from sctune.errors import DataError, StudyError
from sctune.search.database import check_free
from sctune.search.manifest import SchedulerSpec, StudyManifest
from sctune.search.plan import Plan, git_commit, study_splits
from sctune.search.study import Study, list_studies, valid_name
from sctune.tracking.server import check_tracking
from sctune.trial.trainable import package_versions

FIRST_SEED = 1001


def fresh_seeds(used: Iterable[int], count: int) -> tuple[int, ...]:
    """The first `count` numbers from 1001 on that are not among the used ones."""
    taken = set(used)
    return tuple(itertools.islice((number for number in itertools.count(FIRST_SEED) if number not in taken), count))


def confirm_name(study: str, number: int) -> str:
    """Name of a study's confirmation; number: 1 for the first."""
    suffix = "-confirm" if number == 1 else f"-confirm-{number}"
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
    before = study_splits(manifest)
    space = variant_space(manifest, chosen)
    splits: dict[str, Split] = {}
    tasks: list[Task] = []
    for task in _seedless(manifest.tasks):
        for seed in seeds:
            part = task.model_copy(update={"seed": seed})
            split = split_for(space.base.for_task(part), part)
            _check_pools(part, split, before)
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
        "scheduler": SchedulerSpec(name="none"),
        "trials": len(chosen),
        "splits": {key: split.digest for key, split in splits.items()},
        "storage_path": sibling(manifest.storage_path, name),
        "keep_best": len(chosen),
        "time_budget_s": None,
        "versions": package_versions(),
        "git_commit": git_commit(),
        "launches": (),
        "confirms": manifest.study_id,
    }
    made = manifest.model_copy(update=changes)
    lines = tuple(dict.fromkeys(line for split in splits.values() for line in split.warnings))
    return Plan(made, space, splits, root, (), lines)


def sibling(storage_path: str, name: str) -> str:
    """The place of a study's checkpoints beside those of another."""
    place, mark, query = storage_path.partition("?")
    return f"{place.rstrip('/').rpartition('/')[0]}/{name}{mark}{query}"


def _seedless(tasks: Iterable[Task]) -> list[Task]:
    """The tasks, one for all their seeds."""
    return list({task.model_copy(update={"seed": 0}).key: task for task in tasks}.values())


def _check_pools(task: Task, split: Split, before: dict[str, Split]) -> None:
    """A new seed must never read a test image of the search, nor test on one that the search has read."""
    tests = {(str(old.root), file.path) for old in before.values() for file in old.test}
    read = {(str(old.root), file.path) for old in before.values() for file in old.development}
    root = str(split.root)
    mixed = [file.path for file in split.development if (root, file.path) in tests]
    # categories of one data set may lie below one another's folder, so only the same task's lists can clash
    mixed += [file.path for file in split.test if (root, file.path) in read]
    if mixed:
        raise DataError(f"task {task.key}: {mixed[0]} would change between development and test pool")
