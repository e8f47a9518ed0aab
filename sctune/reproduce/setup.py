"""What all studies of one command share: table, columns, profile, and what the command sets besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sctune.config import Setting, TrialConfig, load_profile
from sctune.reproduce.columns import EPOCHS, Column, own_values
from sctune.reproduce.paper import PaperTable

SELECTION_LIMIT = 16
"""Test images per class scored after each epoch: curves for the tracking only, nothing is chosen by them."""

SHUFFLE = "data.shuffle_labels"
PAPER = {"model.normal_head": "mlp"}
"""The paper's methods have no density of the normal images, whatever the profile has."""


@dataclass(frozen=True)
class Setup:
    """What all studies of one command share. overrides: dotted values of --set."""

    table: PaperTable
    columns: tuple[Column, ...]
    profile: str
    seeds: tuple[int, ...]
    overrides: Mapping[str, Any]
    shuffled: bool

    @property
    def setting(self) -> Setting:
        return self.table.setting

    @property
    def runnable(self) -> tuple[Column, ...]:
        """The columns that are trained; the others have the paper's numbers only."""
        return tuple(column for column in self.columns if column.values is not None)

    def config(self, column: Column) -> TrialConfig:
        """The configuration of a column without its data; raises ConfigError where it cannot be."""
        if column.name not in self._configs:
            hard = {"data.known_class": "any"} if self.setting == "hard" else {}
            fixed = {"data.setting": self.setting, "data.selection": "test", **hard, **self._fixed()}
            values = fixed | dict(column.values or {}) | dict(self.overrides)
            self._configs[column.name] = self._profile.override(values)
        return self._configs[column.name]

    def space(self, columns: Sequence[Column], epochs: int) -> dict[str, Any]:
        """The space file that varies these columns, all trained for the same number of epochs."""
        varied = {column.name: self._varied(column) for column in columns}
        fields = [tuple(values) for values in varied.values()]
        tree: dict[str, Any] = {"format_version": 1, "name": f"reproduce-{self.table.name}"}
        tree["description"] = f"{self.table.title} (paper, {self.table.name})"
        if len(set(fields)) == 1 and len(fields[0]) == 1:
            (field,) = fields[0]
            tree["parameters"] = {field: {"values": [values[field] for values in varied.values()]}}
        else:
            tree["variants"] = varied
        tree["set"] = self._fixed() | {EPOCHS: epochs}
        return tree

    @property
    def search_overrides(self) -> dict[str, Any]:
        """What `run_search` is told besides its space: the section of a method stands beside the method's name."""
        return {name: value for name, value in self.overrides.items() if name not in self._of_methods}

    def shows_untrained(self, column: Column) -> bool:
        """Whether a column stands beside the same networks before their training."""
        from sctune.backbones.weights import RANDOM

        if column.values is None or self.shuffled:
            return column.values is not None
        return column.name in self.table.untrained and self.config(column).model.weights != RANDOM

    @cached_property
    def _profile(self) -> TrialConfig:
        return load_profile(self.profile)

    @cached_property
    def _configs(self) -> dict[str, TrialConfig]:
        return {}

    @property
    def _of_methods(self) -> dict[str, Any]:
        return {name: value for name, value in self.overrides.items() if name.startswith("method.")}

    def _fixed(self) -> dict[str, Any]:
        # only where it changes something: what is fixed is in the name of a study
        own = self._profile.flat()
        paper = {name: value for name, value in PAPER.items() if own[name] != value}
        return paper | {"data.selection_limit": SELECTION_LIMIT} | ({SHUFFLE: True} if self.shuffled else {})

    def _varied(self, column: Column) -> dict[str, Any]:
        # a value of --set that is the column's own is set once, for all of the study
        own = {name: value for name, value in varied_values(column).items() if name not in self.overrides}
        return own | self._of_methods


def varied_values(column: Column) -> dict[str, Any]:
    """What makes a column another one than the others of its study."""
    return {name: value for name, value in own_values(column).items() if name not in (EPOCHS, *PAPER)}
