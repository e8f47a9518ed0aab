"""Where a foreign consumer differs from the model over a conformance pack, and what that looks like."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctune.deploy.conformance.consumer import Answer, ask
from sctune.deploy.conformance.pack import Case, Pack, read_hints

CLOSE = 0.75
"""Mean difference of pixels up to which they are those of a wrong pipeline: implementations of it round otherwise."""


@dataclass(frozen=True)
class Compared:
    """One file. fault: what differs, None where nothing does; hint: what that looks like.

    pixels: largest difference of a pixel; share: of pixels that differ by more than is allowed; None where the
    consumer gave no pixels.
    """

    file: str
    expected: float | None
    got: float | None
    difference: float | None
    pixels: int | None
    share: float | None
    fault: str | None
    hint: str | None


@dataclass(frozen=True)
class Checked:
    """What a consumer makes of a pack."""

    consumer: str
    rows: tuple[Compared, ...]

    @property
    def differing(self) -> list[Compared]:
        return [row for row in self.rows if row.fault is not None]

    def line(self) -> str:
        """The outcome, and what explains most of it."""
        wrong = self.differing
        if not wrong:
            return f"it agrees with the model on all {len(self.rows)} files"
        hints = Counter(row.hint for row in wrong if row.hint is not None)
        reasons = "; ".join(f"{hint} ({count})" for hint, count in hints.most_common(3))
        return f"it differs on {len(wrong)} of {len(self.rows)} files" + (f"; looks like: {reasons}" if reasons else "")

    def to_dict(self) -> dict[str, Any]:
        return {
            "consumer": self.consumer,
            "agrees": not self.differing,
            "files": [asdict(row) for row in self.rows],
        }


def check_consumer(pack: Pack, consumer: str, token: str | None = None) -> Checked:
    """Let the consumer score the pack's files and compare. Raises ConfigError where it cannot be asked.

    token: what a server is sent as `Authorization: Bearer`.
    """
    answers = ask(consumer, [pack.raw(case).absolute() for case in pack.cases], token)
    positions, hints = read_hints(pack)
    rows, likely = [], []
    for case in pack.cases:
        answer = answers.get(case.file)
        pixels = None if answer is None else _pixels(answer)
        row = _compared(pack, case, answer, pixels)
        rows.append(row)
        samples = (
            pixels.reshape(-1, 3)[positions] if isinstance(pixels, np.ndarray) and row.pixels is not None else None
        )
        likely.append(_likely(case, row, samples, hints.get(case.file)) if row.fault is not None else [])
    named = _named(pack, rows, likely)
    return Checked(consumer, tuple(replace(row, hint=name) for row, name in zip(rows, named, strict=True)))


def _named(pack: Pack, rows: Sequence[Compared], likely: Sequence[Sequence[str]]) -> list[str | None]:
    """For each file the wrong pipeline that it comes from, of several the one that explains the most files.

    A score alone may be that of a wrong pipeline by chance: one that does not explain half of the files which it would
    change is none.
    """
    votes = Counter(name for names in likely for name in names)
    changed = Counter(wrong.name for case in pack.cases for wrong in case.wrong)
    found: list[str | None] = []
    for row, names in zip(rows, likely, strict=True):
        sure = [name for name in names if row.pixels is not None or 2 * votes[name] >= changed[name]]
        found.append(max(sure, key=lambda name: votes[name]) if sure else None)
    return found


def _compared(pack: Pack, case: Case, answer: Answer | None, pixels: NDArray[Any] | str | None) -> Compared:
    row = Compared(case.file, case.score, None, None, None, None, None, None)
    if answer is None:
        return replace(row, fault="it gave no answer")
    row = replace(row, got=answer.score)
    if case.refused is not None:
        return row if answer.score is None else replace(row, fault=f"the model refuses it: {case.refused}")
    if answer.score is None or case.score is None:
        return replace(row, fault=f"it gave an error: {answer.error}")
    difference = abs(answer.score - case.score)
    row = replace(row, difference=difference if math.isfinite(difference) else None)
    faults, allowed = [], case.score_tolerance
    if isinstance(pixels, str):
        faults.append(pixels)
    elif pixels is not None:
        row, wrong = _with_pixels(row, case, pixels, pack.pixels(case))
        faults += wrong
        if row.pixels:
            allowed = max(allowed, case.rounding)
    if not difference <= allowed:
        faults.append("score")
    is_tie = pack.threshold is None or abs(case.score - pack.threshold) <= allowed
    if answer.label is not None and case.label is not None and answer.label != case.label and not is_tie:
        faults.append(f"label {answer.label}, not {case.label}")
    return replace(row, fault=", ".join(faults) or None)


def _with_pixels(
    row: Compared, case: Case, pixels: NDArray[Any], expected: NDArray[np.uint8]
) -> tuple[Compared, list[str]]:
    if pixels.dtype != np.uint8 or pixels.shape != expected.shape:
        text = f"pixels {pixels.dtype} {list(pixels.shape)}, not uint8 {list(expected.shape)}"
        return row, [text]
    apart = np.abs(pixels.astype(np.int16) - expected).max(axis=-1)
    row = replace(row, pixels=int(apart.max()), share=float((apart > case.pixel_tolerance).mean()))
    return row, ["pixels"] if apart.max() > case.pixel_tolerance else []


def _pixels(answer: Answer) -> NDArray[Any] | str | None:
    if answer.pixels is None:
        return None
    path = Path(answer.pixels)
    try:
        found = np.load(path, allow_pickle=False)
        return found if isinstance(found, np.ndarray) else f"{path} holds no array"
    except (OSError, ValueError, EOFError) as problem:
        return f"pixels that cannot be read ({path}: {problem})"


def _likely(
    case: Case, row: Compared, samples: NDArray[np.uint8] | None, known: NDArray[np.uint8] | None
) -> Sequence[str]:
    """Names of the wrong pipelines that give this, the closest first; by the pixels where there are some."""
    distances: dict[str, float]
    names = [wrong.name for wrong in case.wrong]
    if samples is not None:
        if known is None or row.pixels is None or row.pixels <= case.pixel_tolerance:
            return []
        apart = np.abs(known.astype(np.int16) - samples).mean(axis=(1, 2))
        distances = {name: float(one) for name, one in zip(names, apart, strict=True) if one <= CLOSE}
    elif row.got is not None and case.score is not None:
        distances = {}
        for wrong in case.wrong:
            # implementations of it round otherwise, which changes less than the fault itself
            apart_from_right = abs(wrong.score - case.score)
            near = max(case.score_tolerance, min(case.rounding, apart_from_right / 4))
            if abs(wrong.score - row.got) <= near < apart_from_right:
                distances[wrong.name] = abs(wrong.score - row.got)
    else:
        return []
    return sorted(distances, key=lambda name: distances[name])
