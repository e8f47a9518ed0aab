"""What a confirmation found, kept in the study's folder as confirm/confirmation.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from sctune.confirm.final import Final, Form
from sctune.errors import StudyError
from sctune.metrics.objective import DEFAULT, find_objective
from sctune.metrics.statistics import Estimate
from sctune.metrics.threshold import Rate
from sctune.search.study.database import read_attrs, write_attrs
from sctune.search.study.study import Study, write_json

FORMAT_VERSION = 1
FOLDER = "confirm"
FILE = "confirmation.json"
ATTR = "sctune:confirmation"
"""Of a study in a database."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Ranked(_Frozen):
    """One configuration on the fresh seeds, on the selection objective. std: population, None for one seed.

    trial: of the search, None for the paper's default and the references; search_value: what the search saw of it.
    """

    name: str
    trial: int | None
    fields: dict[str, Any]
    mean: float
    std: float | None
    seeds: dict[int, float]
    search_value: float | None


class ChosenModel(_Frozen):
    """The trained model of the winner that `sctune deploy` takes for a category and class: the seed that selected best.

    task: its key in the confirmation's study; subset: category and class, empty where there is one only; scores: file
    of its test scores below the confirmation's folder.
    """

    task: str
    subset: str
    seed: int
    selection: float
    test_auroc: float
    threshold: dict[str, Any] | None
    escapes: Rate | None
    false_alarms: Rate | None
    scores: str


class Rival(_Frozen):
    """Another configuration that was scored in the one look; difference: the winner minus it, paired."""

    name: str
    estimate: Estimate
    difference: Estimate
    models: tuple[ChosenModel, ...]


class Tested(_Frozen):
    """The one look at the test images. images: normal and anomalous; reference: of what the winner is compared with,
    whose name is `against`; optimism: selection minus test, both AUROC; None where another objective selected.

    optimism_search: of the search's own value for the tested trial; optimism_confirm: of the winner's mean over seeds.
    rivals: all that the winner was compared with: `against`, what trains nothing; none in documents of before.
    """

    opened: str
    images: tuple[int, int]
    winner: Estimate
    reference: Estimate | None
    difference: Estimate | None
    against: str | None
    subset_std: float | None
    pooled_std: float | None
    optimism_search: float | None
    optimism_confirm: float | None
    models: tuple[ChosenModel, ...]
    rivals: tuple[Rival, ...] = ()


class Confirmation(_Frozen):
    """ranking: best first on the selection objective; the first is the winner, written down before the test was opened.

    reference: name of the paper's default in the ranking, None where there is none; references: names of the methods in
    it that train nothing; objective: what selected; finals: other forms of tested configurations, for `sctune deploy`.
    """

    format_version: Literal[1] = 1
    study: str
    study_id: str
    confirm_study: str
    written: str
    mode: str
    objective: str = DEFAULT
    seeds: tuple[int, ...]
    ranking: tuple[Ranked, ...]
    reference: str | None
    references: tuple[str, ...] = ()
    false_alarm_rate: float
    notes: tuple[str, ...] = ()
    test: Tested | None = None
    finals: tuple[Final, ...] = ()

    @model_serializer(mode="wrap")
    def _as_before(self, content: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The default objective goes without saying, as in the documents of before, and so does an empty list."""
        made: dict[str, Any] = content(self)
        if made.get("objective") == DEFAULT:
            del made["objective"]
        for name in ("references", "finals"):
            if not made.get(name):
                made.pop(name, None)
        return made

    @property
    def winner(self) -> Ranked:
        return self.ranking[0]

    def ranked(self, name: str) -> Ranked:
        """A configuration of the ranking; KeyError where it has none of this name."""
        return {one.name: one for one in self.ranking}[name]

    def final(self, candidate: str, subset: str, form: Form) -> Final | None:
        """The final model of this form, None where it was not made."""
        made = {(one.candidate, one.subset, one.form): one for one in self.finals}
        return made.get((candidate, subset, form))

    def with_final(self, final: Final) -> Confirmation:
        """This one with a final model, in the place of the same form of before."""
        same = (final.candidate, final.subset, final.form)
        others = (one for one in self.finals if (one.candidate, one.subset, one.form) != same)
        return self.model_copy(update={"finals": (*others, final)})

    def label(self, name: str) -> str:
        """A configuration for people."""
        what = "the paper's default" if name == self.reference else "trains nothing" if name in self.references else ""
        return f"{name} ({what})" if what else name


def confirm_folder(study: Study) -> Path:
    return study.folder / FOLDER


def read_confirmation(study: Study) -> Confirmation | None:
    """The latest confirmation of a study, None where there is none; its `test` is None until the test was opened.

    A study with a database record keeps it there as well, for other machines.

    Raises StudyError for a damaged file, one of a newer sctune, and one of another study under this name.
    """
    path = confirm_folder(study) / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        content = None if study.storage is None else read_attrs(study.storage, study.name).get(ATTR)
        if content is None:
            return None
    except (OSError, ValueError) as problem:
        raise StudyError(f"{path} cannot be read: {problem}") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise StudyError(f"{path} has format_version {version!r}, this sctune reads {FORMAT_VERSION}; update it")
    try:
        found = Confirmation.model_validate(content)
    except ValidationError as problem:
        first = problem.errors()[0]
        raise StudyError(f"{path} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if found.study_id != study.manifest.study_id:
        raise StudyError(f"{path} is of another study of the name {study.name}; remove {path.parent}")
    return found


def write_confirmation(study: Study, confirmation: Confirmation) -> Path:
    """Keep it: the whole file or none."""
    path = confirm_folder(study) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    content = confirmation.model_dump(mode="json")
    if study.storage is not None:
        write_attrs(study.storage, study.name, {ATTR: content})
    write_json(path, content)
    return path


def keep_final(study: Study, found: Confirmation, finals: Sequence[Final]) -> Confirmation:
    """Add final models to the study's confirmation as it stands now; `found`: as it was when they were begun.

    Raises StudyError where the study was confirmed anew meanwhile.
    """
    now = read_confirmation(study)
    if now is None or (now.confirm_study, now.written) != (found.confirm_study, found.written):
        raise StudyError(
            f"study {study.name} was confirmed anew while the final model was made; run the same command again"
        )
    for final in finals:
        now = now.with_final(final)
    write_confirmation(study, now)
    return now


def confirmation_lines(found: Confirmation) -> list[str]:
    """What it says, in words."""
    seeds = ", ".join(map(str, found.seeds))
    what = "proxy objective" if found.mode == "proxy" else f"selection {find_objective(found.objective).label}"
    lines = [f"confirmed on seeds {seeds} (study {found.confirm_study}), selection by {found.mode}:"]
    for place, one in enumerate(found.ranking, 1):
        std = "" if one.std is None else f" +- {one.std:.4f} over seeds"
        search = "" if one.search_value is None else f"; the search saw {one.search_value:.4f}"
        lines.append(f"  {place}. {found.label(one.name)}: {what} {one.mean:.4f}{std}{search}")
    lines.append(f"winner: {found.label(found.winner.name)}")
    return lines if found.test is None else [*lines, *_test_lines(found, found.test)]


def _test_lines(found: Confirmation, test: Tested) -> list[str]:
    normal, anomalous = test.images
    lines = [f"test, looked at once ({normal} normal, {anomalous} anomalous images), which decided nothing:"]
    lines.append(f"  {found.winner.name}: AUROC {_interval(test.winner)}")
    if test.reference is not None:
        lines.append(f"  {test.against}: AUROC {_interval(test.reference)}")
    if test.difference is not None:
        lines.append(f"  paired difference {gap_text(test.difference)}")
    for one in further_rivals(test):
        lines.append(f"  {found.label(one.name)}: AUROC {_interval(one.estimate)}")
        lines.append(f"  the winner minus {one.name}: {gap_text(one.difference)}")
    if test.optimism_search is not None:
        lines.append(f"  selection optimism of the search: {test.optimism_search:+.4f} (its value minus the test)")
    if test.optimism_confirm is not None:
        lines.append(f"  selection optimism on fresh seeds: {test.optimism_confirm:+.4f}")
    for model in test.models:
        of = f" of {model.subset}" if model.subset else ""
        lines.append(f"model to deploy{of}: seed {model.seed}, test AUROC {model.test_auroc:.4f}")
        if model.escapes is not None and model.false_alarms is not None:
            lines.append(f"  at its threshold: escapes {model.escapes}; false alarms {model.false_alarms}")
    for final in found.finals:
        lines += final_lines(final)
    return lines


def final_lines(final: Final) -> list[str]:
    """A final model beside the single one, in words."""
    of = f" of {final.subset}" if final.subset else ""
    seeds = ", ".join(map(str, final.seeds))
    lines = [f"final model{of}: {final.candidate}, {final.form.name} (seeds {seeds}); {final.basis}"]
    for one in final.compared:
        gap = "" if one.difference is None else f"; minus the single model {gap_text(one.difference)}"
        lines.append(f"  {one.name}: AUROC {_interval(one.estimate)}{gap}")
    test = final.test
    if test is None:
        lines.append("  not scored on the test images")
        return lines
    lines.append(f"  test AUROC {_interval(test.estimate)}; minus the single model {gap_text(test.difference)}")
    if test.escapes is not None and test.false_alarms is not None:
        lines.append(f"  at its threshold: escapes {test.escapes}; false alarms {test.false_alarms}")
    return lines


def further_rivals(test: Tested) -> list[Rival]:
    """What the winner was compared with besides `against`."""
    return [one for one in test.rivals if one.name != test.against]


def gap_text(gap: Estimate) -> str:
    """A paired difference with its interval, and whether it excludes zero."""
    verdict = "told apart" if gap.low > 0 or gap.high < 0 else "not told apart"
    p = "" if gap.p is None else f", p {gap.p:.3f}"
    return f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f}){p}: {verdict}"


def _interval(found: Estimate) -> str:
    std = "" if found.std is None else f", std over seeds {found.std:.4f}"
    return f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f}{std})"
