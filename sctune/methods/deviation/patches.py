"""Which patches make a residual: random draws for training, exact or fixed sets for scoring.

R_P = w_P - (w_{P-1} - (... (w_2 - w_1))) = sum over k of (-1)^(P-k) w_k (paper eq. 8 for P = 4).
A residual therefore depends only on which positions carry a plus and which a minus sign.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from itertools import combinations
from math import comb

import numpy as np
import torch
from torch import Tensor

from sctune.methods.deviation.geometry import patch_offsets

EXACT_LIMIT = 256
"""Most signed sets that are averaged exactly; above it a fixed list is used."""

FIXED_SETS = 32


def signs(patch_count: int) -> list[int]:
    """Sign of w_1 .. w_P in the residual; the last is always +1."""
    return [(-1) ** (patch_count - k) for k in range(1, patch_count + 1)]


def signed_set_count(positions: int, patch_count: int) -> int:
    """Number of distinct (plus, minus) sets of positions: C(O, ceil(P/2)) C(O - ceil(P/2), floor(P/2))."""
    plus = (patch_count + 1) // 2
    return comb(positions, plus) * comb(positions - plus, patch_count - plus)


def random_offsets(
    side: int, patch: int, place: str, patch_count: int, draws: int, generator: torch.Generator | None = None
) -> Tensor:
    """[draws, P, 2] positions (row, column), drawn without replacement within each draw."""
    positions = torch.tensor(patch_offsets(side, patch, place))
    order = torch.rand(draws, len(positions), generator=generator).argsort(dim=1)[:, :patch_count]
    return positions[order]


@lru_cache(maxsize=64)
def scoring_signs(side: int, patch: int, place: str, patch_count: int, mode: str) -> Tensor:
    """[sets, O] matrix of -1, 0, +1: the signed sets whose scores are averaged at evaluation.

    exact: all distinct signed sets, i.e. the expectation of the random draw; where there are more than
    EXACT_LIMIT, or with `fixed`: FIXED_SETS sets that use every position as evenly as possible, the same
    for every image, epoch, trial and machine.
    """
    positions = len(patch_offsets(side, patch, place))
    # kept for later calls, of which some need gradients: what inference mode makes could not take part in these
    with torch.inference_mode(False):
        if mode == "exact" and signed_set_count(positions, patch_count) <= EXACT_LIMIT:
            return _all_sets(positions, patch_count)
        key = f"{side}:{patch_count}:{place}:{patch}"
        return _even_sets(positions, patch_count, key)


def _all_sets(positions: int, patch_count: int) -> Tensor:
    rows = []
    for plus in combinations(range(positions), (patch_count + 1) // 2):
        rest = [position for position in range(positions) if position not in plus]
        for minus in combinations(rest, patch_count // 2):
            row = torch.zeros(positions)
            row[list(plus)] = 1
            row[list(minus)] = -1
            rows.append(row)
    return torch.stack(rows)


def _even_sets(positions: int, patch_count: int, key: str) -> Tensor:
    draws = np.random.RandomState(int.from_bytes(sha256(key.encode()).digest()[:4], "big"))
    used = np.zeros(positions)
    rows = torch.zeros(FIXED_SETS, positions)
    sign = torch.tensor(signs(patch_count), dtype=rows.dtype)
    for row in rows:
        # least used first, ties at random; the order within the set decides the signs
        chosen = np.lexsort((draws.random_sample(positions), used))[:patch_count]
        used[chosen] += 1
        row[torch.from_numpy(draws.permutation(chosen))] = sign
    return rows
