"""Maps that are kept for the epochs to come, and the clock of the dry run."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from sctune.methods.clock import now
from sctune.methods.kept import KeptMaps


def test_maps_are_kept_as_long_as_there_is_room() -> None:
    made: list[float] = []

    def maps(value: float) -> Tensor:
        made.append(value)
        return torch.full((2, 3), value)

    # of 24 bytes each, two have room
    kept, first, second = KeptMaps(50), np.zeros(1), np.zeros(1)
    asked = ((first, 0, 1.0), (first, 1, 2.0), (second, 0, 3.0))
    for _ in range(2):
        found = [kept.of(images, batch, partial(maps, value)) for images, batch, value in asked]
        assert [float(one[0, 0]) for one in found if one is not None] == [1, 2, 3]
    assert made == [1, 2, 3, 3]
    assert kept.of(first, 2, lambda: None) is None


def test_an_array_that_is_gone_is_not_taken_for_another() -> None:
    kept = KeptMaps()
    for number in range(20):
        # each may lie where the one before did
        images = np.zeros(1)
        found = kept.of(images, 0, partial(torch.full, (), number))
        assert found is not None and int(found) == number


def test_the_clock_waits_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    first = now(torch.device("cpu"))
    assert now(torch.device("cuda")) >= first and waited == [torch.device("cuda")]
