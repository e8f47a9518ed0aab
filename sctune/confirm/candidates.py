"""Which configurations are trained again: the best full runs of a search, and beside them the paper's default and the
methods that train nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sctune.backbones.weights import IMAGENET, RANDOM
from sctune.config import FIXED_FIELDS, TrialConfig, load_profile, method_entry
from sctune.config.methods import DEFAULT, METHOD_SECTIONS
from sctune.errors import ConfigError, StudyError
from sctune.methods.named import method_values
from sctune.search.space.definition import Space
from sctune.search.study.leaderboard import TrialRow
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.references import Reference, reference_fields

REFERENCE = "reference"
"""Candidate of the paper's default; those that train nothing have the names of their methods."""
DENSITY = "model.normal_head"
"""Which profiles set, and the paper does not have."""


@dataclass(frozen=True)
class Candidate:
    """fields: dotted name -> value over the study's base; trial: of the search, None for what is compared with it.

    value: what the search saw, None for what it did not try.
    """

    name: str
    fields: dict[str, Any]
    trial: int | None = None
    value: float | None = None


def best_candidates(manifest: StudyManifest, rows: Sequence[TrialRow], top: int) -> list[Candidate]:
    """The `top` best full runs with configurations of their own, best first.

    Raises StudyError where there is none, or where the study selects on its test images: nothing would be left that
    no choice was made by.
    """
    if manifest.selection.mode == "test":
        raise StudyError(
            f"study {manifest.name} selects on its test images (--selection test), so that nothing unseen is left to "
            "confirm on; search with another --selection, or see `sctune reproduce`"
        )
    space = manifest.build_space()
    found: dict[str, Candidate] = {}
    for row in rows:
        if row.state == "COMPLETE" and row.value is not None and len(found) < top:
            fields = space.assignments(row.params)
            candidate = Candidate(f"trial-{row.number}", dict(fields), row.number, row.value)
            found.setdefault(_identity(space, fields), candidate)
    if not found:
        raise StudyError(
            f"study {manifest.name} has no full run to confirm; go on with `sctune resume {manifest.name}`"
        )
    return list(found.values())


def reference(manifest: StudyManifest, candidates: Sequence[Candidate]) -> tuple[Candidate | None, list[str]]:
    """The paper's default: its values for all that the space decides, in the study's own budget; and notes for people.

    It has no density of the normal images, which is no matter of budget. In a study of another method all that belongs
    to a method is the profile's. Where these do not go together on the study's images, what the space fixes stays as it
    is. None where one of the candidates is that configuration already.
    """
    space = manifest.build_space()
    start = _papers_method(space.base, manifest.profile)
    varied = {*space.by_name, *space.variant_fields} - {"variant"}
    decided = [name for name in space.base.flat() if name in varied | set(space.fixed) and name not in FIXED_FIELDS]
    paper = TrialConfig().flat()
    if "method.name" in space.variant_fields:
        # what a variant sets beside its method is that method's
        usual = load_profile(manifest.profile).flat()
        paper |= {name: usual[name] for name in space.variant_fields if name in usual and name != DENSITY}
    notes = []
    for names in (decided, [name for name in decided if name in varied]):
        fields = start | {name: paper[name] for name in names if name in paper}
        try:
            space.base.override(fields)
        except ConfigError as problem:
            notes = [f"the reference keeps what the space fixes: {problem}"]
            continue
        same = [one.name for one in candidates if _identity(space, one.fields) == _identity(space, fields)]
        if same:
            return None, [f"the paper's default is among the candidates: {same[0]}"]
        return Candidate(REFERENCE, fields), notes
    return None, ["no reference: the paper's default values do not go together on these images"]


def _papers_method(base: TrialConfig, profile: str) -> dict[str, Any]:
    """What makes a study's base the paper's method, without a density.

    From another method it takes what the profile has of fields that this one has no use for, or set by a recipe of its
    own. What a command line set stays.
    """
    own, papers, usual = base.entry, method_entry(DEFAULT), load_profile(profile).flat()
    if own.name == DEFAULT:
        return {} if base.model.normal_head == "mlp" else {DENSITY: "mlp"}
    held, recipes = base.flat(), [method_values(name, profile) for name in own.published]

    def is_own(name: str) -> bool:
        return any(name in recipe and recipe[name] == held[name] for recipe in recipes)

    other = base.model.backbone != usual["model.backbone"]
    of_file = other and base.model.weights not in (IMAGENET, RANDOM)
    asked = other and own.looks_at("model.backbone") and not is_own("model.backbone")
    # a file fits one backbone and is the whole study's; freeze counts the blocks of the profile's
    kept = {"model.backbone", "model.freeze"} if of_file else {"model.freeze"} if asked else set()

    fields = [
        name
        for name in usual
        if name.partition(".")[0] in METHOD_SECTIONS and papers.looks_at(name) and name not in {*FIXED_FIELDS, *kept}
    ]
    lost = {name: usual[name] for name in fields if not own.looks_at(name) or is_own(name)}
    return {**lost, "method.name": DEFAULT, DENSITY: "mlp"}


def untrained(
    manifest: StudyManifest, references: Sequence[Reference], candidates: Sequence[Candidate]
) -> tuple[list[Candidate], list[str]]:
    """The references that the search ran, as candidates of their own; and notes for people about the others."""
    space = manifest.build_space()
    found, notes = [], []
    for one in references:
        if one.report is None:
            notes.append(f"reference {one.name} is no candidate: the search has no value of it")
            continue
        fields = reference_fields(space.base, one.name, manifest.profile)
        same = [other.name for other in candidates if _identity(space, other.fields) == _identity(space, fields)]
        if same:
            notes.append(f"reference {one.name} is among the candidates: {same[0]}")
        else:
            found.append(Candidate(one.name, fields, value=one.value))
    return found, notes


def variant_space(manifest: StudyManifest, chosen: Sequence[Candidate]) -> Space:
    """A grid over the chosen configurations, each under its name."""
    tree = {
        "format_version": 1,
        "name": f"{manifest.space.get('name', 'space')}-confirm",
        "description": f"The best of study {manifest.name}, and what they are compared with, on fresh seeds",
        # a field that one of them sets is set by all: the base's value is no default here
        "variants": {one.name: dict(one.fields) for one in chosen},
    }
    base = manifest.trial_config().override({"data.selection": manifest.selection.mode})
    return Space.from_dict(tree, base)


def _identity(space: Space, fields: Mapping[str, Any]) -> str:
    return repr(space.base.override(fields).flat())
