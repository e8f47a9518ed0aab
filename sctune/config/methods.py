"""What a configuration must know of the ways to find anomalies: their names, their sections, and what they use.

An entry is light: it imports no network. Those of sctune stand in BUILT_IN; an installed package adds its own under
the entry point group `sctune.methods`, a program with `register`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import ValidationError

from sctune.config.data import Setting
from sctune.config.section import Section
from sctune.errors import ConfigError, nearest
from sctune.plugins import load_entry, plugin_names

if TYPE_CHECKING:
    from sctune.config.trial import TrialConfig

GROUP = "sctune.methods"
"""Entry points of this group are `name = module:ENTRY`, the latter a MethodEntry of that name."""

DEFAULT = "deviation"
BUILT_IN = {
    "deviation": "sctune.methods.deviation.entry:ENTRY",
    "gaussian": "sctune.methods.untrained.entry:GAUSSIAN",
    "patch_bank": "sctune.methods.untrained.entry:PATCH_BANK",
    "mlep": "sctune.methods.mlep.entry:ENTRY",
    "saoe": "sctune.methods.saoe.entry:ENTRY",
    "ssm": "sctune.methods.ssm.entry:ENTRY",
    "cutpaste": "sctune.methods.cutpaste.entry:ENTRY",
    "kdad": "sctune.methods.kdad.entry:ENTRY",
}

METHOD_SECTIONS = ("augment", "model", "score", "loss", "optim")
"""Sections of a configuration that belong to methods; which of their fields count, an entry says in `uses`."""

Conditions = tuple[tuple[str, tuple[Any, ...]], ...]
"""Pairs of a field and the values that it must have; all must hold."""


class MethodSection(Section):
    """The section `method` of a configuration. Each method has a subclass of its own, known by `name`.

    Its fields are plain values (numbers, texts, true, false, None) with defaults.
    """

    name: str

    @property
    def own_rate(self) -> float | None:
        """The first learning rate of a method that has a field for it, in place of optim.lr; None: it has none."""
        return None


class DeviationSection(MethodSection):
    """The family of SaliencyCut, DRA and DevNet; its settings are those of augment, model, score, loss and optim."""

    name: Literal["deviation"] = "deviation"


def _accept(config: TrialConfig) -> None:
    """A method without rules of its own."""


@dataclass(frozen=True)
class MethodEntry:
    """A way to find anomalies, as configurations, spaces and plans see it.

    name: in `method.name`; description: a line; section: its part of the configuration, all fields with defaults.
    implementation: `package.module:Class` of a subclass of `sctune.methods.base.Method`, imported when one is built, or
    a function that gives it for a configuration.
    settings: those that it can be trained in. uses: sections or fields of METHOD_SECTIONS that it looks at; all others
    must keep their defaults. trains: whether more than one epoch makes a difference. reference: whether searches run
    it with its defaults on their tasks, to compare their winner with.
    learns_from_anomalies: whether labelled anomalies, where there are some, change what a configuration learns.
    conditions: field -> conditions under which it matters; in a space it is drawn only there.
    hyperparameters: field -> what is searched of it, written as under `parameters:` of a space file.
    published: name for `--method` -> {"config": tree, PROFILE: tree of that profile besides}.
    scoring: sections or fields that change how a trained model scores, and not its training.
    check: raises ValueError, one line, for values that do not go together. unrepeatable: why scores of a configuration
    differ from call to call, with the way out; None where they do not.
    cost: how many times as long an epoch takes as with other values of the method's own fields; of points that are
    equal otherwise the dry run times the one with the largest.
    summary: a configuration in a line of a model card; None: `description`, image size and seed. packages:
    distributions, besides sctune's own, that a model needs to load.
    """

    name: str
    description: str
    section: type[MethodSection]
    implementation: str | Callable[[TrialConfig], str]
    settings: tuple[Setting, ...] = get_args(Setting)
    uses: tuple[str, ...] = ()
    trains: bool = True
    reference: bool = False
    learns_from_anomalies: Callable[[TrialConfig], bool] = lambda config: True
    conditions: Mapping[str, Conditions] = field(default_factory=dict)
    hyperparameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    published: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scoring: tuple[str, ...] = ()
    check: Callable[[TrialConfig], None] = _accept
    unrepeatable: Callable[[TrialConfig], str | None] = lambda config: None
    cost: Callable[[TrialConfig], float] = lambda config: 1.0
    summary: Callable[[TrialConfig], str] | None = None
    packages: tuple[str, ...] = ()

    def looks_at(self, name: str) -> bool:
        """Whether a dotted field means something to the method; those of data, budget and runtime always do."""
        section = name.partition(".")[0]
        if section == "method":
            return name.partition(".")[2] in self.section.model_fields
        return section not in METHOD_SECTIONS or section in self.uses or name in self.uses

    def describe(self, config: TrialConfig) -> str:
        """A configuration in a line, for people."""
        if self.summary is not None:
            return self.summary(config)
        return f"{self.name} ({self.description}), {config.data.image_size} px, seed {config.seed}"

    def load(self, config: TrialConfig) -> Any:
        """The class that implements a configuration; raises ConfigError where it cannot be imported."""
        where = self.implementation if isinstance(self.implementation, str) else self.implementation(config)
        try:
            return _loaded(where)
        except (ImportError, AttributeError) as problem:
            raise ConfigError(
                f"method {self.name!r} cannot be loaded from {where}: {problem}; repair its installation"
            ) from None


_known: dict[str, MethodEntry] = {}


def register(entry: MethodEntry) -> None:
    """Make a method known to this process only; trials in Ray's workers find those of entry points."""
    _known[entry.name] = entry


def forget(name: str) -> None:
    """Look a method up anew when it is asked for again."""
    _known.pop(name, None)


def method_entry(name: object) -> MethodEntry:
    """The entry of a method; raises ConfigError with the nearest name for one that is not known, or cannot be read."""
    # first, since it is asked for with every field that is set
    if isinstance(name, str) and name in _known:
        return _known[name]
    names = _names()
    if not isinstance(name, str) or name not in names:
        raise ConfigError(f"method.name={name!r}: no such method; {nearest(str(name), {*names, *_known})}")
    return _known.setdefault(
        name, _loaded(BUILT_IN[name]) if name in BUILT_IN else load_entry(GROUP, name, MethodEntry)
    )


def method_entries() -> tuple[MethodEntry, ...]:
    """All methods that can be read, sctune's own first."""
    for name in _names():
        # one broken package must not take the others with it; asked for by name, it says what is wrong
        with suppress(ConfigError):
            method_entry(name)
    return tuple(_known[name] for name in dict.fromkeys((*BUILT_IN, *_known)) if name in _known)


def read_section(value: Any) -> MethodSection:
    """The section `method` from a nested tree; raises ValueError, one line, for a bad one."""
    if isinstance(value, MethodSection):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"method={value!r}: it holds keys and values; write method.name={DEFAULT}")
    try:
        entry = method_entry(value.get("name", DEFAULT))
    except ConfigError as problem:
        raise ValueError(str(problem)) from None
    fields = entry.section.model_fields
    for key in value:
        if key not in fields:
            own = [f"method.{name}" for name in fields]
            raise ValueError(
                f"unknown configuration key 'method.{key}' of method {entry.name}; {nearest(f'method.{key}', own)}"
            )
    try:
        return entry.section.model_validate({"name": entry.name, **value})
    except ValidationError as problem:
        first = problem.errors()[0]
        if first["type"] == "value_error":
            raise ValueError(str(first["ctx"]["error"])) from None
        place = ".".join(str(part) for part in first["loc"])
        text = f"{first['msg'][0].lower()}{first['msg'][1:]}"
        raise ValueError(f"method.{place}={first['input']!r}: {text}") from None


def _names() -> list[str]:
    """sctune's own names, which packages cannot take, and those of packages."""
    return [*BUILT_IN, *plugin_names(GROUP, but=BUILT_IN)]


def _loaded(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)
