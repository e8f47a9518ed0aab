"""How many updates a training has where a method says so itself: of the whole of it, shared out among its epochs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sctune.config import TrialConfig

TotalUpdates = Annotated[int, Field(ge=1, le=1_000_000)] | Literal["iterations", "pass"]
"""Type of a field `total_updates`: one name and one meaning in all methods, since a space draws it for all of them."""

ABOUT = (
    "updates of a whole training, shared out among budget.epochs; `iterations`: budget.iterations in each epoch; "
    "`pass`: an epoch goes once over the normal images"
)
"""Description of the field."""


class Length:
    """Of a training of `config`. total: the field; per_pass: updates that see each normal image once."""

    def __init__(self, config: TrialConfig, total: TotalUpdates, per_pass: int) -> None:
        self._budget = config.budget
        self._total = total
        self._per_pass = per_pass

    def before(self, epoch: int) -> int:
        """Updates before an epoch, the first being 0; epochs differ by one update at most."""
        if self._total == "pass":
            return epoch * self._per_pass
        if self._total == "iterations":
            return epoch * self._budget.iterations
        return epoch * self._total // self._budget.epochs

    def of(self, epoch: int) -> int:
        """Updates of an epoch."""
        return self.before(epoch + 1) - self.before(epoch)

    @property
    def longest(self) -> int:
        """Updates of the epoch that has most."""
        return -(-self.whole // self._budget.epochs)

    @property
    def whole(self) -> int:
        """Updates of the training."""
        return self.before(self._budget.epochs)


def steps_text(config: TrialConfig) -> str | None:
    """How many steps an epoch has, in words, whatever its method; None where it goes once over the normal images."""
    total = getattr(config.method, "total_updates", "iterations")
    if total == "pass":
        return None
    if isinstance(total, str):
        return f"{config.budget.iterations} iterations"
    return f"{total / config.epochs:.4g} updates"


def check_total(config: TrialConfig, total: TotalUpdates) -> None:
    """Raises ValueError, one line, where an epoch would have no update."""
    if isinstance(total, int) and total < config.budget.epochs:
        raise ValueError(
            f"method.total_updates={total}: each of budget.epochs={config.budget.epochs} needs one; use more updates, "
            "or fewer epochs"
        )
