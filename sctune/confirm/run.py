"""`sctune confirm`: train the best again on fresh seeds, rank them, write the winner down, and open the test once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from sctune.confirm.built import confirmed_one
from sctune.confirm.candidates import REFERENCE, Candidate, best_candidates, reference, untrained
from sctune.confirm.final import Final, Form, asked_form, check_form, unfit
from sctune.confirm.forms import make_final, test_final
from sctune.confirm.gallery import gallery_lines
from sctune.confirm.outcome import ScoredRival, tested
from sctune.confirm.plan import confirm_name, confirm_plan, fresh_seeds
from sctune.confirm.ranking import final_values, rank
from sctune.confirm.rescore import better_variant
from sctune.confirm.results import Confirmation, confirm_folder, keep_final, read_confirmation, write_confirmation
from sctune.confirm.scoring import score_models, subset_of
from sctune.errors import StudyError
from sctune.metrics.threshold import check_rate
from sctune.search.study.database import stored_manifests
from sctune.search.study.leaderboard import TrialRow, leaderboard
from sctune.search.study.ledger import add_look, looks, show_looks
from sctune.search.study.record import Record
from sctune.search.study.references import read_references
from sctune.search.study.splits import checked_splits
from sctune.search.study.study import Study, list_studies

Say = Callable[[list[str]], None]


@dataclass(frozen=True)
class ConfirmOptions:
    """top: full runs that are trained again; n_seeds: fresh seeds; false_alarm_rate: wanted at the threshold.

    again: begin a new confirmation, on seeds that no earlier one used, where one is complete. rescored: beside each
    trial, also with the better way to score that `sctune rescore` found. refit, ensemble: of the winner's final form
    (`asked_form`).
    """

    top: int = 3
    n_seeds: int = 5
    false_alarm_rate: float = 0.01
    again: bool = False
    rescored: bool = False
    refit: str | None = None
    ensemble: int = 1
    address: str | None = None
    max_concurrent: int | None = None

    @property
    def form_words(self) -> str:
        """The options of the final form, as they were given."""
        return Form(self.refit is not None, self.ensemble).words


@dataclass(frozen=True)
class ConfirmOutcome:
    """stopped: interrupted; the same command goes on. looks: how often the test images were looked at by now."""

    confirmation: Confirmation | None
    looks: int
    stopped: bool = False
    warnings: tuple[str, ...] = ()


def run_confirm(
    study_root: Path,
    name: str,
    options: ConfirmOptions,
    say: Say,
    console: Console | None = None,
    storage: str | None = None,
) -> ConfirmOutcome:
    """Confirm a study, or go on with a confirmation that was interrupted; a complete one is read and not repeated.

    A study that still runs is confirmed with the trials that are complete, and a note says so. Raises ConfigError for a
    false-alarm rate that is none, StudyError for a study without full runs, or one that selects on its test images,
    AllTrialsFailedError where no trial could be trained again.
    """
    check_rate(options.false_alarm_rate)
    study = Study.open(study_root, name, storage)
    if study.manifest.confirms is not None:
        raise StudyError(f"{name} is itself a confirmation; give the study that it confirms")
    known = read_confirmation(study)
    if known is not None and known.test is not None and not options.again:
        form = asked_form(options.refit, options.ensemble, len(known.seeds))
        if not form.is_plain and _untested(known, form):
            return _later_final(study, known, form, options, say)
        if not form.is_plain:
            made = (known.final(known.winner.name, model.subset, form) for model in known.test.models)
            pictures = [line for one in made if one is not None for line in gallery_lines(study, known, one)]
            say([f"its final form ({form.name}) is there", *pictures])
        say([f"study {name} is confirmed already; --again trains on other seeds, and looks at the test images again"])
        return ConfirmOutcome(known, len(looks(study)))
    form = asked_form(options.refit, options.ensemble, options.n_seeds)
    candidates, notes = _candidates(study, options)
    searched, base = [one for one in candidates if one.trial is not None], study.manifest.trial_config()
    check_form(form, [base.override(one.fields) for one in searched])
    say(notes)
    trained = _train(study, candidates, options, say, console, known)
    if trained is None:
        return ConfirmOutcome(None, len(looks(study)), stopped=True)
    rows, ranking, failed = rank(trained, candidates)
    say(failed)
    found = Confirmation(
        study=study.name,
        study_id=study.manifest.study_id,
        confirm_study=trained.name,
        written=_now(),
        mode=trained.manifest.selection.mode,
        objective=trained.manifest.objective,
        seeds=tuple(dict.fromkeys(task.seed for task in trained.manifest.tasks)),
        ranking=tuple(ranking),
        reference=next((one.name for one in ranking if one.name == REFERENCE), None),
        references=tuple(one.name for one in ranking if one.trial is None and one.name != REFERENCE),
        false_alarm_rate=options.false_alarm_rate,
        notes=(*notes, *failed),
    )
    # the choice is made, and on disk, before any test image is read
    write_confirmation(study, found)
    finals = [] if form.is_plain else _finals(study, found, form, options, say)
    return _open_test(study, trained, found, rows, finals, say)


def _finals(study: Study, found: Confirmation, form: Form, options: ConfirmOptions, say: Say) -> list[Final]:
    """The winner's final models, one for each category and class, not yet tested."""
    it = confirmed_one(study, found, found.winner)
    reason = unfit(form, it.config)
    if reason is not None:
        say([f"no final model: {reason}"])
        return []
    subsets = dict.fromkeys(subset_of(task) for task in it.trained.manifest.tasks)
    return [make_final(it, subset, form, say, options.address, options.max_concurrent) for subset in subsets]


def _untested(found: Confirmation, form: Form) -> bool:
    """Whether a category's or class's winner of this form is missing, or has not been scored on the test images."""
    assert found.test is not None
    made = [found.final(found.winner.name, model.subset, form) for model in found.test.models]
    return any(one is None or one.test is None for one in made)


def _later_final(study: Study, found: Confirmation, form: Form, options: ConfirmOptions, say: Say) -> ConfirmOutcome:
    """The final form of a winner whose test images were opened before: one more look at them."""
    assert found.test is not None
    finals = _finals(study, found, form, options, say)
    if not finals:
        return ConfirmOutcome(found, len(looks(study)))
    images, command = sum(found.test.images), f"confirm ({found.confirm_study}){form.words}"
    ledger = looks(study)
    if not any(look.command == command for look in ledger):  # else interrupted while it looked
        say([f"the test images ({images}) were opened before; this is one more look, which decides nothing"])
        ledger = add_look(study, command, images, len(finals))
    done = keep_final(study, found, _with_finals(study, found, finals, say).finals)
    return ConfirmOutcome(done, len(ledger), warnings=tuple(show_looks(study, ledger)))


def _with_finals(study: Study, found: Confirmation, finals: Sequence[Final], say: Say) -> Confirmation:
    """The confirmation with its final models, scored on the test images."""
    if not finals:
        return found
    assert found.test is not None
    it = confirmed_one(study, found, found.winner)
    chosen = {model.subset: model for model in found.test.models}
    for final in finals:
        found = found.with_final(test_final(it, final, chosen[final.subset], say))
    return found


def _candidates(study: Study, options: ConfirmOptions) -> tuple[list[Candidate], list[str]]:
    with closing(Record(study.record_url, study.name)) as record:
        rows = leaderboard(record.load(), study.objective)
        references = read_references(study.manifest, record.load_references())
    chosen = best_candidates(study.manifest, rows, options.top)
    if options.rescored:
        chosen += _rescored(study, chosen)
    default, notes = reference(study.manifest, chosen)
    chosen += [default] if default is not None else []
    beside, left_out = untrained(study.manifest, references, chosen)
    notes += left_out
    if any(row.state in ("RUNNING", "WAITING") for row in rows):
        notes.append(f"study {study.name} has unfinished trials; those that are complete are confirmed")
    return [*chosen, *beside], notes


def _rescored(study: Study, chosen: Sequence[Candidate]) -> list[Candidate]:
    found = [(one, better_variant(study, one.trial)) for one in chosen if one.trial is not None]
    # the search never saw a score of this kind
    return [
        Candidate(f"{one.name}-rescored", one.fields | values, one.trial, None)
        for one, values in found
        if values is not None
    ]


def _train(
    study: Study,
    candidates: Sequence[Candidate],
    options: ConfirmOptions,
    say: Say,
    console: Console | None,
    known: Confirmation | None,
) -> Study | None:
    """The confirmation's study, complete; None where it was stopped."""
    from sctune.search.run.driver import resume, run_plan
    from sctune.search.run.plan_lines import plan_lines

    root = study.folder.parent
    mine = _confirmations(study)
    done = known if known is not None and known.test is not None else None
    later = [one for one in mine if done is None or one.manifest.created > done.written]
    begun = _begun(later, candidates, options)
    if begun is not None:
        if _unfinished(begun):
            say([f"going on with {begun.name}"])
            result = resume(
                begun.name,
                study_root=root,
                address=options.address,
                max_concurrent=options.max_concurrent,
                storage=study.storage,
                console=console,
            )
            return None if result.stopped else Study.open(root, begun.name, study.storage)
        return begun
    used = [task.seed for one in (study, *mine) for task in one.manifest.tasks]
    used += known.seeds if known is not None else ()
    name = _free_name(study, mine)
    plan = confirm_plan(study, name, candidates, fresh_seeds(used, options.n_seeds))
    result = run_plan(
        plan,
        address=options.address,
        max_concurrent=options.max_concurrent or study.manifest.resources.asked_concurrent,
        console=console,
        on_plan=lambda made, resources: say(plan_lines(made, resources)),
    )
    return None if result.stopped else Study.open(root, name, study.storage)


def _confirmations(study: Study) -> list[Study]:
    """The confirmations of a study that are here or in its database; others that cannot be read are not its own."""
    root, found = study.folder.parent, []
    names = set(list_studies(root)) | set(stored_manifests(study.storage) if study.storage else ())
    for name in sorted(names):
        with suppress(StudyError):
            one = Study.open(root, name, study.storage if not (root / name).is_dir() else None)
            if one.manifest.confirms == study.manifest.study_id:
                found.append(one)
    return found


def _free_name(study: Study, mine: Sequence[Study]) -> str:
    """The next name that neither a study nor a look in the ledger has."""
    taken = {*list_studies(study.folder.parent), *(one.name for one in mine)}
    looked = " ".join(look.command for look in looks(study))
    names = (confirm_name(study.name, number) for number in itertools.count(1))
    return next(name for name in names if name not in taken and f"({name})" not in looked)


def _begun(mine: Sequence[Study], candidates: Sequence[Candidate], options: ConfirmOptions) -> Study | None:
    """The latest confirmation that was begun with the same candidates; StudyError where it had others."""
    if not mine:
        return None
    latest = max(mine, key=lambda one: one.manifest.created)
    wanted = {one.name: one.fields for one in candidates}
    seeds = len({task.seed for task in latest.manifest.tasks})
    if latest.manifest.space.get("variants") == wanted and seeds == options.n_seeds:
        return latest
    names = ", ".join(latest.manifest.space.get("variants", {}))
    raise StudyError(
        f"{latest.name} was begun with {names} on {seeds} seeds and is not complete; give the same options to go on "
        f"with it, or remove it with `sctune delete {latest.name}`"
    )


def _unfinished(study: Study) -> bool:
    with closing(Record(study.record_url, study.name)) as record:
        trials = record.load()
    return len([trial for trial in trials if trial.state.is_finished()]) < study.manifest.trials


def _open_test(
    study: Study,
    trained: Study,
    found: Confirmation,
    rows: dict[str, TrialRow],
    finals: Sequence[Final],
    say: Say,
) -> ConfirmOutcome:
    winner = found.winner.name
    names = compared_with(found)
    splits = checked_splits(trained.manifest, trained.folder)
    images = {(str(split.root), file.path): file.label for split in splits.values() for file in split.test}
    models = len(trained.manifest.tasks) * (1 + len(names)) + len(finals)
    command = f"confirm ({trained.name})"
    ledger = looks(study)
    if not any(look.command == command for look in ledger):  # else interrupted while it looked
        ledger = add_look(study, command, len(images), models)
    say([f"the winner is {winner}, and it is written down; opening the test images ({len(images)}) now"])
    folder = confirm_folder(study) / trained.name
    first = score_models(trained, winner, rows[winner], splits, folder, say)
    rivals = []
    for name in names:
        scored = score_models(trained, name, rows[name], splits, folder, say)
        rivals.append(ScoredRival(name, scored, final_values(trained, rows[name])))
    values = final_values(trained, rows[winner])
    test = tested(found, first, rivals, list(images.values()), values)
    done = _with_finals(study, found.model_copy(update={"test": test}), finals, say)
    write_confirmation(study, done)
    warnings = show_looks(study, ledger)
    return ConfirmOutcome(done, len(ledger), warnings=tuple(warnings))


def compared_with(found: Confirmation) -> list[str]:
    """What the winner is compared with on the test images: first the paper's default, then what trains nothing.

    Where the default, or a method that trains nothing, won, the best candidate of the search takes the first place.
    """
    others = found.ranking[1:]
    searched = [one.name for one in others if one.trial is not None]
    default = [one.name for one in others if one.name == found.reference]
    references = [one.name for one in others if one.name in found.references]
    first = [*searched, *default] if found.winner.name in found.references else [*default, *searched]
    return [*first[:1], *references]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
