"""The splits of a stored study, made anew from its data."""

from __future__ import annotations

from pathlib import Path

from sctune.data.decode import Decoding
from sctune.data.images import ImageCache
from sctune.data.split import Split, selection_subset, split_for
from sctune.errors import ChangedDataError
from sctune.paths import cache_folder
from sctune.search.study.content import check_content
from sctune.search.study.manifest import StudyManifest


def study_splits(manifest: StudyManifest) -> dict[str, Split]:
    """Task key -> split of a stored study, made anew from the data; raises DataError where the data are gone.

    ChangedDataError where the lists of files are others; what the files hold is not looked at.
    """
    config = manifest.trial_config()
    splits = {task.key: split_for(config.for_task(task), task) for task in manifest.tasks}
    for key, split in splits.items():
        if split.digest != manifest.splits.get(key, split.digest):
            raise ChangedDataError(
                f"the images of {manifest.data.name} (task {key}) are not those that study {manifest.name} began with; "
                "put them back, or start a new study"
            )
    return splits


def checked_splits(manifest: StudyManifest, folder: Path) -> dict[str, Split]:
    """As `study_splits`, with what the images hold compared too; folder: of the study.

    For all that trains or scores. Raises ChangedDataError, which names the first image that was changed.
    """
    splits = study_splits(manifest)
    check_content(manifest, splits, folder)
    return splits


def selection_labels(manifest: StudyManifest, splits: dict[str, Split]) -> dict[str, list[int]]:
    """Task key -> labels of the images scored after each epoch, in the order of the stored scores."""
    data = manifest.trial_config().data
    labels = {}
    for key, split in splits.items():
        files = selection_subset(split, data.selection_limit, data.partition_seed)
        if data.skip_corrupt:
            index = (
                ImageCache(cache_folder())
                .array(split.root, [file.path for file in split.development], Decoding.of(data), True, split.content)
                .index
            )
            files = tuple(file for file in files if file.path in index)
        labels[key] = [file.label for file in files]
    return labels
