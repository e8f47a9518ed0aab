"""Figures as people read them."""

from __future__ import annotations

from typing import Any


def duration(seconds: float) -> str:
    """A time for people: seconds below 90, then minutes, from two hours on hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def short(params: dict[str, Any]) -> str:
    """Parameters in one line, without their sections."""
    return ", ".join(f"{name.rsplit('.', 1)[-1]}={_figure(value)}" for name, value in params.items())


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
