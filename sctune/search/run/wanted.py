"""What a study wants of the nodes that it runs on."""

from __future__ import annotations

from collections.abc import Mapping

from sctune.backbones.weights import IMAGENET
from sctune.data.place import needs_of
from sctune.data.split import Split
from sctune.paths import cache_folder
from sctune.search.cluster.facts import all_versions
from sctune.search.cluster.wanted import FileSet, Wanted, Weights
from sctune.search.plan.plan import weights_digests
from sctune.search.space.definition import Space
from sctune.search.study.content import file_sets
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.options import NEVER


def wanted_by(manifest: StudyManifest, splits: Mapping[str, Split], gpus: float | None) -> Wanted:
    """Of a study that is planned or goes on; gpus: of a trial, None: one where there are any.

    Raises DataError or WeightsError where this machine lacks something itself.
    """
    config = manifest.trial_config()
    return Wanted(
        storage=manifest.storage_path,
        # the study's own packages are compared, which may have been fewer when it began
        versions={**all_versions(), **manifest.versions},
        needs=needs_of(splits.values(), cache_folder(), config.data.image_size),
        data=image_sets(splits),
        weights=backbone_weights(manifest.build_space()),
        cpus=manifest.resources.cpus,
        gpus=gpus,
        on_gpus=config.runtime.device != "cpu",
        published=manifest.publish != NEVER,
    )


def image_sets(splits: Mapping[str, Split]) -> tuple[FileSet, ...]:
    """The development images of all tasks, each set once; those that this machine has itself."""
    own = {name: split for name, split in splits.items() if split.content is None}
    return tuple(FileSet.here(root, paths) for root, paths in file_sets(own))


def backbone_weights(space: Space) -> dict[str, Weights]:
    """Backbone -> the file that its trials load; those with random weights have none."""
    setting = space.base.model.weights
    file = None if setting == IMAGENET else setting
    return {name: Weights(file, sha256) for name, sha256 in weights_digests(space).items()}
