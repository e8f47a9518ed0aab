"""What single images of a data set are found to be: unreadable, constant, clipped, blurred, flagged, of other sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sctune.data.decode import Decoding
from sctune.data.facts import Found, ImageFacts

CLIPPED = 0.5
"""Share of black or of white pixels from which on an image counts as clipped, where most others have far less."""
MORE_THAN_OTHERS = 0.25
FAINT, FAINT_SPREADS = 1 / 6, 7.5
"""A faint image has less than this share of the median sharpness, and lies so many robust deviations below it."""
SMOOTH = 1 / 4
"""`ImageFacts.fineness` of a picture without fine detail; what an image has above it is compared with the median."""
BLURRED, ALIKE_BLURRED, LEAST_SPREADS, SPREADS, MOST = 1 / 4.5, 1 / 2, 3, 8, 0.15
"""A blurred image has less than BLURRED of the median share of fine detail; where the others are alike, so that
SPREADS robust deviations are less than that, less than ALIKE_BLURRED; LEAST_SPREADS below and at most MOST in any case.

Chosen on whole pictures of ELPV, MVTec bottle and KolektorSDD, of which clean ones have from 0.28 of the median; what
they find there is in benchmarks/README.md. No other set was looked at.
"""
ASPECTS = 1.1
"""Ratio of the widest to the narrowest aspect from which on `stretch` distorts images differently."""
LEAST = 1e-3
SHOWN = 3

Severity = Literal["refused", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """kind: one word; text: what was found, with numbers; advice: one sentence; examples: some paths, count: of all."""

    kind: str
    severity: Severity
    count: int
    text: str
    advice: str
    examples: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        shown = f", first {self.examples[0]}" if self.examples and self.examples[0] not in self.text else ""
        return f"{self.text}{shown}; {self.advice}"


def unreadable(found: Found) -> list[Finding]:
    bad = sorted(path for path, one in found.items() if isinstance(one, str))
    if not bad:
        return []
    advice = "repair or remove them, or leave such images out with --skip-corrupt"
    text = f"{len(bad)} images cannot be read ({found[bad[0]]})"
    return [Finding("unreadable", "warning", len(bad), text, advice, tuple(bad[:SHOWN]))]


def odd_images(facts: Mapping[str, ImageFacts]) -> list[Finding]:
    if not facts:
        return []
    found = []
    constant = sorted(path for path, one in facts.items() if one.deviation == 0)
    if constant:
        advice = "a cap on the lens, or another depth? remove them, or see data.range"
        text = f"{len(constant)} images are of one colour"
        found.append(Finding("constant", "warning", len(constant), text, advice, tuple(constant[:SHOWN])))
    usual = max(_median(np.array([getattr(one, end) for one in facts.values()])) for end in ("black", "white"))
    clipped = sorted(
        path
        for path, one in facts.items()
        if one.deviation > 0 and max(one.black, one.white) > max(CLIPPED, usual + MORE_THAN_OTHERS)
    )
    if clipped:
        text = f"{len(clipped)} images are mostly black or white (over {CLIPPED:.0%} of the pixels at an end)"
        advice = "check exposure and data.range"
        found.append(Finding("clipped", "warning", len(clipped), text, advice, tuple(clipped[:SHOWN])))
    # what is at an end everywhere has no detail either
    told = {*constant, *clipped}
    blurred = _blurred({path: one for path, one in facts.items() if path not in told})
    if blurred:
        text = f"{len(blurred)} images are far less sharp than the others"
        found.append(
            Finding("blurred", "warning", len(blurred), text, "out of focus? remove them", tuple(blurred[:SHOWN]))
        )
    return found


def _blurred(facts: Mapping[str, ImageFacts]) -> list[str]:
    if len(facts) < 10:
        return []
    sharp = np.log([one.sharpness + LEAST for one in facts.values()])
    middle, spread = _middle(sharp)
    low = sharp < min(middle + np.log(FAINT), middle - FAINT_SPREADS * spread)
    detail = np.log([max(one.fineness - SMOOTH, LEAST) for one in facts.values()])
    middle, spread = _middle(detail)
    below = max(np.clip(SPREADS * spread, -np.log(ALIKE_BLURRED), -np.log(BLURRED)), LEAST_SPREADS * spread)
    low |= detail < min(middle - below, np.log(MOST))
    return sorted(path for path, is_low in zip(facts, low, strict=True) if is_low)


def _middle(values: NDArray[np.float64]) -> tuple[float, float]:
    """Median and robust standard deviation."""
    middle = _median(values)
    return middle, 1.4826 * _median(np.abs(values - middle))


def _median(values: NDArray[np.float64]) -> float:
    # that of numpy imports masked arrays at its first call, which takes longer than all else here
    ordered, count = np.sort(values), len(values)
    return float(ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def flags(facts: Mapping[str, ImageFacts]) -> list[Finding]:
    """What decoding said of single images, gathered by kind."""
    advice = {
        "hot pixels": "give data.range where they are no hot pixels",
        "nearly black": "see data.range",
        "resize=crop": "what lies outside is never looked at: data.resize=pad keeps all",
    }
    found = []
    for word, way_out in advice.items():
        flagged = sorted((path, note) for path, one in facts.items() for note in one.notes if word in note)
        if flagged:
            text = f"{len(flagged)} images: {flagged[0][1]}"
            paths = tuple(path for path, _ in flagged[:SHOWN])
            found.append(Finding(word.replace(" ", "-"), "warning", len(flagged), text, way_out, paths))
    return found


def sizes_of(facts: Mapping[str, ImageFacts], decoding: Decoding) -> list[Finding]:
    sizes = {path: (one.width, one.height) for path, one in facts.items()}
    if len(set(sizes.values())) < 2:
        return []
    aspects = [width / height for width, height in sizes.values()]
    distorts = decoding.resize == "stretch" and max(aspects) / min(aspects) > ASPECTS
    common, _ = Counter(sizes.values()).most_common(1)[0]
    others = sorted(path for path, size in sizes.items() if size != common)
    text = f"{len(others)} images are of other sizes than {common[0]} x {common[1]} ({len(set(sizes.values()))} sizes)"
    advice = "stretched to a square they are distorted differently: data.resize=pad keeps their aspect"
    return [
        Finding(
            "sizes",
            "warning" if distorts else "note",
            len(others),
            text,
            advice if distorts else "they are resized to one",
            tuple(others[:SHOWN]),
        )
    ]
