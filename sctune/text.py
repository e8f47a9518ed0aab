"""Figures as people read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any


def duration(seconds: float) -> str:
    """A time for people: seconds below 90, then minutes, from two hours on hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def without_sections(names: Iterable[str]) -> dict[str, str]:
    """Dotted name -> its last part; itself where another one ends alike."""
    last = {name: name.rpartition(".")[2] for name in names}
    times = Counter(last.values())
    return {name: leaf if times[leaf] == 1 else name for name, leaf in last.items()}


def short(params: dict[str, Any]) -> str:
    """Parameters in one line, without their sections."""
    names = without_sections(params)
    return ", ".join(f"{names[name]}={_figure(value)}" for name, value in params.items())


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
