"""What every rendering of a table says first: what was run, and what a reader must know of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

from sctune import __version__
from sctune.config import TrialConfig
from sctune.data.convert.registry import SETS
from sctune.methods.length import steps_text
from sctune.reproduce.cells import Place
from sctune.reproduce.columns import entry_of, is_the_papers
from sctune.reproduce.setup import Setup
from sctune.reproduce.tables import Header

Configs = Mapping[str, TrialConfig]
"""Label of a column -> its configuration."""


def header_of(setup: Setup, places: Iterable[Place] = ()) -> Header:
    """The header of a table; a fact that differs between columns is said of each that differs from most."""
    configs = {column.label: setup.config(column) for column in setup.runnable}
    values = ", ".join(f"{name}={value}" for name, value in setup.overrides.items())
    facts = [
        f"profile {setup.profile}",
        _fact("image size", configs, lambda c: f"{c.data.image_size} px"),
        _fact("backbone", configs, _backbone),
        *_lengths(configs),
        f"seeds {', '.join(map(str, setup.seeds))}",
        *([f"set {values}"] if values else []),
        "paper protocol: test images are all that is not trained on",
        f"{datetime.now(UTC).date().isoformat()}",
        f"sctune {__version__}",
    ]
    table = setup.table
    return Header(
        table.name,
        table.title,
        setup.profile,
        "; ".join(facts),
        tuple(_notes(setup)),
        setup.shuffled,
        tuple(dict.fromkeys(_attribution(place) for place in places)),
    )


def _attribution(place: Place) -> str:
    """Of the data set that the paper names, also where its folder says nothing of it."""
    return place.data.attribution or next(one for one in SETS if one.name == place.dataset).attribution


def _fact(name: str, configs: Configs, words: Callable[[TrialConfig], str]) -> str:
    """What most columns have, or of as many the last ones; in brackets the others with what they have."""
    found = {label: words(config) for label, config in configs.items()}
    usual = max(reversed(found.values()), key=list(found.values()).count)
    others = [f"{label} {value}" for label, value in found.items() if value != usual]
    return f"{name} {usual}" + (f" ({', '.join(others)})" if others else "")


def _lengths(configs: Configs) -> list[str]:
    """How long columns train, and which do not."""
    trained = {label: config for label, config in configs.items() if config.entry.trains}
    idle = [label for label in configs if label not in trained]
    if not trained:
        return ["nothing is trained"]
    epochs = _fact("epochs", trained, lambda config: str(config.epochs))
    lengths = f"{epochs}, {_fact('each of', trained, _steps)}"
    return [lengths, *([f"nothing is trained by {', '.join(idle)}"] if idle else [])]


def _steps(config: TrialConfig) -> str:
    """Of an epoch; methods with a length of their own do not look at the iterations."""
    return f"{steps_text(config) or 'one pass over the normal images'} with {config.budget.batch_size} images"


def _backbone(config: TrialConfig) -> str:
    from sctune.backbones.weights import RANDOM

    if not config.entry.looks_at("model.backbone"):
        return "none"
    return config.model.backbone + (" with random weights" if config.model.weights == RANDOM else "")


def _notes(setup: Setup) -> list[str]:
    notes = []
    if setup.shuffled:
        notes.append(
            "a network that learned nothing scores like itself before training, which stands beside it; that need not "
            "be 0.5, since pretrained features tell some images apart by themselves"
        )
    if setup.profile != "paper":
        notes.append(f"profile {setup.profile} is not the paper's setting: the difference is one of settings too")
    notes += [
        "AUROC: mean over the seeds; a mean line averages its rows first. Interval: bootstrap over the test images",
        "std trials: over seeds, of the mean over rows; std subsets: over rows, of the mean over seeds; std pooled: "
        "over all values, which is what the paper prints for its own method",
    ]
    if not setup.shuffled and any(map(setup.shows_untrained, setup.runnable)):
        notes.append(
            "untrained: the same network before its training, its backbone with the weights that it begins with; the "
            "difference to the trained one is what the training adds"
        )
    if not all(is_the_papers(column) for column in setup.runnable if entry_of(column).trains):
        notes.append(
            "methods besides the paper's own may count their steps otherwise than in iterations of an epoch "
            "(docs/methods.md)"
        )
    names = {column.name for column in setup.runnable}
    return [*notes, *(note.text for note in setup.table.notes if not note.columns or names & set(note.columns))]
