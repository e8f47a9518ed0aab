"""How many updates an epoch has, and a training."""

from __future__ import annotations

import pytest

from sctune.config import TrialConfig
from sctune.errors import ConfigError
from sctune.methods.length import Length, TotalUpdates


@pytest.mark.parametrize(
    ("total", "epochs"),
    [(8, [2, 3, 3]), (9, [3, 3, 3]), (3, [1, 1, 1]), ("iterations", [5, 5, 5]), ("pass", [4, 4, 4])],
)
def test_epochs_share_out_the_updates(total: TotalUpdates, epochs: list[int]) -> None:
    config = TrialConfig().override({"budget.epochs": 3, "budget.iterations": 5})
    length = Length(config, total, per_pass=4)
    assert [length.of(epoch) for epoch in range(3)] == epochs and length.whole == sum(epochs)
    assert [length.before(epoch) for epoch in range(4)] == [sum(epochs[:epoch]) for epoch in range(4)]


@pytest.mark.parametrize("name", ["cutpaste", "kdad"])
def test_an_epoch_without_an_update_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^method\.total_updates=29: each of budget\.epochs=30 needs one; use more"):
        TrialConfig().override({"method.name": name, "method.total_updates": 29, "data.image_size": 64})
