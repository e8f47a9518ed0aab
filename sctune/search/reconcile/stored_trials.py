"""The folders of checkpoints that a study has, and the removal of those that should not be there."""

from __future__ import annotations

from collections.abc import Sequence

from pyarrow import fs

from sctune.search.reconcile.record_check import StoredTrial, compare_checkpoints
from sctune.tracking.callback import PastTrial
from sctune.trial.checkpoint import TrialStore
from sctune.trial.storage import answering, open_storage


def list_trials(storage: str) -> list[StoredTrial]:
    """Every trial with files under a storage URI, by number; raises CheckpointError for one that cannot be used.

    StorageError where it does not answer.
    """
    system, root = open_storage(storage)
    with answering(storage):
        folders = system.get_file_info(fs.FileSelector(f"{root}/trials", allow_not_found=True))
        numbers = sorted(int(info.base_name) for info in folders if info.base_name.isdecimal())
        trials = [_stored(storage, number) for number in numbers]
    return [trial for trial in trials if trial.epochs or trial.leftovers]


def remove_strays(storage: str, trials: Sequence[PastTrial], keep_best: int) -> int:
    """Remove checkpoints of losers and half-written ones; gives how many trials had some. For a study without workers.

    A folder that cannot be removed stays, and the next check names it.
    """
    stored = {one.number: one for one in list_trials(storage)}
    found = compare_checkpoints(trials, list(stored.values()), keep_best, limited=True)
    removed = 0
    for one in found:
        if one.excess is not None and isinstance(one.trial, int):
            removed += _remove(storage, stored[one.trial], everything=one.excess == "all")
    return removed


def _stored(storage: str, number: int) -> StoredTrial:
    store = TrialStore(storage, number)
    complete = store.names()
    whole = {name.folder for name in complete}
    entries = store.system.get_file_info(fs.FileSelector(store.root, allow_not_found=True))
    leftovers = sorted(
        info.base_name
        for info in entries
        if info.type == fs.FileType.Directory
        and info.base_name.lstrip(".").startswith("epoch-")
        and info.base_name not in whole
    )
    return StoredTrial(number, tuple(name.epoch for name in complete), tuple(leftovers))


def _remove(storage: str, trial: StoredTrial, everything: bool) -> bool:
    store = TrialStore(storage, trial.number)
    try:
        if everything:
            store.clear()
        else:
            for name in trial.leftovers:
                store.system.delete_dir(f"{store.root}/{name}")
    except OSError:
        return False
    return True
