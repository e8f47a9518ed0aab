"""`sctune deploy`: the confirmed model into the registry, and to its place in service where the gate lets it."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from sctune.confirm.built import Built, build, confirmed_one, tried
from sctune.confirm.final import Final, Form, asked_form
from sctune.confirm.forms import Confirmed, make_final
from sctune.confirm.gallery import gallery_lines
from sctune.confirm.gate import (
    LATENCY_MS,
    Step,
    acceptance_step,
    export_form,
    latency_step,
    licence_step,
    parity_step,
    unseen,
)
from sctune.confirm.results import ChosenModel, Confirmation, final_lines, keep_final, read_confirmation
from sctune.data.catalog import DataSet, open_dataset
from sctune.data.images import file_digest
from sctune.deploy.build import BEST_F1
from sctune.deploy.flavor import IMAGE_COLUMN, SCORE_COLUMN
from sctune.deploy.locate import Address, fetched, open_model
from sctune.deploy.model import Model
from sctune.deploy.register import Registered, log_model_run, registered_name
from sctune.deploy.registry import CHAMPION, Move, aliased, check_name, promote
from sctune.deploy.speed import measure
from sctune.errors import ConfigError, SctuneError, StudyError, TrackingError, nearest
from sctune.metrics.threshold import DEFAULT_RATE, check_rate
from sctune.search.study.ledger import add_look, show_looks
from sctune.search.study.study import Study
from sctune.tracking.run_files import tag_study_run
from sctune.tracking.server import check_tracking, find_parent_run, mlflow_client, safe_uri, scrub

Say = Callable[[list[str]], None]

_log = logging.getLogger(__name__)

GATE_TAG = "sctune.gate"
REGISTER_S = 120.0
"""Seconds that MLflow may take for a model."""


@dataclass(frozen=True)
class DeployOptions:
    """name: of the registered model, None for that of the data; alias: what is moved; category: of several models.

    candidate: what the confirmation tested besides its winner, to be deployed in the winner's place.
    rule: wanted false-alarm rate, or best-f1; acceptance: labelled images that neither model has seen, None for the
    study's test images; force: a reason, moves the alias although a step failed. refit, ensemble: the final form of
    what is deployed (`asked_form`), made here where `sctune confirm` has not made it.
    """

    name: str | None = None
    alias: str = CHAMPION
    category: str | None = None
    rule: float | str = DEFAULT_RATE
    acceptance: str | None = None
    accept_licence: bool = False
    max_latency_ms: float = LATENCY_MS
    force: str | None = None
    candidate: str | None = None
    refit: str | None = None
    ensemble: int = 1
    address: str | None = None


@dataclass(frozen=True)
class DeployOutcome:
    """move: of the alias, None where the gate held it."""

    model: Registered
    steps: tuple[Step, ...]
    move: Move | None
    forced: bool
    threshold: str
    warnings: tuple[str, ...]

    @property
    def failed(self) -> list[Step]:
        return [step for step in self.steps if not step.passed]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `--json`."""
        return {
            "model": {"name": self.model.name, "version": self.model.version},
            "promoted": self.move is not None,
            "forced": self.forced,
            "alias": None if self.move is None else self.move.to_dict(),
            "steps": [step.to_dict() for step in self.steps],
            "warnings": list(self.warnings),
        }


def run_deploy(
    study_root: Path, name: str, options: DeployOptions, say: Say, storage: str | None = None
) -> DeployOutcome:
    """Register the model that a study's confirmation chose, and move the alias where every step of the gate passes.

    Raises ConfigError for a name that cannot be used, StudyError for a study that is not confirmed, TrackingError where
    the registry does not answer.
    """
    check_name(options.alias, "--alias")
    if options.name is not None:
        check_name(options.name, "--name")
    study = Study.open(study_root, name, storage)
    found = read_confirmation(study)
    if found is None or found.test is None:
        raise StudyError(f"study {name} is not confirmed; run `sctune confirm {name}` first")
    uri = study.manifest.tracking_uri
    check_tracking(uri)
    it = tried(found, found.test, options.candidate)
    chosen = _chosen(it.models, options.category)
    notes = [] if it.one.name == found.winner.name else [_by_hand(it.one.name, found.winner.name)]
    form = asked_form(options.refit, options.ensemble, len(found.seeds))
    if not form.is_plain and options.rule == BEST_F1:
        raise ConfigError(
            f"--best-f1 needs anomalies that the model has not learned from, and{form.words} leaves none that is known "
            "to be one; leave it out for the conformal threshold"
        )
    given = None if options.acceptance is None else open_dataset(options.acceptance)
    if isinstance(options.rule, float):
        check_rate(options.rule)
    confirmed = confirmed_one(study, found, it.one)
    # the data's name is a folder's, which may be any
    model_name = check_name(registered_name(options.name or _default_name(confirmed, chosen)), "--name")
    run = _parent_run(study)
    final = None if form.is_plain else _final(confirmed, chosen.subset, form, options, say)
    notes += [] if final is not None else _other_forms(found, it.one.name, chosen.subset)
    built = build(confirmed, it, chosen, options.rule, final)
    client = mlflow_client(uri)
    serving = aliased(client, model_name, options.alias)
    with tempfile.TemporaryDirectory(prefix="sctune-deploy-") as scratch:
        model = _register(study, run, built, model_name, Path(scratch))
        say([f"registered models:/{model.name}/{model.version}"])
        with fetched(Address(uri, model.name, model.version)) as folder:
            loaded = open_model(str(folder), device="cpu")
            speed = measure(open_model(str(folder), device="auto"), built.images)
            steps = [
                licence_step(study.manifest.data.licence, options.accept_licence),
                _parity(built, loaded, folder, Path(scratch)),
                latency_step(speed, options.max_latency_ms),
            ]
        other = None if serving == model.version else serving
        acceptance, warnings = _acceptance(built, loaded, model.name, other, options, given)
        steps.append(acceptance)
        now = aliased(client, model.name, options.alias)
        if now != serving:
            detail = f"{options.alias} moved from {serving} to {now} meanwhile; deploy again"
            steps.append(Step("unchanged", False, detail))
    return _finish(study, model, steps, options, loaded, [*notes, *(given.notes if given else ()), *warnings])


def _by_hand(name: str, winner: str) -> str:
    return (
        f"{name} is deployed in the place of {winner}, which won on the selection images; if the test numbers were the "
        "reason, they are too good for it"
    )


def _final(it: Confirmed, subset: str, form: Form, options: DeployOptions, say: Say) -> Final:
    """The final model that the confirmation knows, or one that is made now, without a look at the test images."""
    known = it.found.final(it.one.name, subset, form)
    if known is not None:
        say(gallery_lines(it.study, it.found, known))
        return known
    made = make_final(it, subset, form, say, options.address)
    say(final_lines(made))
    keep_final(it.study, it.found, [made])
    return made


def _other_forms(found: Confirmation, name: str, subset: str) -> list[str]:
    made = [one for one in found.finals if (one.candidate, one.subset) == (name, subset)]
    return [
        f"the single model is deployed; {one.form.name} is there as well, and is deployed with{one.form.words}"
        for one in made
    ]


def _finish(
    study: Study,
    model: Registered,
    steps: Sequence[Step],
    options: DeployOptions,
    loaded: Model,
    warnings: Sequence[str],
) -> DeployOutcome:
    uri = study.manifest.tracking_uri
    client = mlflow_client(uri)
    failed = [step.name for step in steps if not step.passed]
    forced = bool(failed) and options.force is not None
    move = None
    try:
        text = json.dumps([step.to_dict() for step in steps])
        client.set_model_version_tag(model.name, str(model.version), GATE_TAG, text[:4900])
        if not failed or forced:
            reason = f"forced ({', '.join(failed)}): {options.force}" if forced else "the gate passed"
            move = promote(client, model.name, model.version, reason, options.alias)
    except Exception as problem:  # whatever MLflow raises: the alias is where it was, or where it belongs
        raise TrackingError(f"the registry at {safe_uri(uri)} refused: {scrub(problem, uri)}; deploy again") from None
    more: list[str] = []
    if move is not None:
        tags = {"deployed": f"models:/{model.name}/{model.version}", "deployed_as": options.alias}
        more = tag_study_run(uri, study.manifest.study_id, tags)
    threshold = "no threshold" if loaded.threshold is None else loaded.threshold.line()
    return DeployOutcome(model, tuple(steps), move, forced, threshold, (*warnings, *more))


def _chosen(models: Sequence[ChosenModel], category: str | None) -> ChosenModel:
    subsets = {model.subset: model for model in models}
    if category is None:
        if len(models) > 1:
            raise StudyError(f"the study has a model for each of {', '.join(subsets)}; choose one with --category")
        return models[0]
    if category not in subsets:
        raise StudyError(f"--category {category!r}: no model of it; {nearest(category, subsets)}")
    return subsets[category]


def _default_name(it: Confirmed, chosen: ChosenModel) -> str:
    """Of the images: all studies of the same ones compete for one place."""
    task = next(task for task in it.trained.manifest.tasks if task.key == chosen.task)
    group = it.config.data.group
    name = open_dataset(task.source, task.category, group).name
    return f"{name}-{task.known_class}" if task.known_class else name


def _parent_run(study: Study) -> str:
    """Id of the study's run in MLflow; TrackingError where there is none, before anything is trained for it."""
    manifest = study.manifest
    try:
        run = find_parent_run(manifest.tracking_uri, manifest.study_id)
    except Exception as problem:  # whatever MLflow raises
        uri = manifest.tracking_uri
        raise TrackingError(f"cannot read the runs at {safe_uri(uri)}: {scrub(problem, uri)}") from None
    if run is None:
        raise TrackingError(
            f"MLflow has no run of study {study.name}, which the model belongs to; `sctune sync {study.name}` makes it"
        )
    return run


def _register(study: Study, run: str, built: Built, name: str, scratch: Path) -> Registered:
    weights = scratch / "weights.safetensors"
    state = built.method.model_state()
    save_file({key: value.cpu().contiguous() for key, value in state.items()}, weights)
    # each member has weights of its own to send
    limit_s = REGISTER_S * len(built.parts.meta.get("seeds", "1"))
    return log_model_run(
        study.manifest.tracking_uri, run, built.config, weights, built.parts, name, limit_s, again="deploy again"
    )


def _parity(built: Built, loaded: Model, folder: Path, scratch: Path) -> Step:
    """The trainer's model, the one that MLflow loads, and the exported one, on the same images."""
    import mlflow.pyfunc
    import pandas as pd

    drawn = loaded.config.entry.unrepeatable(loaded.config)
    if drawn is not None:
        return Step("parity", False, drawn)
    pixels = np.stack([loaded.prepare(image).pixels for image in built.images])
    trained = built.method.score(pixels)
    flavour = mlflow.pyfunc.load_model(str(folder)).predict(pd.DataFrame({IMAGE_COLUMN: list(built.images)}))
    forms = {"loaded by MLflow": flavour[SCORE_COLUMN].to_numpy(), "loaded": loaded.score(pixels)}
    try:
        name, scores = export_form(loaded, pixels, scratch / "export")
    except Exception as problem:  # whatever the exporters raise: the gate tells it, and nothing moves
        _log.warning("the model could not be exported", exc_info=not isinstance(problem, SctuneError))
        return Step("parity", False, f"it cannot be exported: {' '.join(str(problem).split())[:300]}")
    threshold = None if loaded.threshold is None else loaded.threshold.value
    return parity_step(trained, {**forms, name: scores}, threshold)


def _acceptance(
    built: Built, loaded: Model, name: str, champion: int | None, options: DeployOptions, given: DataSet | None
) -> tuple[Step, list[str]]:
    """The step, and warnings; champion: version that serves, None where there is no other one."""
    if champion is None:
        return Step("acceptance", True, f"there is no other {options.alias} to be compared with"), []
    study, split = built.study, built.trainer.split
    try:
        serving = open_model(f"models:/{name}/{champion}", study.manifest.tracking_uri)
    except SctuneError as problem:
        return Step("acceptance", False, f"the {options.alias} cannot be read, so nothing is compared: {problem}"), []
    if given is None:
        files, root = [(file.path, file.label) for file in split.test], split.root
        source = f"the test images of {study.name}"
    else:
        files, root, source = [(file.path, file.label) for file in given.files], given.root, str(options.acceptance)
    images = unseen(source, root, files, [loaded, serving])
    # also where --acceptance names the study's own images
    tests = {file_digest(split.root / file.path) for file in split.test}
    looked = sum(file_digest(path) in tests for path in images.paths)
    warnings: list[str] = []
    if looked:
        ledger = add_look(study, "deploy", looked, 2, decided="whether the model takes the champion's place")
        warnings += show_looks(study, ledger)
    return acceptance_step(loaded, serving, images), warnings
