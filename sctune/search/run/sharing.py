"""From what was measured to the resources of a launch: how many trials run at a time where they share GPUs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from rich.console import Console

from sctune.data.split import Split
from sctune.search.cluster.connection import Resources, room_for
from sctune.search.cluster.resources import TrialResources
from sctune.search.run.measuring import IN_RAY, Trials, Workers, check_auto, largest_points, measure
from sctune.search.run.packing import Packing
from sctune.search.space.definition import Space
from sctune.search.study.manifest import CardNeed, ResourceSpec, StudyManifest


def shared(
    manifest: StudyManifest,
    space: Space,
    splits: Mapping[str, Split],
    spec: ResourceSpec,
    resources: Resources,
    max_concurrent: int | None,
    console: Console | None,
    workers: Workers = IN_RAY,
) -> tuple[Resources, ResourceSpec, tuple[str, ...]]:
    """Resources of trials that share GPUs, what the manifest says of them, and lines for the user.

    spec: what is known already; only what it lacks is tried. resources: with a whole GPU each. Raises ClusterError
    where no node has a GPU, or trials are to use none.
    """
    check_auto(space.base, resources.cluster_gpus)
    images = max(len(split.development) for split in splits.values())
    tasks = len(manifest.tasks) // manifest.replicates
    (console or Console(stderr=True)).print(
        f"--gpus-per-trial auto: trying {len(largest_points(space))} class(es) of configurations on a GPU of each "
        "kind, where they are not known yet",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    measured = measure(Trials(space, tasks, images, manifest.objective), resources, spec.needs, workers)
    resources = replace(resources, packed=True, cards=measured.cards)
    spec = spec.model_copy(update={"gpus": resources.gpus, "packed": True, "needs": measured.needs})
    room = room_for(resources.cpus, packing_of(spec, resources).least, resources.left_out)
    resources = replace(resources, concurrent=max(1, min(room, max_concurrent or room)))
    return resources, spec.model_copy(update={"max_concurrent": resources.concurrent}), measured.lines


def packing_of(
    spec: ResourceSpec,
    resources: Resources,
    on_need: Callable[[CardNeed], None] = lambda _need: None,
    alive: Callable[[], Collection[str]] | None = None,
) -> Packing:
    """How the trials of a launch share GPUs; on_need, alive: as `Packing` has them."""
    whole = TrialResources(resources.cpus, resources.gpus)
    return Packing(whole, spec.needs, resources.cards, resources.per_card, on_need, alive)
