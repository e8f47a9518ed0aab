"""The confirmed model, taken from the confirmation's checkpoints, with everything that its folder tells about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from sctune.config import TrialConfig
from sctune.confirm.final import Final
from sctune.confirm.forms import Confirmed, final_method
from sctune.confirm.ranking import final_values, trained_rows
from sctune.confirm.results import ChosenModel, Confirmation, Ranked, Tested, confirm_folder, gap_text
from sctune.confirm.scoring import read_scores, trained_model
from sctune.deploy.build import model_parts
from sctune.deploy.card import CardFacts, model_card
from sctune.deploy.model import Model, ModelParts
from sctune.deploy.register import FORM
from sctune.deploy.speed import measure
from sctune.errors import StudyError
from sctune.methods.base import Fitted
from sctune.metrics.objective import find_objective
from sctune.metrics.statistics import Estimate
from sctune.metrics.threshold import escape_rate, false_alarm_rate
from sctune.search.study.splits import checked_splits
from sctune.search.study.study import Study
from sctune.train.trainer import Trainer

HELD_OUT_IMAGES = 32
"""Images that parity and speed are measured with."""


@dataclass(frozen=True)
class Built:
    """The confirmed model as it is registered. images: encoded held-out images for parity and speed.

    trainer: of the single model, whose pools are those of all forms; method, config: what is registered.
    """

    study: Study
    trainer: Trainer
    method: Fitted
    config: TrialConfig
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


def confirmed_one(study: Study, found: Confirmation, one: Ranked) -> Confirmed:
    """A configuration of the confirmation with its models; raises ChangedDataError where the images are others."""
    trained = Study.open(study.folder.parent, found.confirm_study, study.storage)
    splits = checked_splits(trained.manifest, trained.folder)
    row = trained_rows(trained)[one.name]
    return Confirmed(study, trained, found, splits, one, row, final_values(trained, row))


def build(it: Confirmed, tested: Tried, chosen: ChosenModel, rule: float | str, final: Final | None) -> Built:
    """Everything about one of its models; rule: as in deploy/build.model_parts.

    final: takes the place of the chosen single model.
    """
    study, found, trained = it.study, it.found, it.trained
    task = next(task for task in trained.manifest.tasks if task.key == chosen.task)
    split = it.splits[task.key]
    trainer = trained_model(trained, it.row, task, split)
    method, learned = (trainer.method, split) if final is None else final_method(it, final, trainer)
    manifest = study.manifest
    meta: dict[str, Any] = {
        "study": study.name,
        "trial": it.one.trial if it.one.trial is not None else it.one.name,
        "confirm_study": trained.name,
        "task": task.key,
        "seed": task.seed,
        study.objective.metric: chosen.selection,
        "test_auroc": chosen.test_auroc,
        "test_auroc_seeds": asdict(tested.estimate),
        "licence": manifest.data.licence,
        "attribution": manifest.data.attribution,
    }
    config = trainer.config
    if final is not None:
        # what is known of the single model only is not said of another one
        of_one = ("seed", study.objective.metric, "test_auroc", "test_auroc_seeds")
        meta = {name: value for name, value in meta.items() if name not in of_one}
        meta |= {FORM: final.form.name, "seeds": list(final.seeds)}
        meta |= {} if final.test is None else {"test_auroc": final.test.estimate.value, "tested": final.test.opened}
        config = config.override({"data.anomalies": "all"}) if final.refit else config
    parts = model_parts(trainer, meta, rule, None if final is None else method)
    images = tuple((split.root / path).read_bytes() for path in _of_both_classes(trainer))
    speed = measure(Model(method, config, parts), images)
    seeds = () if final is None else final.seeds
    results = _results(study, found, tested, chosen, parts, final)
    facts = CardFacts(
        config=config,
        data=manifest.data.model_dump(),
        counts=learned.summary(),
        split={
            "split" if len(seeds) < 2 else "split of the first member": learned.digest,
            "partition seed": manifest.partition_seed,
        },
        results=results,
        extra=(_choice(study, found, tested), *([] if final is None else [_form(final)])),
        speed=speed.line(),
    )
    return Built(study, trainer, method, config, replace(parts, card=model_card(parts, facts)), images)


def _of_both_classes(trainer: Trainer) -> list[str]:
    """Held-out images, as many of each class as there are, up to half of the number each."""
    paths, labels = trainer.selection.paths, trainer.selection.labels
    chosen = [[path for path, of in zip(paths, labels, strict=True) if of == label] for label in (0, 1)]
    half = HELD_OUT_IMAGES // 2
    normal, anomalous = chosen[0][: HELD_OUT_IMAGES - min(half, len(chosen[1]))], chosen[1][:half]
    return [*normal, *anomalous]


def _results(
    study: Study, found: Confirmation, it: Tried, chosen: ChosenModel, parts: ModelParts, final: Final | None
) -> dict[str, str]:
    assert found.test is not None
    normal, anomalous = found.test.images
    of, mean = f"{normal} normal, {anomalous} anomalous images", it.estimate
    results = {}
    if final is None:
        results["test AUROC of this model"] = f"{chosen.test_auroc:.4f} ({of})"
        results[f"{_objective(found)} of this model"] = f"{chosen.selection:.4f}, by which its seed was chosen"
    elif final.test is not None:
        test = final.test.estimate
        results["test AUROC of this model"] = f"{test.value:.4f} (95 %: {test.low:.4f} to {test.high:.4f}; {of})"
        results["against the single model on the test images"] = gap_text(final.test.difference)
    if final is not None and final.gap is not None:
        results["against the single model on development images"] = f"{gap_text(final.gap)}; {final.basis}"
    whose = "" if final is None else " of single models"
    results[f"test AUROC{whose} over {len(mean.seeds)} seeds"] = (
        f"{mean.value:.4f} (95 %: {mean.low:.4f} to {mean.high:.4f})"
    )
    file = chosen.scores if final is None else None if final.test is None else final.test.scores
    results |= _rates(study, file, parts)
    if it.gap is not None:
        gap = it.gap
        results[f"{'' if final is None else 'single models '}against {it.against}"] = (
            f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f}), paired"
        )
    return results


def _form(final: Final) -> str:
    """How the model differs from the single one of the confirmation."""
    seeds = ", ".join(map(str, final.seeds))
    parts = []
    if final.refit:
        parts.append("trained on all labelled anomalies of the development pool, so that none of them measures it")
    if final.form.size > 1:
        parts.append(f"the mean of the scores of {final.form.size} models (seeds {seeds})")
    told = "" if final.test is not None else "; this very model was not scored on the test images"
    return f"Final form: {' and '.join(parts)}{told}"


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


def _rates(study: Study, scores_file: str | None, parts: ModelParts) -> dict[str, str]:
    """Escapes and false alarms of the test images at the threshold, from the scores of the one look."""
    if parts.threshold is None or scores_file is None:
        return {}
    file = confirm_folder(study) / scores_file
    if not file.is_file():  # confirmed on another machine
        return {}
    _, labels, scores = read_scores(file)
    return {
        "escapes in the test": str(escape_rate(labels, scores, parts.threshold.value)),
        "false alarms in the test": str(false_alarm_rate(labels, scores, parts.threshold.value)),
    }
