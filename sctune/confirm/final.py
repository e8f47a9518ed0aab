"""The final form of a confirmed model, kept in the confirmation's document: of which models, and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from sctune.config import TrialConfig
from sctune.errors import ConfigError
from sctune.metrics.statistics import Estimate
from sctune.metrics.threshold import Rate


class Form(NamedTuple):
    """refit: trained on all anomalies of the development pool, not on those that a seed draws; size: models whose mean
    score is taken, 1 for a single one.
    """

    refit: bool = False
    size: int = 1

    @property
    def name(self) -> str:
        """For people."""
        parts = ["refit"] if self.refit else []
        return ", ".join(parts + ([f"ensemble of {self.size}"] if self.size > 1 else [])) or "single model"

    @property
    def slug(self) -> str:
        """For names of files."""
        return self.name.replace(",", "").replace(" ", "-")

    @property
    def is_plain(self) -> bool:
        """Whether it is the winner's model as the confirmation trained it."""
        return not self.refit and self.size == 1

    @property
    def words(self) -> str:
        """The options that ask for it."""
        parts = (" --refit all" if self.refit else "", f" --ensemble {self.size}" if self.size > 1 else "")
        return "".join(parts)


def asked_form(refit: str | None, ensemble: int, n_seeds: int) -> Form:
    """What `--refit` and `--ensemble` ask for; raises ConfigError where there are too few seeds for it."""
    if refit not in (None, "all"):
        raise ConfigError(f"--refit {refit}: only `all` is known, all anomalies of the development pool")
    if ensemble > n_seeds:
        raise ConfigError(
            f"--ensemble {ensemble}: the confirmation has {n_seeds} seeds, and a member is trained on each; ask for "
            f"{n_seeds} at most, or confirm with --n-seeds {ensemble} (--again where it is complete)"
        )
    return Form(refit is not None, ensemble)


def unfit(form: Form, config: TrialConfig) -> str | None:
    """Why there is no such form of a configuration; None where there is one."""
    if form.refit and config.n_anomalies == 0:
        return (
            "--refit all: the anomaly-free setting has no labelled anomalies to train on; leave it out, or search in "
            "another setting"
        )
    if form.refit and not config.entry.learns_from_anomalies(config):
        return (
            f"--refit all: method {config.entry.name}, as it is configured, learns nothing from labelled anomalies, so "
            "that more of them change nothing; leave it out"
        )
    if form.refit and form.size > 1 and not config.entry.trains:
        return (
            f"--refit all --ensemble {form.size}: {config.entry.name} trains nothing, and learns the same from all "
            "anomalies whatever the seed; leave --ensemble out"
        )
    return None


def check_form(form: Form, configs: Sequence[TrialConfig]) -> None:
    """Raises ConfigError, before anything is trained, where none of what may win has such a form."""
    reasons = [unfit(form, config) for config in configs]
    if reasons and all(reasons):
        raise ConfigError(str(reasons[0]))


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Compared(_Frozen):
    """A form on held-out images of the development pool. difference: it minus the single model, paired; None: of that
    itself.
    """

    name: str
    estimate: Estimate
    difference: Estimate | None


class FinalTest(_Frozen):
    """The test images, scored by the final model. estimate: AUROC with the interval of new images; difference: it minus
    the winner's single model to deploy, on the same images; scores: file below the confirmation's folder.
    """

    opened: str
    estimate: Estimate
    difference: Estimate
    threshold: dict[str, Any] | None
    escapes: Rate | None
    false_alarms: Rate | None
    scores: str


class Final(_Frozen):
    """A final form of the winner for one category and class.

    candidate: name of the configuration; seeds: of its members; basis: the images of `compared` in words, or why
    nothing is compared; test: None where it was made after the test images were looked at, and they were not looked at
    again.
    """

    subset: str
    candidate: str
    refit: bool
    seeds: tuple[int, ...]
    basis: str
    compared: tuple[Compared, ...]
    test: FinalTest | None = None

    @property
    def form(self) -> Form:
        return Form(self.refit, len(self.seeds))

    @property
    def gap(self) -> Estimate | None:
        """This form minus the single model on development images, None where nothing was compared."""
        found = {one.name: one.difference for one in self.compared}
        return found.get(self.form.name)
