"""Sizes and places of patches, known before any network is built (METHODS 2.2).

Pure integer arithmetic, so that an impossible combination is refused when the configuration is made.
"""

from __future__ import annotations

import math


def patch_side(side: int, patch_count: int, rule: str) -> int:
    """Side of a patch in cells on a map of `side` cells.

    half_plus1: floor(S/2) + 1 (the public code); half: floor(S/2); sqrt: round(S / sqrt(P));
    fit: half_plus1, made smaller until P diagonal positions exist (may be below 1: infeasible).
    """
    if rule == "half":
        return max(1, side // 2)
    if rule == "sqrt":
        return max(1, round(side / math.sqrt(patch_count)))
    if rule == "fit":
        return min(side // 2 + 1, side - patch_count + 1)
    return side // 2 + 1


def patch_offsets(side: int, patch: int, place: str) -> list[tuple[int, int]]:
    """All (row, column) positions of a patch: the main diagonal (`diag`) or the whole map (`grid2d`)."""
    steps = range(side - patch + 1)
    if place == "diag":
        return [(step, step) for step in steps]
    return [(row, column) for row in steps for column in steps]
