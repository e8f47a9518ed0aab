"""What every section of a configuration is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def joined_names(taps: object) -> object:
    """Names as a list, or as text with commas between them, in the one form that is stored."""
    names = taps.split(",") if isinstance(taps, str) else taps
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return taps
    return ",".join(name.strip() for name in names)
