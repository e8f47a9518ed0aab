"""Which references a search runs: methods that train nothing, as far as they fit what is searched."""

from __future__ import annotations

from sctune.config import TrialConfig, method_entries, search_defaults
from sctune.errors import ConfigError
from sctune.search.study.references import reference_fields


def planned_references(asked: bool | None, profile: str, base: TrialConfig) -> tuple[tuple[str, ...], list[str]]:
    """Names of the references, and a line for each that does not go with the study's base.

    asked: with or without them; None: as the profile says.
    """
    if not (search_defaults(profile).references if asked is None else asked):
        return (), []
    found, lines = [], []
    for entry in method_entries():
        if not entry.reference:
            continue
        try:
            base.override(reference_fields(base, entry.name, profile))
        except ConfigError as problem:
            lines.append(f"reference {entry.name} is left out: {problem}")
            continue
        found.append(entry.name)
    return tuple(found), lines
