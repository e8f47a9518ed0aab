"""One image of a data set as its reader found it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

GOOD = "good"
UNNAMED = "anomaly"
"""Kind of an anomaly whose type is not given."""


@dataclass(frozen=True)
class ImageFile:
    """One image of a data set.

    path: POSIX, relative to the data set's root; label: 0 normal, 1 anomalous; kind: `good` or the defect type;
    group: the source unit (part, strip, wafer), which no split ever cuts, the path itself where none is known;
    split: where its maker put it, None where they did not say; mask: path of the defect mask, if there is one;
    more_masks: of further masks of the same image.
    """

    path: str
    label: int
    kind: str
    group: str = ""
    split: Literal["train", "test"] | None = None
    mask: str | None = None
    more_masks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.path)

    @property
    def masks(self) -> tuple[str, ...]:
        """Paths of all masks; a pixel is marked where one of them marks it."""
        return (self.mask, *self.more_masks) if self.mask is not None else ()


class Reading(NamedTuple):
    """What a reader found. notes: one line each, about what was left out or could be meant otherwise."""

    files: list[ImageFile]
    notes: list[str]
