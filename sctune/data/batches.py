"""Which images make a batch, and their rotation. Stateless: every draw follows from (seed, step) alone.

So a resumed run needs no random state, and two runs with the same seed see the same batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sctune.data.transfer import to_like

NORMAL, SEEN, PSEUDO = 0, 1, 2
"""Labels of batch slots."""

PSEUDO_SHARE = 0.5
"""Chance of a normal slot to become a pseudo slot (METHODS 1.1, step 2)."""


def stream(seed: int, *names: object) -> torch.Generator:
    """A CPU generator of its own for every purpose, keyed by the seed and the names."""
    key = ":".join(map(str, (seed, *names)))
    return torch.Generator().manual_seed(int.from_bytes(sha256(key.encode()).digest()[:8], "big", signed=True))


@dataclass(frozen=True)
class Slots:
    """One batch of B slots.

    labels [B]: NORMAL, SEEN or PSEUDO; index [B]: position in the list of training normals (NORMAL and PSEUDO:
    the receiver) or of training anomalies (SEEN); donors [M]: for each pseudo slot, the batch slot of its donor.
    """

    labels: np.ndarray
    index: np.ndarray
    donors: np.ndarray


def draw_slots(
    n_normal: int,
    n_anomalous: int,
    normal_slots: int,
    batch_size: int,
    step: int,
    seed: int,
    pseudo: bool,
    allow_self: bool,
) -> Slots:
    """The batch of training step `step` (0, 1, ...): normal slots first, seen anomalies behind (METHODS 1.1).

    Normals and anomalies come from endless re-shuffled permutations; each normal slot becomes a pseudo slot with
    chance 1/2 and its image is redrawn. At least one slot stays normal. Donors are drawn with replacement from the
    batch's normal slots, never the receiver's own file unless `allow_self`, or no other is there.
    """
    rng = np.random.default_rng(_seed_words(seed, "slots", step))
    normal = endless(n_normal, normal_slots, step, seed, "normal")
    seen = endless(n_anomalous, batch_size - normal_slots, step, seed, "seen") if n_anomalous else np.empty(0, int)
    labels = np.full(normal_slots, NORMAL)
    if pseudo:
        flips = rng.random(normal_slots) < PSEUDO_SHARE
        if flips.all():
            flips[rng.integers(normal_slots)] = False
        labels[flips] = PSEUDO
        normal = np.where(flips, rng.integers(n_normal, size=normal_slots), normal)
    donors = _draw_donors(normal, labels, rng, allow_self)
    return Slots(np.concatenate([labels, np.full(len(seen), SEEN)]), np.concatenate([normal, seen]), donors)


def endless(count: int, per_batch: int, step: int, seed: int, name: str) -> np.ndarray:
    """Items step * per_batch .. of the endless sequence of permutations of range(count); [per_batch]."""
    places = np.arange(step * per_batch, (step + 1) * per_batch)
    return np.array([_permutation(count, int(place) // count, seed, name)[place % count] for place in places], int)


def rotation_angles(count: int, degrees: float, generator: torch.Generator) -> Tensor:
    """Angles [count] in degrees, uniform in -degrees .. degrees."""
    return (torch.rand(count, generator=generator) * 2 - 1) * degrees


def rotate(pixels: Tensor, angles: Tensor, fill: Literal["zero", "reflect"] = "zero") -> tuple[Tensor, Tensor]:
    """Images [N, C, H, W] turned counter-clockwise by angles [N] in degrees, all in one call.

    Nearest pixel, same size. Corners become 0 (black, before normalisation) or mirror the image.
    Also gives where pixels are real: [N, 1, H, W] bool.
    """
    height, width = pixels.shape[-2:]
    radians = to_like(angles, pixels) * (math.pi / 180)
    cosine, sine, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    matrix = torch.stack(
        [
            torch.stack([cosine, -sine * height / width, zero], dim=1),
            torch.stack([sine * width / height, cosine, zero], dim=1),
        ],
        dim=1,
    )
    grid = functional.affine_grid(matrix, [len(pixels), 1, height, width], align_corners=False)
    # a pixel is real where its nearest source pixel exists: half a pixel beyond the outermost centres
    valid = (grid.abs() <= 1).all(dim=-1)[:, None]
    padding = "zeros" if fill == "zero" else "reflection"
    turned = functional.grid_sample(pixels, grid, mode="nearest", padding_mode=padding, align_corners=False)
    if fill == "zero":
        turned = turned * valid
    return turned, valid


def _draw_donors(normal: np.ndarray, labels: np.ndarray, rng: np.random.Generator, allow_self: bool) -> np.ndarray:
    candidates = np.flatnonzero(labels == NORMAL)
    receivers = np.flatnonzero(labels == PSEUDO)
    donors = candidates[rng.integers(len(candidates), size=len(receivers))]
    if allow_self:
        return donors
    for row, receiver in enumerate(receivers):
        others = candidates[normal[candidates] != normal[receiver]]
        if normal[donors[row]] == normal[receiver] and len(others):
            donors[row] = others[rng.integers(len(others))]
    return donors


@lru_cache(maxsize=32)
def _permutation(count: int, turn: int, seed: int, name: str) -> np.ndarray:
    return np.random.default_rng(_seed_words(seed, name, turn)).permutation(count)


def _seed_words(seed: int, *names: object) -> list[int]:
    digest = sha256(":".join(map(str, (seed, *names))).encode()).digest()
    return [int.from_bytes(digest[start : start + 4], "big") for start in range(0, 16, 4)]
