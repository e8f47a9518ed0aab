"""The confirmed model, taken from the confirmation's checkpoints, with everything that its folder tells about it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass, replace

from sctune.confirm.results import ChosenModel, Confirmation, Ranked, Tested, confirm_folder
from sctune.confirm.scoring import read_scores, trained_model
from sctune.deploy.build import model_parts
from sctune.deploy.card import CardFacts, model_card
from sctune.deploy.model import Model, ModelParts
from sctune.deploy.speed import Speed, measure
from sctune.errors import StudyError
from sctune.metrics.objective import find_objective
from sctune.metrics.statistics import Estimate
from sctune.metrics.threshold import escape_rate, false_alarm_rate
from sctune.search.study.leaderboard import leaderboard
from sctune.search.study.record import Record
from sctune.search.study.splits import checked_splits
from sctune.search.study.study import Study
from sctune.train.trainer import Trainer

HELD_OUT_IMAGES = 32
"""Images that parity and speed are measured with."""


@dataclass(frozen=True)
class Built:
    """The confirmed model as it is registered. images: encoded held-out images for parity and speed."""

    study: Study
    trainer: Trainer
    parts: ModelParts
    images: tuple[bytes, ...]


@dataclass(frozen=True)
class Tried:
    """A configuration that the confirmation tested. estimate: on the test, over seeds.

    models: one for each category and class. gap: paired difference to another tested one, whose name is `against`, None
    where there is no other.
    """

    one: Ranked
    estimate: Estimate
    models: tuple[ChosenModel, ...]
    against: str | None
    gap: Estimate | None


def tried(found: Confirmation, test: Tested, name: str | None) -> Tried:
    """What the confirmation tested under this name, None: the winner; StudyError where it did not test it."""
    winner = found.winner
    if name is None or name == winner.name:
        return Tried(winner, test.winner, test.models, test.against, test.difference)
    rivals = {one.name: one for one in test.rivals}
    if name not in rivals:
        names = ", ".join([winner.name, *rivals])
        raise StudyError(
            f"--candidate {name!r}: the confirmation did not score it on the test images, so that nothing unseen is "
            f"known of it; it scored {names}"
        )
    one = rivals[name]
    turned = one.difference
    seeds = {seed: -value for seed, value in turned.seeds.items()}
    gap = replace(turned, value=-turned.value, low=-turned.high, high=-turned.low, seeds=seeds)
    return Tried(found.ranked(name), one.estimate, one.models, winner.name, gap)


def build(study: Study, found: Confirmation, test: Tested, it: Tried, chosen: ChosenModel, rule: float | str) -> Built:
    """Everything about one of its models; rule: as in deploy/build.model_parts."""
    trained = Study.open(study.folder.parent, found.confirm_study, study.storage)
    with closing(Record(trained.record_url, trained.name)) as record:
        rows = {str(row.params["variant"]): row for row in leaderboard(record.load(), trained.objective)}
    task = next(task for task in trained.manifest.tasks if task.key == chosen.task)
    split = checked_splits(trained.manifest, trained.folder)[task.key]
    trainer = trained_model(trained, rows[it.one.name], task, split)
    manifest = study.manifest
    meta = {
        "study": study.name,
        "trial": it.one.trial if it.one.trial is not None else it.one.name,
        "confirm_study": trained.name,
        "task": task.key,
        "seed": task.seed,
        study.objective.metric: chosen.selection,
        "test_auroc": chosen.test_auroc,
        "test_auroc_seeds": asdict(it.estimate),
        "licence": manifest.data.licence,
        "attribution": manifest.data.attribution,
    }
    parts = model_parts(trainer, meta, rule)
    images = tuple((split.root / path).read_bytes() for path in _of_both_classes(trainer))
    speed = measure(Model(trainer.method, trainer.config, parts), images)
    card = model_card(parts, _facts(study, found, test, it, chosen, trainer, parts, speed))
    return Built(study, trainer, replace(parts, card=card), images)


def _of_both_classes(trainer: Trainer) -> list[str]:
    """Held-out images, as many of each class as there are, up to half of the number each."""
    paths, labels = trainer.selection.paths, trainer.selection.labels
    chosen = [[path for path, of in zip(paths, labels, strict=True) if of == label] for label in (0, 1)]
    half = HELD_OUT_IMAGES // 2
    normal, anomalous = chosen[0][: HELD_OUT_IMAGES - min(half, len(chosen[1]))], chosen[1][:half]
    return [*normal, *anomalous]


def _facts(
    study: Study,
    found: Confirmation,
    test: Tested,
    it: Tried,
    chosen: ChosenModel,
    trainer: Trainer,
    parts: ModelParts,
    speed: Speed,
) -> CardFacts:
    manifest, mean = study.manifest, it.estimate
    normal, anomalous = test.images
    results = {
        "test AUROC of this model": f"{chosen.test_auroc:.4f} ({normal} normal, {anomalous} anomalous images)",
        f"test AUROC over {len(mean.seeds)} seeds": f"{mean.value:.4f} (95 %: {mean.low:.4f} to {mean.high:.4f})",
        f"{_objective(found)} of this model": f"{chosen.selection:.4f}, by which its seed was chosen",
    }
    results |= _rates(study, chosen, parts)
    if it.gap is not None:
        gap = it.gap
        results[f"against {it.against}"] = f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f}), paired"
    return CardFacts(
        config=trainer.config,
        data=manifest.data.model_dump(),
        counts=trainer.split.summary(),
        split={"split": trainer.split.digest, "partition seed": manifest.partition_seed},
        results=results,
        extra=(_choice(study, found, it),),
        speed=speed.line(),
    )


def _choice(study: Study, found: Confirmation, it: Tried) -> str:
    of = f"{len(found.ranking)} configurations on seeds {', '.join(map(str, found.seeds))}, by the selection images"
    if it.one.name == found.winner.name:
        return f"{it.one.name} of study {study.name}: best of {of} ({found.mode}); the test decided nothing"
    place = 1 + list(found.ranking).index(it.one)
    return (
        f"{it.one.name} of study {study.name}: asked for by name after the test was opened; number {place} of {of} "
        f"({found.mode}), where {found.winner.name} was the best"
    )


def _objective(found: Confirmation) -> str:
    figure = f"selection {find_objective(found.objective).label}"
    return "proxy objective (pseudo anomalies)" if found.mode == "proxy" else figure


def _rates(study: Study, chosen: ChosenModel, parts: ModelParts) -> dict[str, str]:
    """Escapes and false alarms of the test images at the threshold, from the scores of the one look."""
    if parts.threshold is None:
        return {}
    file = confirm_folder(study) / chosen.scores
    if not file.is_file():  # confirmed on another machine
        return {}
    _, labels, scores = read_scores(file)
    return {
        "escapes in the test": str(escape_rate(labels, scores, parts.threshold.value)),
        "false alarms in the test": str(false_alarm_rate(labels, scores, parts.threshold.value)),
    }
